"""What the agent answers to each request: typed request in, typed reply out.

A handler is a method of a small class that is given the parts it uses; it takes the request and its Call.
"""

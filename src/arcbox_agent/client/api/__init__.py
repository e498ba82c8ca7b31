"""The agent's calls as typed methods, a class for each group.

system       ping, clock, system and agent information, runtime, shutdown
containers   create, start, stop, kill, wait, remove, list
commands     exec: to its end, as a stream, detached
logs         a container's log
"""

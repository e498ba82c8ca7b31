"""The host side: an async client, and a blocking one on top of it."""

"""The host's library: `connect` gives a Client; `arcbox_agent.sync` is the same without async.

transport   an address to a connected socket
connection  frames over it, one call at a time
pool        connections for many calls
stream      a call with many replies
calls       requests and replies, without any connection
client      every call as a method
opening     `connect`, the way in
blocking    the same for threads
"""

from arcbox_agent.client.calls import ExecResult, exit_code
from arcbox_agent.client.client import Client
from arcbox_agent.client.opening import connect
from arcbox_agent.client.stream import ReplyStream

__all__ = ["Client", "ExecResult", "ReplyStream", "connect", "exit_code"]

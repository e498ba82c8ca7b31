"""The host's library: `connect` gives a Client; `arcbox_agent.sync` is the same without async.

transport    from an address to a connected socket
connection   frames over the socket, one call at a time
pool         the connections of a client
keywords     keyword arguments that several calls share
clock        how far the guest's clock is off
calls        requests and replies, without any connection
stream       a call with many replies
duplex       a call with messages both ways
byte_reader, byte_writer    an output and the input of a stream
persistence  trying again while the agent is away
process      a command that outlives its connection
caller       a call from its request to its reply
api          the calls as typed methods
client       the async client: all of api
opening      `connect`
loop_thread  a thread with an event loop
blocking     the client for code without an event loop
"""

from arcbox_agent.client.byte_reader import ByteReader, Gap
from arcbox_agent.client.byte_writer import ByteWriter
from arcbox_agent.client.calls import ExecResult, exit_code
from arcbox_agent.client.client import Client
from arcbox_agent.client.clock import ClockSync
from arcbox_agent.client.opening import connect
from arcbox_agent.client.process import Process
from arcbox_agent.client.stream import ReplyStream

__all__ = [
    "ByteReader",
    "ByteWriter",
    "Client",
    "ClockSync",
    "ExecResult",
    "Gap",
    "Process",
    "ReplyStream",
    "connect",
    "exit_code",
]

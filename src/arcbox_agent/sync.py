"""The host's library without async: `arcbox_agent.sync.connect(address)`."""

from arcbox_agent.client.blocking import BlockingStream, Client, connect
from arcbox_agent.client.calls import ExecResult, exit_code

__all__ = ["BlockingStream", "Client", "ExecResult", "connect", "exit_code"]

"""The async client: every call of the agent as a typed method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arcbox_agent.client.api.commands import CommandCalls
from arcbox_agent.client.api.containers import ContainerCalls
from arcbox_agent.client.api.executions import ExecutionCalls
from arcbox_agent.client.api.forwards import ForwardCalls
from arcbox_agent.client.api.logs import LogCalls
from arcbox_agent.client.api.system import SystemCalls
from arcbox_agent.client.api.waits import WaitCalls

if TYPE_CHECKING:
    from types import TracebackType


class Client(SystemCalls, ContainerCalls, CommandCalls, ExecutionCalls, LogCalls, ForwardCalls, WaitCalls):
    """An agent, as `arcbox_agent.connect` gives it.

    Every method may raise the classes of errors.py: RequestError if the agent refused,
    TransportError if the agent could not be asked.  `timeout` of a method is the seconds
    to wait for its reply, instead of the client's time-out.  Where the call itself has a
    time-out (stop, exec, shutdown), `timeout` is that one, and the client's is added.

    A client belongs to the event loop that it was made on; any number of tasks may use it.
    """

    async def aclose(self) -> None:
        """Close all connections.  Calls that are still running get ConnectionLostError."""
        await self._pool.close()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

"""Calls that wait until something in the guest holds; the agent does the waiting, in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arcbox_agent import wire
from arcbox_agent.client import calls
from arcbox_agent.client.caller import Caller
from arcbox_agent.errors import WaitTimeoutError

if TYPE_CHECKING:
    from arcbox_agent.wire import WaitForResponse


class WaitCalls(Caller):
    """`timeout`: seconds until WaitTimeoutError, whose text has what the last look found."""

    async def wait_for_port(self, port: int, *, host: str = "", container: str = "", timeout: float = 60.0) -> None:
        """Until a TCP port accepts connections.  `host`: as the guest knows it; empty: the guest itself."""
        await self._wait(wire.WaitForRequest(port=port, host=host, container_id=container), timeout)

    async def wait_for_socket(self, path: str, *, container: str = "", timeout: float = 60.0) -> None:
        """Until a unix socket accepts connections."""
        await self._wait(wire.WaitForRequest(path=path, container_id=container), timeout)

    async def wait_for_file(
        self, path: str, *, changes: bool = False, container: str = "", timeout: float = 60.0
    ) -> None:
        """Until there is a file, or with `changes` until it is not what it was when the call came."""
        await self._wait(wire.WaitForRequest(file=path, changes=changes, container_id=container), timeout)

    async def wait_for_log(self, container: str, pattern: str, *, timeout: float = 60.0) -> str:
        """Until a line of the container's log matches a regular expression; that line.

        Those of its present run count, or of its last.  The expression may match anywhere in the
        line; it is one of Python's `re` without back-references and look-around.
        """
        return (await self._wait(wire.WaitForRequest(container_id=container, pattern=pattern), timeout)).found

    async def wait_for_process(self, pid: int, *, timeout: float = 60.0) -> None:
        """Until a process of the guest has ended; at once where there is none."""
        await self._wait(wire.WaitForRequest(pid=pid), timeout)

    async def wait_for_execution(self, id: str, pattern: str = "", *, timeout: float = 60.0) -> str:
        """Until an execution has ended, or with `pattern` a line of its output matches: that line.

        All that is kept of its output counts; the expression is as in `wait_for_log`.
        """
        return (await self._wait(wire.WaitForRequest(execution=id, pattern=pattern), timeout)).found

    async def _wait(self, request: wire.WaitForRequest, seconds: float) -> WaitForResponse:
        request.timeout_ms = calls.milliseconds("WaitForRequest.timeout_ms", seconds)
        reply = await self.call(request, wire.WaitForResponse, timeout=self._added_to(seconds), long=True)
        if not reply.met:
            raise WaitTimeoutError(reply.last, seconds)
        return reply

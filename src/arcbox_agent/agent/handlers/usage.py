"""What a container's processes are and use: top and stats."""

from __future__ import annotations

import asyncio

from arcbox_agent.agent.processes import ps, usage
from arcbox_agent.errors import AgentFailedError, ConflictError
from arcbox_agent.wire import ContainerStatsResponse, ContainerTopResponse, ProcessRow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar, TypeVarTuple

    from arcbox_agent.agent.containers.service import Containers
    from arcbox_agent.agent.processes.lanes import Lanes
    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.wire import ContainerStatsRequest, ContainerTopRequest

    T = TypeVar("T")
    Ts = TypeVarTuple("Ts")

#: Threads of the lane that read /proc at once.  A read of a process that hangs in a page fault
#: hangs with it, and the lane must keep threads for the agent's records.
AT_ONCE = 2


class Usage:
    """Handlers of top and stats."""

    def __init__(self, containers: Containers, lanes: Lanes) -> None:
        self._containers = containers
        self._lanes = lanes
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def top(self, request: ContainerTopRequest, call: Call) -> ContainerTopResponse:
        columns = ps.columns(request.ps_args)
        run = self._containers.run_of(request.id)
        if run is None:
            raise ConflictError(f"container is not running: {request.id}")
        rows = await self._in_thread(ps.table, run.scope, columns)
        return ContainerTopResponse(
            titles=[title for title, _ in columns], processes=[ProcessRow(values=row) for row in rows]
        )

    async def stats(self, request: ContainerStatsRequest, call: Call) -> ContainerStatsResponse:
        run = self._containers.run_of(request.id)
        if run is None:
            return ContainerStatsResponse()
        used = await self._in_thread(usage.measure, run.scope)
        # A container shares the guest's network, so no traffic is its own.
        return ContainerStatsResponse(
            cpu_usage=used.cpu_ns,
            system_cpu_usage=used.system_cpu_ns,
            online_cpus=used.cpus,
            memory_usage=used.memory,
            memory_limit=used.memory_limit,
            block_read_bytes=used.read_bytes,
            block_write_bytes=used.write_bytes,
            pids=used.tasks,
        )

    async def _in_thread(self, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        """The gate opens again when the thread is done, even if the client has gone away before."""
        await self._gate.acquire()
        try:
            try:
                work = self._lanes.disk(fn, *args)
            except OSError:
                self._gate.release()
                raise
            work.add_done_callback(self._done)
            return await asyncio.shield(work)
        except (OSError, ImportError) as error:
            # No thread, or no descriptor: to look at /proc, or to import psutil the first time.
            raise AgentFailedError(f"the container's processes cannot be looked at: {error}") from error

    def _done(self, work: asyncio.Future[Any]) -> None:
        self._gate.release()
        if not work.cancelled():
            work.exception()  # marks it as seen: the client that waited for it may have gone away

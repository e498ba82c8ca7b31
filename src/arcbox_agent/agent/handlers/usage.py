"""What a container's processes are and use: top and stats."""

from __future__ import annotations

import asyncio

from arcbox_agent.agent.config import budget
from arcbox_agent.agent.processes import ps, usage
from arcbox_agent.errors import AgentFailedError, ConflictError
from arcbox_agent.wire import ContainerStatsResponse, ContainerTopResponse, ProcessRow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar, TypeVarTuple

    from arcbox_agent.agent.containers.runtimes.protocol import Run
    from arcbox_agent.agent.containers.service import Containers
    from arcbox_agent.agent.processes.lanes import Lanes
    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.wire import ContainerStatsRequest, ContainerTopRequest

    T = TypeVar("T")
    Ts = TypeVarTuple("Ts")


class Usage:
    """Handlers of top and stats."""

    def __init__(self, containers: Containers, lanes: Lanes) -> None:
        self._containers = containers
        self._lanes = lanes

    async def top(self, request: ContainerTopRequest, call: Call) -> ContainerTopResponse:
        columns = ps.columns(request.ps_args)
        run = self._containers.run_of(request.id)
        if run is None:
            raise ConflictError(f"container is not running: {request.id}")
        rows = await self._look(run, ps.table, run.scope, columns)
        return ContainerTopResponse(
            titles=[title for title, _ in columns], processes=[ProcessRow(values=row) for row in rows]
        )

    async def stats(self, request: ContainerStatsRequest, call: Call) -> ContainerStatsResponse:
        run = self._containers.run_of(request.id)
        if run is None:
            return ContainerStatsResponse()
        used = await self._look(run, usage.measure, run.scope)
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

    async def _look(self, run: Run, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        """In the container's share of the lane: a read of a process that hangs in a page fault hangs with it."""
        try:
            async with asyncio.timeout(budget.LOOK):
                return await self._lanes.looks.submit(run.key, fn, *args)
        except TimeoutError:
            raise AgentFailedError(
                f"the container's processes cannot be looked at: one of them does not answer for {budget.LOOK:g} s"
            ) from None
        except (OSError, ImportError) as error:
            # No thread, or no descriptor: to look at /proc, or to import psutil the first time.
            raise AgentFailedError(f"the container's processes cannot be looked at: {error}") from error

"""All runtimes of the agent: which one has a container, and what they share.

The record of a container names its runtime.  Outside of each runtime stand the scopes,
the capture of output, and the keeper, which holds descriptors while there is no agent.
"""

from __future__ import annotations

import os

from arcbox_agent.agent.config.table import FORMER_KEEPER_SOCKET, KEEPER_SOCKET
from arcbox_agent.agent.containers.runtimes.guest import GuestRun
from arcbox_agent.agent.containers.runtimes.process.parts import Parts
from arcbox_agent.agent.containers.runtimes.process.runtime import ProcessRuntime
from arcbox_agent.agent.processes.keeper import Keeper
from arcbox_agent.agent.processes.scopes import Scopes
from arcbox_agent.errors import AgentFailedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.containers.output.capture import Capture
    from arcbox_agent.agent.containers.record import Record
    from arcbox_agent.agent.containers.runtimes.protocol import Runtime
    from arcbox_agent.agent.containers.store import Store
    from arcbox_agent.agent.metrics import Metrics
    from arcbox_agent.agent.processes.children import Processes
    from arcbox_agent.agent.processes.lanes import Lanes


class Runtimes:
    """See the module.

    `default`: the runtime of new containers.
    `guest`: where commands without a container run.
    `keeper`: holds descriptors while there is no agent, for executions too.
    `boot_id`: the guest's present boot; what ran in another one does not run any more.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        store: Store,
        processes: Processes,
        lanes: Lanes,
        capture: Capture,
    ) -> None:
        self._lanes = lanes
        self._scopes = Scopes(settings.state_dir)
        self.keeper = Keeper(
            os.path.join(settings.run_dir, KEEPER_SOCKET),
            processes,
            lanes,
            metrics,
            former_path=os.path.join(settings.run_dir, FORMER_KEEPER_SOCKET),
        )
        self._kept: set[str] = set()
        #: What the keeper of a former agent has for no container: no id of one has a slash.
        self.others: list[str] = []
        self.boot_id = _read_boot_id()
        self.guest = GuestRun(self._scopes, lanes)
        parts = Parts(store, processes, lanes, capture, self.keeper, self._scopes, self.boot_id)
        self.default: Runtime = ProcessRuntime(parts)
        self._by_name = {self.default.name: self.default}

    def of(self, record: Record) -> Runtime:
        """The runtime of a container.  AgentFailedError: this agent does not have it."""
        runtime = self._by_name.get(record.runtime)
        if runtime is None:
            raise AgentFailedError(
                f"container {record.id} needs the runtime {record.runtime!r}, which this agent does not have: "
                "run the agent that created it, or a later one"
            )
        return runtime

    async def open(self) -> None:
        """Before anything else."""
        await self._lanes.disk(self._scopes.open)
        keys = await self.keeper.start()
        self._kept = {key for key in keys if "/" not in key}
        self.others = [key for key in keys if "/" in key]

    async def sweep(self, records: Collection[Record], running: Collection[str]) -> None:
        """After the adoption: end and remove what belongs to no container, or to a run that is over."""
        for key in self._kept.difference(running):
            await self.keeper.drop(key)
        self._kept.clear()
        for name, runtime in self._by_name.items():
            await runtime.sweep([each.id for each in records if each.runtime == name and each.id not in running])
        await self._lanes.disk(self._scopes.sweep, {each.id for each in records}, set(running))

    async def close(self) -> None:
        await self.keeper.close()
        await self.guest.close()
        await self._lanes.removal.submit(None, self._scopes.close)


def _read_boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        return file.read().strip()

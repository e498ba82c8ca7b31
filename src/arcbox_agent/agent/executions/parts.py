"""What all executions work with."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

    from arcbox_agent.agent.containers.tasks import Tasks
    from arcbox_agent.agent.executions.spools import Spooler
    from arcbox_agent.agent.processes.children import Processes
    from arcbox_agent.agent.processes.keeper import Keeper
    from arcbox_agent.agent.processes.lanes import Lanes


class Parts:
    """`ended`: told the id of each execution that has ended.  `late_output`: the setting."""

    __slots__ = (
        "_run_dir",
        "boot_id",
        "ended",
        "keeper",
        "lanes",
        "late_output",
        "loop",
        "processes",
        "spooler",
        "state_dir",
        "tasks",
    )

    def __init__(
        self,
        loop: AbstractEventLoop,
        state_dir: str,
        run_dir: str,
        processes: Processes,
        keeper: Keeper,
        lanes: Lanes,
        spooler: Spooler,
        tasks: Tasks,
        boot_id: str,
        late_output: float,
        ended: Callable[[str], None],
    ) -> None:
        self.loop = loop
        self.state_dir = os.path.join(state_dir, "executions")
        self._run_dir = os.path.join(run_dir, "executions")
        self.processes = processes
        self.keeper = keeper
        self.lanes = lanes
        self.spooler = spooler
        self.tasks = tasks
        self.boot_id = boot_id
        self.late_output = late_output
        self.ended = ended

    def state(self, id: str, name: str = "") -> str:
        """A file of an execution in the state directory, or its directory there."""
        return os.path.join(self.state_dir, id, name) if name else os.path.join(self.state_dir, id)

    def run(self, id: str, name: str = "") -> str:
        """The same in the run directory."""
        return os.path.join(self._run_dir, id, name) if name else os.path.join(self._run_dir, id)

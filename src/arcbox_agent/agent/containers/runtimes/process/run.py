"""One run of a container as a process."""

from __future__ import annotations

import os

from arcbox_agent.agent.containers.runtimes.process import commands
from arcbox_agent.agent.processes.helpers import NOBODY, holders
from arcbox_agent.agent.processes.status import LOST, ExitStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.containers.output.capture import CaptureHandle
    from arcbox_agent.agent.containers.record import Record
    from arcbox_agent.agent.containers.runtimes.process.parts import Parts
    from arcbox_agent.agent.processes.children import Process
    from arcbox_agent.agent.processes.scopes import Scope
    from arcbox_agent.agent.processes.spec import SpawnSpec
    from arcbox_agent.wire import ExecRequest


class ProcessRun:
    """See the module.  `process` None: it ended while there was no agent, with `status` if that is known."""

    __slots__ = (
        "_handle",
        "_parts",
        "_process",
        "_record",
        "_status",
        "key",
        "output_cut",
        "pid",
        "scope",
        "start_time",
    )

    def __init__(
        self,
        parts: Parts,
        record: Record,
        pid: int,
        start_time: int,
        process: Process | None,
        scope: Scope,
        handle: CaptureHandle | None,
        status: ExitStatus | None = None,
        output_cut: bool = False,
    ) -> None:
        self._parts = parts
        self._record = record
        self.key: str | None = record.id
        self.pid = pid
        self.start_time = start_time
        self._process = process
        self.scope = scope
        self._handle = handle
        self._status = status
        self.output_cut = output_cut

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.pidfd < 0

    def command(self, request: ExecRequest, name: str, terminal: bool) -> tuple[SpawnSpec, Scope]:
        if self.ended:
            raise commands.not_running(self._record.id)
        return commands.prepare(self._record, self.pid, self.start_time, self.scope, request, name, terminal)

    def take_back(self, scope: Scope) -> bool:
        # The container's own end is what a spare scope would have to survive.
        return False

    async def wait(self) -> ExitStatus:
        if self._process is None:
            return self._status or ExitStatus(LOST, lost=True)
        return await self._process.wait()

    def send_signal(self, sig: int) -> bool:
        return self._process is not None and self._process.send_signal(sig)

    async def signal_all(self, sig: int) -> None:
        await self._parts.lanes.signals.submit(self.key, self.scope.send_signal, sig)

    async def kill_all(self) -> None:
        await self._parts.lanes.signals.submit(self.key, self.scope.kill)

    async def alive(self) -> bool:
        return await self._parts.lanes.signals.submit(self.key, self.scope.alive)

    async def output_holders(self) -> tuple[int, int]:
        return await self._parts.lanes.signals.submit(self.key, self._output_holders)

    def _output_holders(self) -> tuple[int, int]:
        run_path = self._parts.store.run_path(self._record.id)
        outputs: list[tuple[int, int]] = []
        inputs: list[tuple[int, int]] = []
        written = 0
        for name, ids in (("stdin", inputs), ("stdout", outputs), ("stderr", outputs)):
            try:
                fifo = os.stat(os.path.join(run_path, name))
            except OSError:
                continue  # a terminal's: whatever reads and writes for it ended with its session
            ids.append((fifo.st_dev, fifo.st_ino))
            if ids is outputs:
                written += fifo.st_mtime_ns
        return (holders(self.scope.pids(), outputs, inputs) if outputs else NOBODY), written

    async def finish_output(self, timeout: float) -> bool:
        return self._handle is None or await self._handle.finish(timeout)

    async def close(self) -> None:
        await self._parts.keeper.drop(self._record.id)
        await self._parts.clean_up(self._record.id, self.scope)

"""One execution: what it is, who is attached to it, and how it ends.

Its end comes after its last byte, once, and is never invented: an end that nobody saw has the cause `unknown`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time

from arcbox_agent.agent.config import budget
from arcbox_agent.agent.executions import record as records
from arcbox_agent.agent.executions.record import ENDED, RUNNING
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.processes.helpers import HELPERS, LATE_IN_ALL, file_id, holders
from arcbox_agent.agent.processes.status import LOST, ExitStatus
from arcbox_agent.errors import BadRequestError, ConflictError
from arcbox_agent.wire import Execution as Description
from arcbox_agent.wire import ExecutionOutput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Protocol

    from arcbox_agent.agent.executions.parts import Parts
    from arcbox_agent.agent.executions.record import Record
    from arcbox_agent.agent.executions.spools import Channels
    from arcbox_agent.agent.processes.children import Process
    from arcbox_agent.agent.processes.scopes import Scope

    class Taken(Protocol):
        """How far a reader has taken an output."""

        taken: int

    class Reader(Protocol):
        """An attached client: its outputs by name."""

        @property
        def outputs(self) -> Mapping[str, Taken]:
            """Those that it wants."""


log = Logger("executions")

#: After the process has ended: what may still come from others that hold its output open.
CHATTER_BYTES = 1 << 20
#: Seconds until a record that the disk did not take is written again.
WRITE_AGAIN = 1.0
#: How often, and how many seconds apart, the agent tries to kill what is left of an execution.
KILL_PAUSE = 0.1
KILL_ATTEMPTS = round(budget.COMMAND_KILLED / KILL_PAUSE)


class Execution:
    """`process` None: it has ended, or ended while there was no agent.  `share`: its container's id, for the lanes."""

    __slots__ = (
        "_closed",
        "_deadline",
        "_ending",
        "_input_reported",
        "_parts",
        "_sizes",
        "_wakes",
        "asked_to_die",
        "attached",
        "channels",
        "end",
        "ends",
        "gone",
        "hold_until",
        "input_owner",
        "process",
        "record",
        "scope",
        "share",
        "timed_out",
        "watchers",
    )

    def __init__(self, parts: Parts, record: Record, channels: Channels | None, scope: Scope | None) -> None:
        self._parts = parts
        self.record = record
        self.channels = channels
        self.scope = scope
        self.share: str | None = record.container_id or None
        self.process: Process | None = None
        #: Who is attached: each is called when something has changed.
        self.attached: dict[Reader, Callable[[], None]] = {}
        #: The same for who waits for something else.
        self.watchers: dict[object, Callable[[], None]] = {}
        #: The attached client that gives the input.
        self.input_owner: Reader | None = None
        #: It was removed.
        self.gone = False
        #: Resolved at its end.
        self.ends: asyncio.Future[None] = parts.loop.create_future()
        #: Until then the command waits for a reader that has gone (loop time).
        self.hold_until = 0.0
        #: For a keeper that replaces another one: pid and wait status.
        self.end: tuple[int, int] | None = None
        self.asked_to_die = False
        self.timed_out = False
        self._deadline: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None
        self._wakes: asyncio.Future[None] | None = None
        self._input_reported = False
        self._closed = False
        #: Of the outputs once they are closed: name, begin, end.
        self._sizes: list[tuple[str, int, int]] = []

    # ------------------------------------------------------------- what it is

    @property
    def id(self) -> str:
        return str(self.record.id)

    @property
    def running(self) -> bool:
        return self.record.state == RUNNING

    @property
    def key(self) -> str:
        """Of the keeper: no container's id has a slash."""
        return f"x/{self.record.id}"

    def outputs(self) -> list[tuple[str, int, int, bool]]:
        """The name, begin, end of each output, and whether it is over."""
        if self.channels is not None:
            return [(each.name, each.begin, each.end, each.over) for each in self.channels.outputs]
        return [(*sizes, True) for sizes in self._sizes]

    def set_sizes(self, sizes: list[tuple[str, int, int]]) -> None:
        """Of one that had ended when the agent started."""
        self._sizes = sizes

    def describe(self) -> Description:
        record = self.record
        stdin = self.channels.input if self.channels is not None else None
        return Description(
            id=record.id,
            state=record.state,
            container_id=record.container_id,
            cmd=record.cmd,
            tty=record.tty,
            open_stdin=record.open_stdin,
            pid=record.pid,
            created_ns=record.created_ns,
            started_ns=record.started_ns,
            ended_ns=record.ended_ns,
            cause=record.cause,
            exit_code=record.exit_code,
            signal=record.signal,
            output_cut=record.output_cut,
            cpu_ns=record.cpu_ns,
            peak_memory=record.peak_memory,
            outputs=[
                ExecutionOutput(stream=name, begin=begin, end=end, over=over)
                for name, begin, end, over in self.outputs()
            ],
            input_offset=stdin.accepted if stdin is not None else record.input_offset,
            input_closed=stdin.closed if stdin is not None else True,
            attached=len(self.attached),
            user=record.user,
        )

    # ------------------------------------------------------------ its life

    def begin(self, process: Process) -> None:
        """Its process runs."""
        self.process = process
        self.record.pid = process.pid
        self.record.started_ns = self.record.started_ns or time.time_ns()
        process.ended.add_done_callback(self._exited)
        if self.record.deadline_ns:
            left = (self.record.deadline_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) / 1e9
            self._deadline = self._parts.loop.call_later(max(0.0, left), self._time_out)

    def changed(self) -> None:
        """The thread has moved something."""
        channels = self.channels
        if channels is not None and channels.input is not None and channels.input.over and not self._input_reported:
            self._input_reported = True
            if self.running and not self.record.tty:
                # The keeper's copy of the writing end would keep the command from seeing the end.
                self._parts.tasks.spawn_detached(self._keep_again())
        if self._wakes is not None and not self._wakes.done():
            self._wakes.set_result(None)
        for wake in (*self.attached.values(), *self.watchers.values()):
            wake()

    async def _keep_again(self) -> None:
        try:
            await self._parts.keeper.keep(self.key, self.descriptors(), anew=True)
        except OSError as error:
            log.error("what an execution needs cannot be kept again", execution=self.id, error=error)

    def descriptors(self) -> list[int]:
        """See keeper.Held."""
        fds: list[int] = []
        channels = self.channels
        if channels is None:
            return fds
        try:
            for output in channels.outputs:
                if not output.over:
                    fds.append(os.dup(output.fd))
            stdin = channels.input
            if stdin is not None and not stdin.over and not stdin.terminal:
                fds += (os.dup(stdin.fd), os.dup(stdin.file))
            if self.process is not None and self.process.pidfd >= 0:
                fds.append(os.dup(self.process.pidfd))
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    def close(self) -> None:
        """See keeper.Held."""

    # ------------------------------------------------------------ its input

    def write(self, offset: int, octets: bytes, close: bool) -> None:
        """Take input in the order of its offsets; what was taken before is passed over.

        ConflictError: it is not the next, or is behind the end.  BadRequestError: there is no room for it.
        """
        stdin = self.channels.input if self.channels is not None else None
        if stdin is None or stdin.closed:
            return  # nobody reads it any more: who sent it is told so
        if offset > stdin.queued:
            raise ConflictError(f"input at {offset} leaves a gap: the next byte is {stdin.queued}")
        octets = octets[stdin.queued - offset :]
        if octets and stdin.target >= 0:
            raise ConflictError(f"the input has its end at {stdin.target}")
        if stdin.queued + len(octets) > stdin.until():
            raise BadRequestError(f"input up to {stdin.queued + len(octets)} is more than was granted, {stdin.until()}")
        if octets:
            stdin.put(octets)
        if close and stdin.target < 0:
            stdin.end_at(stdin.queued)
        if octets or close:
            self._parts.spooler.move(self.channels)  # type: ignore[arg-type]

    # --------------------------------------------------------------- its end

    def _time_out(self) -> None:
        self.timed_out = True
        log.info("an execution timed out", execution=self.id, pid=self.record.pid)
        self._parts.tasks.spawn_detached(self.kill_all())

    async def kill_all(self) -> None:
        """SIGKILL for all that it started."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
        if self.scope is None:
            return
        for attempt in range(KILL_ATTEMPTS):
            try:
                await self._parts.lanes.signals.submit(self.share, self.scope.kill)
                return
            except OSError as error:
                if attempt == KILL_ATTEMPTS - 1:
                    log.error("what an execution started cannot be killed", execution=self.id, error=error)
            await asyncio.sleep(KILL_PAUSE)

    def _exited(self, ended: asyncio.Future[ExitStatus]) -> None:
        if ended.cancelled():
            return  # the agent ends first
        status = ended.result()
        if not status.lost and self.process is not None:
            self.end = self.process.pid, status.wait_status
        self.finish(status)

    def finish(self, status: ExitStatus | None, cut: bool = False) -> None:
        """Its process has ended; None: nobody knows how.  `cut`: nobody held its last output."""
        if self._ending is None:
            self._ending = self._parts.tasks.spawn_detached(
                self._finish(status or ExitStatus(LOST, lost=True), time.time_ns(), cut)
            )

    async def _finish(self, status: ExitStatus, ended_ns: int, cut: bool) -> None:
        parts, record = self._parts, self.record
        if self._deadline is not None:
            self._deadline.cancel()
        record.output_cut = await self._drain() or cut
        await self._count_usage()
        record.ended_ns = ended_ns
        record.exit_code = -1 if status.signal or status.lost else status.code
        record.signal = status.signal
        record.cause = self._cause(status)
        channels = self.channels
        if channels is not None:
            self._sizes = [(each.name, each.begin, each.end) for each in channels.outputs]
            if channels.input is not None:
                record.input_offset = channels.input.accepted
            await parts.spooler.release(channels)
            self.channels = None
        record.state = ENDED
        await self.save()
        if not self.ends.done():
            self.ends.set_result(None)
        self.changed()
        parts.ended(self.id)
        await parts.keeper.drop(self.key)
        await self._clean()

    def _cause(self, status: ExitStatus) -> str:
        if status.lost:
            return "unknown"
        if self.timed_out:
            return "timeout"
        if not status.signal:
            return "exited"
        if self.record.cause == "oom":
            return "oom"
        return "killed" if self.asked_to_die and status.signal == signal.SIGKILL else "signalled"

    async def save(self) -> None:
        """Write the record; again and again where the disk does not take it."""
        told = False
        while not self._closed:
            try:
                await self._parts.lanes.disk(records.write, self._parts.state(self.id, "record"), self.record.encode())
                return
            except OSError as error:
                if not told:
                    told = True
                    log.error(
                        "the end of an execution cannot be written, and is tried again", execution=self.id, error=error
                    )
            await asyncio.sleep(WRITE_AGAIN)

    async def _clean(self) -> None:
        """What it leaves behind goes on, where it ended by itself; else it is ended."""
        scope = self.scope
        try:
            await self._parts.lanes.disk(records.remove, self._parts.run(self.id))
            if scope is not None:
                work = scope.remove if self.timed_out or self.asked_to_die else scope.dissolve
                await self._parts.lanes.removal.submit(self.share, work)
        except OSError as error:
            log.error("what an execution left cannot be removed", execution=self.id, error=error)

    async def _count_usage(self) -> None:
        if self.scope is None:
            return
        try:
            usage = await self._parts.lanes.looks.submit(self.share, self.scope.counted)
            peak, killed = await self._parts.lanes.looks.submit(self.share, _memory_of, self.record.cgroup)
        except Exception as error:  # no thread, or too much waits: it is told as not known
            log.debug("the usage of an execution is not known", execution=self.id, error=error)
            return
        self.record.cpu_ns = usage.get("cpu_ns", 0)
        self.record.peak_memory = peak
        if killed:
            self.record.cause = "oom"

    async def _drain(self) -> bool:
        """Until the last byte of its output is in the spool; True: others held it open, and it was cut."""
        channels = self.channels
        if channels is None:
            return False
        loop = self._parts.loop
        for output in channels.outputs:
            output.last = True
        owed = sum(output.end + output.owed() for output in channels.outputs)
        self._parts.spooler.move(channels)
        ended_at = last = loop.time()
        late = self._parts.late_output
        seen = sum(output.end for output in channels.outputs)
        helped_at = float("-inf")
        while not channels.over:
            await self._change(budget.COMMAND_QUIET)
            now = loop.time()
            end = sum(output.end for output in channels.outputs)
            if end != seen:
                seen, last = end, now
            if end < owed or any(output.blocked in ("full", "disk") for output in channels.outputs):
                continue  # what the process itself wrote is not all there
            chatter = now - ended_at > budget.COMMAND_CHATTER or end - owed > CHATTER_BYTES
            if now - last < budget.COMMAND_QUIET and not chatter:
                continue
            if now < min(max(last, helped_at) + late, ended_at + late * LATE_IN_ALL) and await self._is_helped():
                helped_at = now
                continue
            for output in channels.outputs:
                output.cut = True
            self._parts.spooler.move(channels)
            while not channels.over:
                await self._change(None)
            return not self.record.tty
        return False

    async def _is_helped(self) -> bool:
        """Whether a helper (processes/helpers.py) holds its output open."""
        channels, scope = self.channels, self.scope
        if channels is None or scope is None or self.record.tty:
            return False
        try:
            outputs = [file_id(output.fd) for output in channels.outputs if not output.over]
            return await self._parts.lanes.signals.submit(self.share, lambda: holders(scope.pids(), outputs) == HELPERS)
        except OSError:
            return False

    async def _change(self, timeout: float | None) -> None:
        """Until the thread has moved something, or so many seconds have passed."""
        self._wakes = wakes = self._parts.loop.create_future()
        timer = self._parts.loop.call_later(timeout, self.changed) if timeout is not None else None
        try:
            await wakes
        finally:
            self._wakes = None
            if timer is not None:
                timer.cancel()

    def leave(self) -> None:
        """The agent ends: the execution goes on without it."""
        self._closed = True
        if self._deadline is not None:
            self._deadline.cancel()


def _memory_of(cgroup: str) -> tuple[int, bool]:
    """The most memory that it had, in bytes (0: not known), and whether the kernel killed for want of it."""
    if not cgroup:
        return 0, False
    peak, killed = 0, False
    try:
        with open(os.path.join(cgroup, "memory.peak"), encoding="ascii") as file:
            peak = int(file.read())
    except (OSError, ValueError):
        pass  # its controller is off, or it is older than Linux 5.19
    try:
        with open(os.path.join(cgroup, "memory.events"), encoding="ascii") as file:
            killed = any(line.startswith("oom_kill ") and line.split()[1] != "0" for line in file)
    except (OSError, IndexError):
        pass
    return peak, killed

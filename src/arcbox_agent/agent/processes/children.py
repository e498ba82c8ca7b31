"""Processes: started here, waited for here, and nowhere else in the agent.

Every child has one owner, its Process, which takes its status exactly once, by its
pidfd.  So a status cannot be taken twice, nor confused with that of a later process
of the same pid.  As PID 1 the agent also inherits orphans (orphans.py).
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from contextvars import Context

from arcbox_agent._spawn import Attempt, SpawnError, exit_status, take_status
from arcbox_agent.agent.config import budget
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.observe.rate import OncePerMinute
from arcbox_agent.agent.processes.orphans import Orphans
from arcbox_agent.agent.processes.pipes import null
from arcbox_agent.agent.processes.ready import Ready
from arcbox_agent.agent.processes.spawning import HungError, kill_stopped, take_failure
from arcbox_agent.agent.processes.stat_line import (
    is_stopped,
    start_time_of,
    zombie_status,
)
from arcbox_agent.agent.processes.status import LOST, ExitStatus
from arcbox_agent.errors import BusyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Protocol

    from arcbox_agent.agent.processes.lanes import Lanes
    from arcbox_agent.agent.processes.spawning import Late
    from arcbox_agent.agent.processes.spec import SpawnSpec

    class Counter(Protocol):
        def add(self, name: str, n: int = 1, /) -> object: ...


log = Logger("processes")

#: Seconds between two looks at the spawns that are under way.
LOOK = 1.0

#: How often the kernel is asked for the exit status of an adopted process whose parent has yet to take it.
ADOPTED_STATUS_STEP = 0.01


class Process:
    """A process that was started or adopted here."""

    __slots__ = ("_ask", "_owner", "child", "ended", "pid", "pidfd", "start_time", "status")

    def __init__(
        self,
        owner: Processes,
        pid: int,
        pidfd: int,
        start_time: int,
        child: bool,
        ask: Callable[[int], Awaitable[int | None]] | None,
    ) -> None:
        self._owner = owner
        self._ask = ask
        #: Done with its status; cancelled where the agent disowns it before that.
        self.ended: asyncio.Future[ExitStatus] = owner.loop.create_future()
        self.pid = pid
        #: -1 once its status is taken.
        self.pidfd = pidfd
        #: In clock ticks (10 ms) since boot; 0: unknown.  pid and start time identify a process for
        #: good: the kernel reuses a pid only after all others, which takes longer than one tick.
        self.start_time = start_time
        #: False: it was adopted, and is the child of another process.
        self.child = child
        self.status: ExitStatus | None = None

    async def wait(self) -> ExitStatus:
        """Return its status when it has ended.  Any number of tasks may wait, and each may be cancelled."""
        if self.status is not None:
            return self.status
        return await asyncio.shield(self.ended)

    def send_signal(self, sig: int) -> bool:
        """False: it has ended already."""
        if self.pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(self.pidfd, sig)
        except ProcessLookupError:
            return False
        return True

    def _readable(self) -> None:
        """The pidfd became readable: the process has ended."""
        try:
            taken = take_status(self.pidfd)
        except ChildProcessError:
            self._owner._forget(self)
            if self._ask is not None:
                self._owner._begin_asking(self._ask_parent(self._ask))
            else:
                self._ask_kernel(self._owner.loop.time() + budget.ADOPTED_STATUS)
            return
        if taken is None:
            self._owner.ready.once(self.pidfd, self._readable)
            return
        self._owner._forget(self)
        self._finish(ExitStatus(*taken))

    async def _ask_parent(self, ask: Callable[[int], Awaitable[int | None]]) -> None:
        """Find the status of a process that is another's child, which can be asked."""
        status: ExitStatus | None = None
        try:
            status = zombie_status(self.pid, self.start_time)
        except OSError:
            pass  # no descriptor is left to look with
        # /proc shows 0 to whom it does not show the truth.
        if status is None or status.wait_status == 0:
            told = await ask(self.pid)
            if told is not None:
                status = ExitStatus.of_wait_status(told)
        if status is not None:
            self._finish(status)
        else:
            self._ask_kernel(self._owner.loop.time() + budget.ADOPTED_STATUS)

    def _ask_kernel(self, deadline: float) -> None:
        """Find the status of an adopted process that is another's child.

        The kernel gives it by the pidfd (Linux 6.15) once the parent has taken it.
        """
        status: ExitStatus | None = None
        known = True
        try:
            raw = exit_status(self.pidfd)
            if raw is not None:
                status = ExitStatus.of_wait_status(raw)
        except OSError:
            known = False
        if status is None:
            # While it is a zombie /proc has the status too, on any kernel.
            try:
                status = zombie_status(self.pid, self.start_time)
            except OSError:
                known = True  # no descriptor is left to look with: there may be one soon
        if status is None and known and self._owner.loop.time() < deadline:
            self._owner.loop.call_later(ADOPTED_STATUS_STEP, self._ask_kernel, deadline)
            return
        self._finish(status or ExitStatus(LOST, lost=True))

    def _finish(self, status: ExitStatus) -> None:
        os.close(self.pidfd)
        self.pidfd = -1
        self.status = status
        if not self.ended.done():
            self.ended.set_result(status)


class SpawnUnderWay:
    """A spawn that is under way: its thread may have made a child that has no owner yet."""

    __slots__ = ("attempt", "began", "future", "given_up", "key", "kill", "late", "limit", "outlives", "since", "told")

    def __init__(self, key: str | None, began: float, limit: float, outlives: bool, late: Late | None) -> None:
        self.attempt = Attempt()
        #: Kills the child where another process has it.
        self.kill: Callable[[], None] | None = None
        self.key = key
        self.began = began
        self.limit = limit
        self.outlives = outlives
        self.late = late
        self.since = time.time()
        self.given_up = False
        self.told = False
        self.future: asyncio.Future[tuple[int, int, int]] | None = None

    @property
    def step(self) -> str:
        """Where it stands, as far as that is known."""
        if self.kill is not None and not self.attempt.begun:
            return "mount or exec"  # in another process
        return self.attempt.step

    def end(self) -> None:
        """Kill the child, and make none any more."""
        self.attempt.cancel()
        if self.kill is not None:
            self.kill()


class Processes:
    """All processes of the agent."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lanes: Lanes, metrics: Counter | None = None) -> None:
        self.loop = loop
        self.ready = Ready(loop)
        self._lanes = lanes
        self._metrics = metrics
        self._owned: dict[int, Process] = {}
        #: The spawns under way, by their tickets.
        self._in_flight: dict[int, SpawnUnderWay] = {}
        self._tickets = 0
        self._hung_log = OncePerMinute()
        self._look_timer: asyncio.TimerHandle | None = None
        self.orphans = Orphans(loop, self._owned, self._in_flight, self._count)
        self._closed = False
        #: Other processes that spawn for this one, by pid.
        self.spawners: set[int] = set()
        self._asking: set[asyncio.Task[None]] = set()
        _fill_standard_descriptors()
        #: Lent to all children.
        self.null = null()

    def __len__(self) -> int:
        return len(self._owned)

    async def spawn(
        self, spec: SpawnSpec, key: str | None = None, limit: float = budget.SPAWNED, late: Late | None = None
    ) -> Process:
        """Start a process in a session of its own.  As spawn_by."""
        return await self.spawn_by(spec.run, spec.close, spec.pid_fd >= 0, key=key, limit=limit, late=late)

    async def spawn_by(
        self,
        run: Callable[[Attempt], tuple[int, int, int]],
        undo: Callable[[], None] | None = None,
        outlives: bool = False,
        *,
        ask: Callable[[int], Awaitable[int | None]] | None = None,
        key: str | None = None,
        limit: float = budget.SPAWNED,
        late: Late | None = None,
        kill: Callable[[], None] | None = None,
    ) -> Process:
        """Start a process for container `key`, or for the guest.  SpawnError: nothing of it is left.

        `run` prepares a SpawnSpec and runs it, so one thread switch does both.
        HungError: it had not started within `limit` seconds.  It is killed, and `late` is called when
        nothing of it runs any more.  BusyError: too much waits for that container.
        `undo`: called where `run` is not.  `outlives`: the process goes on where the agent ends meanwhile.
        `kill`: kills the child that another process has made for `run`, without blocking.
        `ask`: the wait status of a pid that has ended, from the parent that it has instead of this process.
        """
        if self._closed:
            if undo is not None:
                undo()
            raise SpawnError(errno.ESHUTDOWN, "clone")
        self._tickets += 1
        ticket = self._tickets
        spawning = self._in_flight[ticket] = SpawnUnderWay(key, self.loop.time(), limit, outlives, late)
        spawning.kill = kill
        if self._look_timer is None:
            self._look_timer = self.loop.call_later(LOOK, self._look, context=Context())

        def dropped() -> None:
            self._landed(ticket)
            if undo is not None:
                undo()
            if late is not None and spawning.given_up:
                late()

        try:
            future = spawning.future = self._lanes.spawn.submit(
                key, run, spawning.attempt, late=lambda made, error: self._abandoned(ticket, made), dropped=dropped
            )
        except (OSError, BusyError) as error:
            dropped()
            self._count("spawn_failures")
            if isinstance(error, BusyError):
                raise
            raise SpawnError(error.errno or errno.EAGAIN, "clone") from error
        # The look is for those that have the time; it comes too late for a client's own limit.
        timer = self.loop.call_later(limit, self._give_up, spawning) if limit < budget.SPAWNED else None
        try:
            # Cancelled, the thread goes on, and `_abandoned` owns the process that it starts.
            pid, pidfd, start_time = await future
        except (HungError, asyncio.CancelledError):
            self._count("spawn_failures")
            raise
        except BaseException:
            self._landed(ticket)
            self._count("spawn_failures")
            raise
        finally:
            if timer is not None:
                timer.cancel()
        process = self._own(pid, pidfd, start_time, ask=ask)
        self._landed(ticket)
        self._count("processes_spawned")
        return process

    def give_up(self, key: str) -> None:
        """Wait no longer for the spawns of that container: each fails with HungError."""
        for spawning in list(self._in_flight.values()):
            if spawning.key == key:
                self._give_up(spawning)

    def adopt(
        self, pid: int, start_time: int, ask: Callable[[int], Awaitable[int | None]] | None = None
    ) -> Process | None:
        """Own a process of a former agent; None: it is gone.  OSError: that cannot be found out.

        `ask`: as in spawn_by.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            # There is no such process, or a thread has the number now (EINVAL or ENOENT, depending on the kernel).
            if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
                return None
            raise
        try:
            # Read after the pidfd was opened: if it is the same process now, the pidfd refers to it.
            same = start_time_of(pid) == start_time
        except OSError:
            os.close(pidfd)
            raise
        if not same:
            os.close(pidfd)
            return None
        return self._own(pid, pidfd, start_time, child=False, ask=ask)

    def release(self, process: Process) -> None:
        """Disown a process, which goes on."""
        self._forget(process)
        os.close(process.pidfd)
        process.pidfd = -1
        process.ended.cancel()

    async def close(self) -> None:
        """Disown every process; they go on."""
        self._closed = True
        self.orphans.close()
        if self._look_timer is not None:
            self._look_timer.cancel()
        for process in list(self._owned.values()):
            self.release(process)
        for task in self._asking:
            task.cancel()
        self.ready.close()

    def _begin_asking(self, work: Coroutine[None, None, None]) -> None:
        task = self.loop.create_task(work, context=Context())
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    def _look(self) -> None:
        """Look at the spawns that take long, and give up those that take too long.

        From its change of user on, any process of that user may stop a child before it executes its
        program.  It is killed: the thread that spawns it waits until it executes or dies.
        """
        self._look_timer = None
        if not self._in_flight:
            return
        now = self.loop.time()
        for spawning in list(self._in_flight.values()):
            if now - spawning.began >= LOOK:
                try:
                    self._look_at(spawning, now)
                except OSError as error:  # most likely no descriptor is left: the next look may have one
                    log.debug("cannot look at a spawn", error=error)
        self._look_timer = self.loop.call_later(LOOK, self._look, context=Context())

    def _look_at(self, spawning: SpawnUnderWay, now: float) -> None:
        attempt = spawning.attempt
        if spawning.given_up:
            spawning.end()  # once more: it may have been between two children
            if not spawning.told:
                spawning.told = True
                since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(spawning.since))
                log.error(
                    "a spawn hangs and cannot be ended: it keeps a thread",
                    container=spawning.key or "",
                    step=spawning.step,
                    pid=attempt.pid,
                    since=since,
                )
        elif now - spawning.began >= spawning.limit:
            self._give_up(spawning)
        elif spawning.kill is not None:
            # One of these processes may have the child, of which no more is known.
            parents = [os.getpid(), *self.spawners]
            self._lanes.signals.submit(None, kill_stopped, parents).add_done_callback(take_failure)
        elif attempt.pid and is_stopped(attempt.pid):
            log.warning("a process was stopped before it ran its program: killed", pid=attempt.pid)
            attempt.kill()

    def _give_up(self, spawning: SpawnUnderWay) -> None:
        future = spawning.future
        if future is None or future.done():
            return
        seconds = self.loop.time() - spawning.began
        waits = self._lanes.spawn.waits(future)
        error = HungError(spawning.key, "" if waits else spawning.step, round(seconds, 1))
        spawning.given_up = True
        future.set_exception(error)
        spawning.end()
        self._count("spawns_given_up")
        self._hung_log.log(
            log.warning,
            "a spawn was given up",
            "also_given_up",
            spawning.key or "",
            container=spawning.key or "",
            reason=error,
        )

    def _own(
        self,
        pid: int,
        pidfd: int,
        start_time: int,
        child: bool = True,
        ask: Callable[[int], Awaitable[int | None]] | None = None,
    ) -> Process:
        process = Process(self, pid, pidfd, start_time, child, ask)
        self._owned[pid] = process
        self.ready.once(pidfd, process._readable)
        return process

    def _forget(self, process: Process) -> None:
        self.ready.forget(process.pidfd)
        if self._owned.get(process.pid) is process:
            del self._owned[process.pid]

    def _abandoned(self, ticket: int, made: tuple[int, int, int] | None) -> None:
        """A spawn is over for which nobody waits any more: it has made a process, or failed."""
        spawning = self._in_flight[ticket]
        process: Process | None = None
        if made is not None:
            pid, pidfd, start_time = made
            # One with a pid file is abandoned where the agent ends: the next agent adopts it.
            if spawning.given_up or not spawning.outlives:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if self._closed:
                os.close(pidfd)
            else:
                process = self._own(pid, pidfd, start_time)
        self._landed(ticket)
        if spawning.told:
            log.info("a spawn that hung is over", container=spawning.key or "")
        if spawning.given_up and spawning.late is not None:
            late = spawning.late
            if process is not None:
                process.ended.add_done_callback(lambda ended: None if ended.cancelled() else late())
            else:
                late()

    def _landed(self, ticket: int) -> None:
        self._in_flight.pop(ticket, None)
        if self.orphans.doubtful:
            self.orphans.settle(ticket)

    def _count(self, name: str, n: int = 1) -> None:
        if self._metrics is not None:
            self._metrics.add(name, n)


def _fill_standard_descriptors() -> None:
    """Open 0, 1 and 2 where they are closed, so that no descriptor for a child gets one of these numbers."""
    while True:
        fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        if fd > 2:
            os.close(fd)
            return

"""Processes: started here, waited for here, and nowhere else in the agent.

Every child has one owner, its Process, which takes its status exactly once, by its
pidfd.  So a status cannot be taken twice, nor confused with that of a later process
of the same pid.  As PID 1 the agent also inherits orphans: `reap_orphans` reaps the
children without an owner, and only those.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from contextvars import Context

from arcbox_agent._spawn import SpawnError, exit_status, take_status
from arcbox_agent.agent.config import budget
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.observe.rate import OncePerMinute
from arcbox_agent.agent.processes.ready import Ready
from arcbox_agent.agent.processes.spawning import HungError, SpawnUnderWay
from arcbox_agent.agent.processes.stat_line import (
    is_stopped,
    start_time_of,
    stopped_before_exec,
    zombie_status,
    zombies,
)
from arcbox_agent.agent.processes.status import LOST, ExitStatus
from arcbox_agent.errors import BusyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Protocol

    from arcbox_agent._spawn import Attempt
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

    __slots__ = ("_ask", "_on_exit", "_owner", "_waiters", "child", "pid", "pidfd", "start_time", "status")

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
        self._waiters: list[asyncio.Future[None]] = []
        self._on_exit: list[Callable[[ExitStatus], None]] = []
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
        """Return its status when it has ended.  Any number of tasks may wait, and each may be cancelled.

        CancelledError, too: it is not owned any more.
        """
        while self.status is None:
            if self.pidfd < 0:
                raise asyncio.CancelledError
            waiter: asyncio.Future[None] = self._owner.loop.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        return self.status

    def on_exit(self, callback: Callable[[ExitStatus], None]) -> None:
        """Call `callback` with the status when it has ended; never, where the agent ends first."""
        if self.status is not None:
            self._owner.loop.call_soon(callback, self.status)
        else:
            self._on_exit.append(callback)

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
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        callbacks, self._on_exit = self._on_exit, []
        for callback in callbacks:
            callback(status)


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
        #: Zombies that may be the child of a spawn under way: pid to the tickets of those spawns.
        self._doubtful: dict[int, set[int]] = {}
        self._watching = False
        self._closed = False
        #: Other processes that spawn for this one, by pid.
        self.spawners: set[int] = set()
        self._asking: set[asyncio.Task[None]] = set()
        _fill_standard_descriptors()

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
        """Start a process for container `key`, or for the guest, as `begin` and `finish` do.

        `kill`: kills the child that another process has made for `run`, without blocking.
        `ask`: the wait status of a pid that has ended, from the parent that it has instead of this process.
        """
        spawning = self.begin(run, undo, outlives, key=key, limit=limit, late=late, kill=kill)
        try:
            # Cancelled, the thread goes on, and `_abandoned` owns the process that it starts.
            await spawning.future
        except asyncio.CancelledError:
            future = spawning.future
            if not future.cancelled() and not spawning.given_up:
                # It was over already.
                self._abandoned(spawning.ticket, None if future.exception() else future.result())
            self._count("spawn_failures")
            raise
        except Exception:
            pass  # `finish` raises it
        return self.finish(spawning, ask)

    def begin(
        self,
        run: Callable[[Attempt], tuple[int, int, int]],
        undo: Callable[[], None] | None = None,
        outlives: bool = False,
        *,
        key: str | None = None,
        limit: float = budget.SPAWNED,
        late: Late | None = None,
        kill: Callable[[], None] | None = None,
    ) -> SpawnUnderWay:
        """Begin to start a process.  `finish` it when its future is done.

        `run` prepares a SpawnSpec and runs it, so one thread switch does both.
        SpawnError: nothing of it is left.  BusyError: too much waits for that container.
        `undo`: called where `run` is not.  `outlives`: the process goes on where the agent ends meanwhile.
        `late`: called where it was given up, when nothing of it runs any more.
        """
        if self._closed:
            if undo is not None:
                undo()
            raise SpawnError(errno.ESHUTDOWN, "clone")
        self._tickets += 1
        ticket = self._tickets
        spawning = self._in_flight[ticket] = SpawnUnderWay(ticket, key, self.loop.time(), limit, outlives, late)
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
            spawning.future = self._lanes.spawn.submit(
                key, run, spawning.attempt, late=lambda made, error: self._abandoned(ticket, made), dropped=dropped
            )
        except (OSError, BusyError) as error:
            dropped()
            self._count("spawn_failures")
            if isinstance(error, BusyError):
                raise
            raise SpawnError(error.errno or errno.EAGAIN, "clone") from error
        if limit < budget.SPAWNED:
            # The look is for those that have the time; it comes too late for a client's own limit.
            spawning.timer = self.loop.call_later(limit, self._give_up, spawning)
        return spawning

    def finish(self, spawning: SpawnUnderWay, ask: Callable[[int], Awaitable[int | None]] | None = None) -> Process:
        """The process that was started.  SpawnError: nothing of it is left.

        HungError: it had not started within its limit, and is killed.
        """
        if spawning.timer is not None:
            spawning.timer.cancel()
        try:
            pid, pidfd, start_time = spawning.future.result()
        except BaseException as error:
            # In these two cases it is not over yet: `_abandoned` ends it.
            if not isinstance(error, (HungError, asyncio.CancelledError)):
                self._landed(spawning.ticket)
            self._count("spawn_failures")
            raise
        process = self._own(pid, pidfd, start_time, ask=ask)
        self._landed(spawning.ticket)
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
        process._on_exit.clear()
        for waiter in process._waiters:
            waiter.cancel()

    def reap_orphans(self) -> int:
        """Reap the zombies without an owner; returns how many.  For PID 1, at each SIGCHLD."""
        reaped = 0
        for pid in zombies():
            if pid in self._owned:
                continue  # its pidfd is readable, and its owner takes its status
            if self._in_flight:
                own = {ticket for ticket, spawning in self._in_flight.items() if spawning.attempt.may_own(pid)}
                suspects = self._doubtful.setdefault(pid, own)
                suspects &= own
                if suspects:
                    continue
            self._doubtful.pop(pid, None)
            try:
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None:
                    reaped += 1
            except ChildProcessError:
                continue
        if reaped:
            self._count("orphans_reaped", reaped)
        return reaped

    def watch_orphans(self) -> None:
        """Reap orphans from now on.  For PID 1, in the main thread."""
        # Not add_signal_handler: uvloop reserves SIGCHLD for its own subprocesses.  The handler may run
        # between any two instructions, so it only schedules a call.
        self._watching = True
        signal.signal(signal.SIGCHLD, self._child_ended)
        self.loop.call_soon(self.reap_orphans)

    def _child_ended(self, *_: object) -> None:
        # After a failure the loop is closed while the handler is still installed.  An exception here
        # would be raised in whatever PID 1 does then, and end it.
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.reap_orphans)

    async def close(self) -> None:
        """Disown every process; they go on."""
        self._closed = True
        if self._watching:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
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
            self._lanes.signals.submit(None, _kill_stopped, parents).add_done_callback(_take_failure)
        elif attempt.pid and is_stopped(attempt.pid):
            log.warning("a process was stopped before it ran its program: killed", pid=attempt.pid)
            attempt.kill()

    def _give_up(self, spawning: SpawnUnderWay) -> None:
        future = spawning.future
        if future.done():
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
                process.on_exit(lambda _: late())
            else:
                late()

    def _landed(self, ticket: int) -> None:
        self._in_flight.pop(ticket, None)
        if self._doubtful:
            for suspects in self._doubtful.values():
                suspects.discard(ticket)
            for pid in [pid for pid, suspects in self._doubtful.items() if pid in self._owned]:
                del self._doubtful[pid]
            if not all(self._doubtful.values()):
                self.reap_orphans()

    def _count(self, name: str, n: int = 1) -> None:
        if self._metrics is not None:
            self._metrics.add(name, n)


def _kill_stopped(parents: list[int]) -> None:
    """Kill the children of these processes that were stopped before they executed their program.  For a thread."""
    for pid in [pid for parent in parents for pid in stopped_before_exec(parent)]:
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
        log.warning("a process was stopped before it ran its program: killed", pid=pid)


def _take_failure(look: asyncio.Future[None]) -> None:
    error = None if look.cancelled() else look.exception()
    if error is not None:  # most likely no descriptor is left: the next look may have one
        log.debug("cannot look for stopped processes", error=error)


def _fill_standard_descriptors() -> None:
    """Open 0, 1 and 2 where they are closed, so that no descriptor for a child gets one of these numbers."""
    while True:
        fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        if fd > 2:
            os.close(fd)
            return

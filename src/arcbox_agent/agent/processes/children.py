"""Processes: started here, waited for here, and nowhere else in the agent.

Every child has one owner, its Process, which takes its status exactly once, by
its pidfd; so no status is ever taken by somebody else, taken twice, or mixed up
with that of a later process of the same number.  As PID 1 the agent also
inherits orphans: `reap_orphans` takes those, and those only.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
from contextvars import Context

from arcbox_agent._spawn import SpawnError, exit_status, spawn, take_status
from arcbox_agent.agent.config import budget
from arcbox_agent.agent.observe.log import Logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Protocol

    from arcbox_agent.agent.processes.lanes import Lanes

    class Counter(Protocol):
        def add(self, name: str, n: int = 1, /) -> object: ...


__all__ = ["ExitStatus", "Process", "Processes", "SpawnError", "SpawnSpec", "start_time_of"]

log = Logger("processes")

#: How long a spawn may take before it is looked whether its child was stopped, and how often from then on.
STOPPED_LOOK = 1.0

#: How often the kernel is asked for the exit status of an adopted process whose parent has yet to take it.
ADOPTED_STATUS_STEP = 0.01

# As the agent itself was started.  It raises its own limit on descriptors; its children get what
# it got, because programs that use select(), or close every descriptor there may be, rely on a low one.
_NOFILE = resource.getrlimit(resource.RLIMIT_NOFILE)
_CORE = resource.getrlimit(resource.RLIMIT_CORE)


class ExitStatus:
    """How a process ended: by `signal` where that is not 0, else with `code`.

    `lost`: it ended, and nobody can say any more how.
    """

    __slots__ = ("code", "lost", "signal")

    def __init__(self, code: int, signal: int = 0, lost: bool = False) -> None:
        self.code = code
        self.signal = signal
        self.lost = lost

    @classmethod
    def of_wait_status(cls, status: int) -> ExitStatus:
        """From the number that wait(2) gives."""
        if os.WIFSIGNALED(status):
            return cls(0, os.WTERMSIG(status))
        return cls(os.WEXITSTATUS(status))

    @property
    def shell_code(self) -> int:
        """One number for both, as a shell gives it."""
        return 128 + self.signal if self.signal else self.code

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExitStatus):
            return NotImplemented
        return (self.code, self.signal, self.lost) == (other.code, other.signal, other.lost)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ExitStatus(code={self.code}, signal={self.signal}, lost={self.lost})"


#: The code of a process whose end nobody saw.
LOST = 255


class SpawnSpec:
    """What to start.  `Processes.spawn` closes every descriptor named here, whatever comes of it."""

    __slots__ = (
        "argv",
        "cgroup_fd",
        "cwd",
        "env",
        "ids",
        "join_fd",
        "keep_fd",
        "mounts",
        "new_namespace",
        "own_limits",
        "pid_fd",
        "programs",
        "root",
        "stdio",
        "terminal",
    )

    def __init__(
        self,
        argv: Sequence[str | bytes],
        *,
        stdio: tuple[int, int, int],
        env: Iterable[str | bytes] = (),
        programs: Sequence[str | bytes] | None = None,
        cwd: str | None = None,
        root: str | None = None,
        mounts: Sequence[tuple[str, str, str, str, bool, bool]] = (),
        new_namespace: bool = False,
        join_fd: int = -1,
        ids: tuple[int, int, Sequence[int]] | None = None,
        terminal: bool = False,
        keep_fd: int = -1,
        pid_fd: int = -1,
        cgroup_fd: int = -1,
        own_limits: bool = False,
    ) -> None:
        self.argv = argv
        self.env = env
        #: Tried in order; without them argv[0], as it stands.
        self.programs = programs if programs is not None else argv[:1]
        self.stdio = stdio
        self.cwd = cwd
        self.root = root
        self.mounts = mounts
        self.new_namespace = new_namespace
        self.join_fd = join_fd
        self.ids = ids
        self.terminal = terminal
        self.keep_fd = keep_fd
        self.pid_fd = pid_fd
        self.cgroup_fd = cgroup_fd
        #: It keeps the agent's own limits: for a part of the agent.
        self.own_limits = own_limits

    def descriptors(self) -> set[int]:
        fds = {*self.stdio, self.keep_fd, self.pid_fd, self.cgroup_fd, self.join_fd}
        fds.discard(-1)
        return fds

    def run(self) -> tuple[int, int, int]:
        """Spawns; (pid, pidfd, start time).  It blocks: for a thread."""
        # One that is found by its cgroup, and by nobody after a restart, needs no start time.
        dated = self.pid_fd >= 0 or self.cgroup_fd < 0
        start_time = 0
        try:
            pid, pidfd = spawn(
                programs=self.programs,
                argv=self.argv,
                env=self.env,
                stdio=self.stdio,
                keep_fd=self.keep_fd,
                pid_fd=self.pid_fd,
                cgroup_fd=self.cgroup_fd,
                join_fd=self.join_fd,
                new_namespace=self.new_namespace,
                terminal=self.terminal,
                reset_oom=_has_oom_score_adj(),
                root=self.root,
                cwd=self.cwd,
                mounts=self.mounts,
                ids=self.ids,
                rlimits=() if self.own_limits else _rlimits(),
            )
            if self.pid_fd >= 0:
                # The child has written it there itself, so nothing has to be opened for it.
                fields = fields_of(os.pread(self.pid_fd, 4096, 0))
                start_time = int(fields[19]) if len(fields) > 19 else 0
        finally:
            self.close()
        if start_time or not dated:
            return pid, pidfd, start_time
        try:
            # The zombie stays until the loop takes its status, so the number is still its own.
            return pid, pidfd, start_time_of(pid) or 0
        except OSError as error:
            # No descriptor is left to read it with.  What could not be told from a later
            # process of the same number must not run, and nobody else would wait for it.
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)
            raise SpawnError(error.errno or errno.EIO, "clone") from error

    def close(self) -> None:
        for fd in self.descriptors():
            os.close(fd)
        self.stdio = (-1, -1, -1)
        self.keep_fd = self.pid_fd = self.cgroup_fd = self.join_fd = -1


def _rlimits() -> list[tuple[int, int, int]]:
    """The limits to put back in a child because the agent changed its own."""
    wanted = ((resource.RLIMIT_NOFILE, _NOFILE), (resource.RLIMIT_CORE, _CORE))
    return [(which, *limit) for which, limit in wanted if resource.getrlimit(which) != limit]


_reset_oom: bool | None = None


def _has_oom_score_adj() -> bool:
    """Whether the agent is protected from the OOM killer, as its children must not be.

    Asked once, at the first spawn: it is set when the agent starts, if at all.
    """
    global _reset_oom
    if _reset_oom is None:
        try:
            with open("/proc/self/oom_score_adj", "rb") as file:
                _reset_oom = int(file.read()) != 0
        except OSError:
            _reset_oom = False
    return _reset_oom


class Process:
    """A process that was started or adopted here."""

    __slots__ = ("_ended", "_owner", "child", "pid", "pidfd", "start_time", "status")

    def __init__(self, owner: Processes, pid: int, pidfd: int, start_time: int, child: bool) -> None:
        self._owner = owner
        self._ended: asyncio.Future[ExitStatus] = owner.loop.create_future()
        self.pid = pid
        #: -1 once its status is taken.
        self.pidfd = pidfd
        #: In clock ticks (10 ms) since boot.  With the pid it names the process for good: a number
        #: comes round only after all the others, and no machine goes through them in one tick.
        #: 0: not asked for.
        self.start_time = start_time
        #: False for an adopted one whose parent is somebody else.
        self.child = child
        self.status: ExitStatus | None = None

    async def wait(self) -> ExitStatus:
        """Until it has ended.  Any number may wait; one that is cancelled disturbs no other."""
        return await asyncio.shield(self._ended)

    def on_exit(self, callback: Callable[[ExitStatus], None]) -> None:
        """Not called where the agent ends before the process does."""

        def tell(future: asyncio.Future[ExitStatus]) -> None:
            if not future.cancelled():
                callback(future.result())

        self._ended.add_done_callback(tell)

    def send_signal(self, sig: int) -> bool:
        """False where it has ended already."""
        if self.pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(self.pidfd, sig)
        except ProcessLookupError:
            return False
        return True

    def _readable(self) -> None:
        """The pidfd says that it has ended."""
        try:
            taken = take_status(self.pidfd)
        except ChildProcessError:
            self._owner._forget(self)
            self._ask_kernel(self._owner.loop.time() + budget.ADOPTED_STATUS)
            return
        if taken is not None:
            self._owner._forget(self)
            self._finish(ExitStatus(*taken))

    def _ask_kernel(self, deadline: float) -> None:
        """The status of a process that is somebody else's child: told once its parent has taken it."""
        status: ExitStatus | None = None
        known = True
        try:
            raw = exit_status(self.pidfd)
            if raw is not None:
                status = ExitStatus.of_wait_status(raw)
        except OSError:
            known = False
        if status is None:
            # While it is a zombie /proc tells too, on any kernel.
            status = _zombie_status(self.pid, self.start_time)
        if status is None and known and self._owner.loop.time() < deadline:
            self._owner.loop.call_later(ADOPTED_STATUS_STEP, self._ask_kernel, deadline)
            return
        self._finish(status or ExitStatus(LOST, lost=True))

    def _finish(self, status: ExitStatus) -> None:
        os.close(self.pidfd)
        self.pidfd = -1
        self.status = status
        if not self._ended.done():
            self._ended.set_result(status)


class Processes:
    """All processes of the agent."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lanes: Lanes, metrics: Counter | None = None) -> None:
        self.loop = loop
        self._lanes = lanes
        self._metrics = metrics
        self._owned: dict[int, Process] = {}
        #: Spawns that run at present, each by a number of its own: a child of theirs is not known yet.
        self._in_flight: set[int] = set()
        self._tickets = 0
        #: The last ticket at the last look for stopped ones; the next look comes with the timer.
        self._looked_at = 0
        self._look_timer: asyncio.TimerHandle | None = None
        #: Zombies that may be such a child: pid to the spawns that were running when it was seen.
        self._doubtful: dict[int, set[int]] = {}
        self._watching = False
        self._closed = False
        _fill_standard_descriptors()

    def __len__(self) -> int:
        return len(self._owned)

    async def spawn(self, spec: SpawnSpec) -> Process:
        """Starts a process in its own session.  Raises SpawnError, and nothing is left then."""
        return await self._spawn(spec.run, spec.close, spec.pid_fd >= 0)

    async def prepare_and_spawn(self, prepare: Callable[[], SpawnSpec]) -> Process:
        """The same, with what `prepare` makes in the thread that spawns: one change of threads, not two."""
        return await self._spawn(lambda: prepare().run(), None, False)

    async def _spawn(
        self, run: Callable[[], tuple[int, int, int]], undo: Callable[[], None] | None, outlives: bool
    ) -> Process:
        if self._closed:
            if undo is not None:
                undo()
            raise SpawnError(errno.ESHUTDOWN, "clone")
        self._tickets += 1
        ticket = self._tickets
        self._in_flight.add(ticket)
        if self._look_timer is None:
            self._looked_at = self._tickets
            self._look_timer = self.loop.call_later(STOPPED_LOOK, self._look_for_stopped, context=Context())
        try:
            future = self._lanes.spawn(run)
        except OSError as error:
            self._landed(ticket)
            self._count("spawn_failures")
            if undo is not None:
                undo()
            raise SpawnError(error.errno or errno.EAGAIN, "clone") from error
        try:
            pid, pidfd, start_time = await asyncio.shield(future)
        except asyncio.CancelledError:
            # The thread goes on.  What it starts still needs its owner, who ends it.
            future.add_done_callback(lambda done: self._abandoned(ticket, done, outlives))
            raise
        except BaseException:
            self._landed(ticket)
            self._count("spawn_failures")
            raise
        process = self._own(pid, pidfd, start_time)
        self._landed(ticket)
        self._count("processes_spawned")
        return process

    def adopt(self, pid: int, start_time: int) -> Process | None:
        """The process of a former agent; None where it is gone.  OSError: that cannot be told."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            # No such process, or a thread has the number now (two errors, by the kernel's age).
            if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
                return None
            raise
        try:
            # Looked at after the pidfd was opened: from here on the number cannot become another's.
            same = start_time_of(pid) == start_time
        except OSError:
            os.close(pidfd)
            raise
        if not same:
            os.close(pidfd)
            return None
        return self._own(pid, pidfd, start_time, child=False)

    def release(self, process: Process) -> None:
        """Lets go of a process, which goes on."""
        self._forget(process)
        os.close(process.pidfd)
        process.pidfd = -1
        process._ended.cancel()

    def reap_orphans(self) -> int:
        """Takes the zombies that nobody here owns; how many.  For PID 1, at each SIGCHLD."""
        reaped = 0
        for pid in _zombies():
            if pid in self._owned:
                continue  # its pidfd is readable: its owner comes for it
            if self._in_flight:
                suspects = self._doubtful.setdefault(pid, set(self._in_flight))
                suspects &= self._in_flight
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
        """Reaps orphans from now on.  For PID 1, in the main thread."""
        # Not add_signal_handler: uvloop keeps SIGCHLD for a subprocess machinery that is not
        # used here.  The handler may run between any two instructions, so it only asks for a turn.
        self._watching = True
        signal.signal(signal.SIGCHLD, self._child_ended)
        self.loop.call_soon(self.reap_orphans)

    def _child_ended(self, *_: object) -> None:
        # A loop that failed is closed while the handler is still there: raising here, in the
        # middle of whatever PID 1 does then, would end it.
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.reap_orphans)

    async def close(self) -> None:
        """Stops watching.  What runs goes on."""
        self._closed = True
        if self._watching:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if self._look_timer is not None:
            self._look_timer.cancel()
        for process in list(self._owned.values()):
            self.release(process)

    def _look_for_stopped(self) -> None:
        """Kills a child that was stopped before it came to its program.

        From its change of user on, whatever runs as that user may stop it; and the thread that
        spawns, of which there are few, waits until it has its program or is dead.
        """
        self._look_timer = None
        if not self._in_flight:
            return
        if min(self._in_flight) <= self._looked_at:
            try:
                for pid in _stopped_in_our_memory():
                    pidfd = os.pidfd_open(pid)
                    try:
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    finally:
                        os.close(pidfd)
                    log.warning("a process was stopped before it ran its program: killed", pid=pid)
            except OSError as error:  # no descriptor left, most likely: there will be one again
                log.debug("cannot look for stopped processes", error=error)
        self._looked_at = self._tickets
        self._look_timer = self.loop.call_later(STOPPED_LOOK, self._look_for_stopped, context=Context())

    def _own(self, pid: int, pidfd: int, start_time: int, child: bool = True) -> Process:
        process = Process(self, pid, pidfd, start_time, child)
        self._owned[pid] = process
        self.loop.add_reader(pidfd, process._readable)
        return process

    def _forget(self, process: Process) -> None:
        self.loop.remove_reader(process.pidfd)
        if self._owned.get(process.pid) is process:
            del self._owned[process.pid]

    def _abandoned(self, ticket: int, done: asyncio.Future[tuple[int, int, int]], outlives: bool) -> None:
        if not done.cancelled() and done.exception() is None:
            pid, pidfd, start_time = done.result()
            # One with a pid file is given up only where the agent ends: the next one finds it.
            if not outlives:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if self._closed:
                os.close(pidfd)
            else:
                self._own(pid, pidfd, start_time)
        self._landed(ticket)

    def _landed(self, ticket: int) -> None:
        self._in_flight.discard(ticket)
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


def start_time_of(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None where there is none."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields else None


def stat_fields(pid: int | str) -> list[bytes] | None:
    """As fields_of; None where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            line = file.read(4096)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields_of(line)


def fields_of(line: bytes) -> list[bytes]:
    """What is behind the name in a line of /proc/PID/stat, the state (field 3) first."""
    # The name may hold spaces and brackets; what follows it cannot.
    return line[line.rfind(b")") + 2 :].split()


def _zombie_status(pid: int, start_time: int) -> ExitStatus | None:
    fields = stat_fields(pid)
    if not fields or fields[0] != b"Z" or int(fields[19]) != start_time or len(fields) < 50:
        return None
    return ExitStatus.of_wait_status(int(fields[49]))


def _zombies() -> list[int]:
    """Children of this process that have ended and whose status nobody has taken."""
    try:
        first = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return []
    if first is None:
        return []
    # WNOWAIT always shows the same one, which may not be ours to take: look for all.
    found = []
    me = str(os.getpid()).encode()
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = stat_fields(name)
            if fields and fields[0] == b"Z" and fields[1] == me:
                found.append(int(name))
    return found


#: Where code and stack of a process are, in what is behind its name in /proc/PID/stat.
_MEMORY = slice(23, 26)


def _stopped_in_our_memory() -> list[int]:
    """Children that are stopped, and have no program of their own yet: they are where the agent is."""
    mine = stat_fields("self")
    me = str(os.getpid()).encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = stat_fields(name)
            if fields and mine and fields[0] == b"T" and fields[1] == me and fields[_MEMORY] == mine[_MEMORY]:
                found.append(int(name))
    return found


def _fill_standard_descriptors() -> None:
    """Makes sure that 0, 1 and 2 are open, so that nothing a child is given lies there."""
    while True:
        fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        if fd > 2:
            os.close(fd)
            return

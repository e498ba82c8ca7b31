"""The runtime that needs nothing but the kernel: a container is a process and what it starts.

In a session of its own, in a cgroup of its own where there is cgroup2, in its
`rootfs` by chroot where it has one, in a mount namespace of its own where it has
mounts.  Its output goes through FIFOs that it holds open itself, so that it outlives
the agent unharmed; the keeper holds what the kernel would forget meanwhile.

    RUN_DIR/containers/ID/pid              the child's own stat line, or why it failed
    RUN_DIR/containers/ID/stdout, stderr   FIFOs (without a tty)
    RUN_DIR/containers/ID/stdin            FIFO (open_stdin)
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
import termios
import time

from arcbox_agent._spawn import STEPS, exit_status
from arcbox_agent.agent.config import budget
from arcbox_agent.agent.containers.record import STARTING
from arcbox_agent.agent.containers.runtimes.process import mounts
from arcbox_agent.agent.containers.runtimes.protocol import NotStarted, Place, StartError, reason, system_reason
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.processes import cgroups, environment, users
from arcbox_agent.agent.processes.children import LOST, ExitStatus, SpawnError, SpawnSpec, fields_of, start_time_of
from arcbox_agent.agent.processes.descendants import Session
from arcbox_agent.agent.processes.keeper import SHORT_OF, Keeper
from arcbox_agent.errors import BadRequestError, ConflictError, RequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from arcbox_agent.agent.containers.output.capture import Capture, CaptureHandle
    from arcbox_agent.agent.containers.record import Record
    from arcbox_agent.agent.containers.runtimes.protocol import Running, Scope
    from arcbox_agent.agent.containers.store import Store
    from arcbox_agent.agent.processes.cgroups import Cgroup
    from arcbox_agent.agent.processes.children import Process, Processes
    from arcbox_agent.agent.processes.lanes import Lanes
    from arcbox_agent.wire import Mount

log = Logger("containers")

#: The agent's cgroup for its commands; an id cannot begin with a dot.
COMMANDS = ".commands"

_DEFAULT_STATE_DIR = "/var/lib/arcbox-agent"


class ProcessRun:
    """One run of a container as a process.  `process` None: it was over when the agent came back."""

    __slots__ = ("_handle", "_runtime", "_status", "id", "pid", "process", "scope", "start_time")

    def __init__(
        self,
        runtime: ProcessRuntime,
        id: str,
        pid: int,
        start_time: int,
        process: Process | None,
        scope: Scope,
        handle: CaptureHandle | None,
        status: ExitStatus | None = None,
    ) -> None:
        self._runtime = runtime
        self.id = id
        self.pid = pid
        self.start_time = start_time
        self.process = process
        self.scope = scope
        self._handle = handle
        self._status = status

    async def wait(self) -> ExitStatus:
        if self.process is None:
            return self._status or ExitStatus(LOST, lost=True)
        return await self.process.wait()

    def send_signal(self, sig: int) -> bool:
        return self.process is not None and self.process.send_signal(sig)

    async def signal_all(self, sig: int) -> None:
        await self._runtime.lanes.signals(self.scope.send_signal, sig)

    async def kill_all(self) -> None:
        await self._runtime.lanes.signals(self.scope.kill)

    async def alive(self) -> bool:
        return await self._runtime.lanes.signals(self.scope.alive)

    async def finish_output(self, timeout: float) -> bool:
        return self._handle is None or await self._handle.finish(timeout)

    async def close(self) -> None:
        await self._runtime.keeper.drop(self.id)
        await self._runtime.lanes.disk(self._runtime.clean, self.id, self.scope)


class ProcessRuntime:
    """See the module."""

    name = "process"

    def __init__(
        self, store: Store, processes: Processes, lanes: Lanes, capture: Capture, state_dir: str, run_dir: str
    ) -> None:
        self._store = store
        self._processes = processes
        self.lanes = lanes
        self._capture = capture
        self.keeper = Keeper(os.path.join(run_dir, "keeper.sock"), processes, lanes)
        self._cgroup_name = _cgroup_name(state_dir)
        self._parent: str | None = None
        self._kept: set[str] = set()
        self.boot_id = _read_boot_id()

    async def open(self) -> None:
        self._parent = await self.lanes.disk(cgroups.find_parent, self._cgroup_name)
        if self._parent is None:
            log.warning("no cgroup2 that can be written: processes are followed by session and parent")
        self._kept = set(await self.keeper.start())

    async def sweep(self, known: Iterable[str], running: Iterable[str]) -> None:
        keep, alive = set(known), set(running)
        for key in self._kept - alive:
            await self.keeper.drop(key)
        self._kept.clear()
        await self.lanes.disk(self._sweep_run_dirs, keep - alive)
        await self.lanes.disk(self._sweep_cgroups, keep)

    async def close(self) -> None:
        await self.keeper.close()
        if self._parent is not None:
            await self.lanes.signals(_remove_if_empty, (os.path.join(self._parent, COMMANDS), self._parent))

    def command_scope(self) -> Cgroup | None:
        """Where commands in the guest itself get their cgroups."""
        return cgroups.Cgroup(os.path.join(self._parent, COMMANDS)) if self._parent is not None else None

    # -------------------------------------------------------------- create

    def check(self, record: Record, mounts_asked: Sequence[Mount]) -> None:
        if record.image and not record.rootfs:
            record.warnings.append(
                f"image {record.image} is not unpacked: this runtime cannot unpack images; "
                "the container runs in the guest's own file system"
            )
        elif record.image:
            record.warnings.append(
                f"image {record.image} is not unpacked: the container runs in its rootfs {record.rootfs}"
            )
        if record.rootfs:
            if not record.rootfs.startswith("/") or "\0" in record.rootfs:
                raise BadRequestError(f"the rootfs must be an absolute path, not {record.rootfs!r}")
            if not os.path.isdir(record.rootfs):
                raise BadRequestError(f"the rootfs {record.rootfs} is no directory of the guest")
        users.look_up(record.rootfs or "/", record.user)
        entries, warnings = mounts.check(mounts_asked, record.rootfs)
        record.mounts = [list(entry) for entry in entries]
        record.warnings.extend(warnings)

    # --------------------------------------------------------------- start

    async def start(self, record: Record) -> Running:
        preparation = _Preparation()
        try:
            spec = await self.lanes.disk(self._prepare, record, preparation)
        except Exception as error:
            preparation.close()
            await self.lanes.disk(self.clean, record.id, preparation.cgroup)
            if isinstance(error, RequestError):
                raise StartError(str(error)) from error
            if isinstance(error, OSError):
                raise StartError(system_reason(error)) from error
            raise
        scope: Scope | None = preparation.cgroup
        handle: CaptureHandle | None = None
        spawning = False
        try:
            handle = self._attach(record.id, preparation.fifos, preparation.master)
            await handle.ready()
            # Before there is anybody who could write and end while no agent is there.
            await self.keeper.keep(record.id, preparation.hand_over(), anew=True)
            spawning = True  # from here on the descriptors of `spec` are not ours
            process = await self._processes.spawn(spec)
        except asyncio.CancelledError:
            # The agent ends.  Nothing is undone: a spawn may be under way, and what comes of it is
            # told by the pid file.
            raise
        except BaseException as error:
            if not spawning:
                spec.close()
            preparation.close()
            if handle is not None:
                await handle.finish(0)
            await self.keeper.drop(record.id)
            await self.lanes.disk(self.clean, record.id, scope)
            if isinstance(error, SpawnError):
                targets = [entry[2] for entry in record.mounts]
                raise StartError(reason(error, record.command[0], record.working_dir, targets)) from error
            if isinstance(error, OSError):
                raise StartError(system_reason(error)) from error
            raise
        preparation.close()
        if process.pidfd >= 0:  # else it has ended already
            try:
                await self.keeper.keep(record.id, [os.dup(process.pidfd)])
            except OSError as error:
                # The container is worth more than what is done for the case of the agent's death.
                log.error("the pidfd of a container cannot be kept", container=record.id, error=error)
        return ProcessRun(
            self,
            record.id,
            process.pid,
            process.start_time,
            process,
            scope or Session(process.pid, process.start_time),
            handle,
        )

    def _prepare(self, record: Record, preparation: _Preparation) -> SpawnSpec:
        """Everything a start needs of files.  In a thread; `preparation` holds what was opened, whatever fails."""
        path = self._store.run_path(record.id)
        os.makedirs(path, mode=0o700, exist_ok=True)
        user = users.look_up(record.rootfs or "/", record.user)
        env = environment.environment(record.env, user.home)
        steps = mounts.steps(
            [(kind, source, target, readonly) for kind, source, target, readonly in record.mounts],
            self._store.volumes_dir,
            record.rootfs,
        )
        pid_fd = preparation.own(
            os.open(os.path.join(path, "pid"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        )
        # Held by this process and, until it executes, by the child: a new agent waits for
        # the lock, and then finds in the file what became of the spawn.
        fcntl.flock(pid_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(pid_fd, 0)
        stdio = self._stdio(record, path, user.uid, preparation)
        cgroup_fd = -1
        if self._parent is not None:
            preparation.cgroup = cgroups.Cgroup(os.path.join(self._parent, record.id))
            if os.path.isdir(preparation.cgroup.path):
                # Left by an agent that was killed.  Whatever is born (CLONE_INTO_CGROUP) in a cgroup
                # that was ever written to by cgroup.kill is killed at birth, as of Linux 6.18.
                _end(preparation.cgroup)
            preparation.cgroup.create()
            cgroup_fd = preparation.own(preparation.cgroup.open())
        spec = SpawnSpec(
            record.command,
            programs=environment.programs(record.command[0], env),
            env=environment.strings(env),
            stdio=stdio,
            cwd=record.working_dir or "/",
            root=record.rootfs or None,
            mounts=steps,
            new_namespace=bool(steps),
            ids=_ids(user, record.user),
            terminal=record.tty,
            pid_fd=pid_fd,
            cgroup_fd=cgroup_fd,
        )
        preparation.give_away(spec.descriptors())
        return spec

    def _stdio(self, record: Record, path: str, uid: int, preparation: _Preparation) -> tuple[int, int, int]:
        if record.tty:
            master, slave = os.openpty()
            preparation.master = master
            preparation.own(slave)
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
            os.fchown(slave, uid, -1)
            return slave, slave, slave
        found = []
        for name in ("stdin", "stdout", "stderr"):
            fifo = os.path.join(path, name)
            if name == "stdin" and not record.open_stdin:
                found.append(preparation.own(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)))
                continue
            # Anew each time: something of the last run may still hold the old one.
            try:
                os.unlink(fifo)
            except FileNotFoundError:
                pass
            os.mkfifo(fifo, 0o600)
            if name != "stdin":
                preparation.fifos[name] = fifo
                preparation.kept.append(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            # For reading too: so the container is its own reader when the agent dies, and
            # meets no SIGPIPE and no end of its input.
            fd = preparation.own(os.open(fifo, os.O_RDWR | os.O_CLOEXEC))
            os.fchown(fd, uid, -1)  # or it could not open its own /dev/stdout
            found.append(fd)
        return found[0], found[1], found[2]

    def _attach(self, id: str, fifos: dict[str, str], master: int | None) -> CaptureHandle:
        return self._capture.attach(id, self._store.log_path(id), self._store.run_path(id), fifos, master)

    def clean(self, id: str, scope: Scope | None) -> None:
        """After a run: what it needed is gone.  Its spool stays: the capture may need it still."""
        path = self._store.run_path(id)
        for name in ("pid", "stdin", "stdout", "stderr"):
            try:
                os.unlink(os.path.join(path, name))
            except OSError:
                continue
        try:
            os.rmdir(path)
        except OSError:
            pass
        try:
            # What could not be killed when the run ended (no descriptor left, most likely) is now.
            ended = scope is None or scope.remove() or _end(scope)
        except OSError:
            ended = False
        if not ended:
            log.warning("something of the container cannot be ended", container=id)

    # ------------------------------------------------------------- recover

    async def recover(self, record: Record) -> Running | NotStarted:
        deadline = time.monotonic() + budget.DESCRIPTORS
        while True:
            try:
                return await self._recover(record)
            except OSError as error:
                # The others that are found again hold more meanwhile than they will in the end.
                if error.errno not in SHORT_OF or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.05)

    async def _recover(self, record: Record) -> Running | NotStarted:
        path = self._store.run_path(record.id)
        fds = await self.keeper.fetch(record.id)
        try:
            if record.boot_id != self.boot_id:
                return ProcessRun(self, record.id, 0, 0, None, Session(0, 1 << 62), None)
            found = await self.lanes.disk(_read_pid_file, os.path.join(path, "pid"))
            if found is None and record.state == STARTING:
                found = NotStarted("the agent was killed while it started the container")
            if isinstance(found, NotStarted):
                await self.lanes.disk(self.clean, record.id, self._cgroup(record.id))
                return found
            pid, start_time = found or (record.pid, record.start_time)
            handle = await self._attach_again(record, path, fds)
            try:
                process = self._processes.adopt(pid, start_time) if pid else None
            except OSError:
                await self._capture.forget(record.id)
                raise
            status = None if process is not None else _kept_status(fds)
            cgroup = self._cgroup(record.id)
            if cgroup is not None and not os.path.isdir(cgroup.path):
                cgroup = None  # there is cgroup2 now, but there was none when it was started
            scope: Scope = cgroup or Session(pid, start_time)
            return ProcessRun(self, record.id, pid, start_time, process, scope, handle, status)
        finally:
            for fd in fds:
                os.close(fd)

    async def _attach_again(self, record: Record, path: str, fds: Sequence[int]) -> CaptureHandle | None:
        """Captures what it writes, from where the former agent stood.  OSError: there are no descriptors for it."""
        master = next((fd for fd in fds if _is_terminal_master(fd)), None)
        fifos = {} if record.tty else {name: os.path.join(path, name) for name in ("stdout", "stderr")}
        try:
            if record.tty and master is None:
                raise FileNotFoundError(errno.ENOENT, "its terminal is gone")
            handle = self._attach(record.id, fifos, master)
        except OSError as error:
            if error.errno in SHORT_OF:
                raise
            log.error("the output of a container cannot be found again", container=record.id, error=error)
            return None
        try:
            await handle.ready()
        except OSError as error:
            if error.errno in SHORT_OF:
                await self._capture.forget(record.id)
                raise
            # Of the log alone, or it is said already: the capture goes on trying.
        return handle

    def _cgroup(self, id: str) -> Cgroup | None:
        return cgroups.Cgroup(os.path.join(self._parent, id)) if self._parent is not None else None

    # ------------------------------------------------------------ commands

    def place(
        self, record: Record, running: Running, env: Mapping[str, str], cwd: str, user: str
    ) -> Callable[[], Place]:
        assert isinstance(running, ProcessRun)
        gone = BadRequestError(f"container is not running: {record.id}")
        process = running.process
        if process is None or process.pidfd < 0:
            raise gone
        pid, start_time, asked, has_mounts = process.pid, process.start_time, user or record.user, bool(record.mounts)
        own_env, own_cwd, root, scope = dict(record.env), record.working_dir, record.rootfs, running.scope

        def in_thread() -> Place:
            # As at the start, and not as the container sees its root: what its processes have made of
            # that must not tell as whom a command runs.
            found = users.look_up(root or "/", asked)
            try:
                join_fd = _open_mount_namespace(pid, start_time) if has_mounts else -1
            except (FileNotFoundError, ProcessLookupError):
                raise gone from None
            return Place(
                env=environment.environment({**own_env, **env}, found.home),
                cwd=cwd or own_cwd or "/",
                ids=_ids(found, asked),
                root=root or None,
                join_fd=join_fd,
                scope=scope if isinstance(scope, cgroups.Cgroup) else None,
                within=process,
            )

        return in_thread

    async def recover_output(self, record: Record) -> None:
        self._capture.attach_rest(record.id, self._store.log_path(record.id), self._store.run_path(record.id))

    async def release(self, record: Record) -> None:
        await self.keeper.drop(record.id)
        await self.lanes.disk(self.clean, record.id, self._cgroup(record.id))

    async def remove(self, record: Record) -> None:
        await self._capture.forget(record.id)
        await self.release(record)

    def _sweep_run_dirs(self, over: set[str]) -> None:
        """An agent that was killed at the end of a run left its pid file, which the next run must not be taken for."""
        for name in os.listdir(self._store.run_dir):
            if name in over:
                scope = self._cgroup(name)
                if scope is not None and scope.alive():
                    _end(scope)
                self.clean(name, scope)

    def _sweep_cgroups(self, keep: set[str]) -> None:
        if self._parent is None:
            return
        for entry in list(os.scandir(self._parent)):
            if not entry.is_dir(follow_symlinks=False):
                continue
            cgroup = cgroups.Cgroup(entry.path)
            if entry.name == COMMANDS or entry.name in keep:
                # Commands of the former agent: whoever asked for them is gone with it.
                try:
                    inside = list(os.scandir(entry.path))
                except FileNotFoundError:
                    continue  # the container that was found again has ended
                for below in inside:
                    if below.name.startswith(cgroups.COMMAND_PREFIX):
                        _end(cgroups.Cgroup(below.path))
            else:
                log.info("ending what a container left", cgroup=entry.path)
                _end(cgroup)


class _Preparation:
    """What a start has opened and must close again."""

    def __init__(self) -> None:
        self._fds: set[int] = set()
        self.fifos: dict[str, str] = {}
        #: What is to outlive the agent: the reading ends of the FIFOs, and the pidfd.
        self.kept: list[int] = []
        self.master: int | None = None
        self.cgroup: Cgroup | None = None

    def own(self, fd: int) -> int:
        self._fds.add(fd)
        return fd

    def give_away(self, fds: set[int]) -> None:
        self._fds -= fds

    def hand_over(self) -> list[int]:
        """What the keeper is to hold: its own from here on."""
        fds = [*self.kept, *([self.master] if self.master is not None else [])]
        self.kept.clear()
        self.master = None
        return fds

    def close(self) -> None:
        for fd in (*self._fds, *self.hand_over()):
            os.close(fd)
        self._fds.clear()


def _ids(user: users.User, asked: str) -> tuple[int, int, Sequence[int]] | None:
    # An agent that is not root can only run what it is itself.
    return None if not asked and os.geteuid() != 0 else user.ids


_NS_GET_USERNS = 0xB701


def _open_mount_namespace(pid: int, start_time: int) -> int:
    """That of a container, for a command to enter.

    Not one that belongs to a user namespace: any user can make such a one, with files of its
    own choice in the place of those that a command runs, as root maybe.
    """
    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if start_time_of(pid) != start_time:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))  # the number is another's by now
        owner = fcntl.ioctl(fd, _NS_GET_USERNS)
        try:
            ours = os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user"))
        finally:
            os.close(owner)
        if not ours:
            raise ConflictError("the container has gone into a user namespace, where the agent runs nothing")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _end(scope: Scope) -> bool:
    """Whether nothing is left of it."""
    scope.kill()
    give_up = time.monotonic() + budget.LEFTOVERS_KILLED
    while scope.alive() and time.monotonic() < give_up:
        time.sleep(0.01)
    return scope.remove()


def _remove_if_empty(paths: Sequence[str]) -> None:
    for path in paths:
        try:
            os.rmdir(path)
        except FileNotFoundError:
            continue  # no command was ever run
        except OSError:
            return  # containers or commands go on in it


def _read_pid_file(path: str) -> tuple[int, int] | NotStarted | None:
    """(pid, start time); None: there is no file, which a record of a running one can do without."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        deadline = time.monotonic() + budget.FORMER_SPAWN
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # The former agent's child has not come to its program yet.
                if time.monotonic() > deadline:
                    break
                time.sleep(0.002)
        octets = os.read(fd, 8192)
    finally:
        os.close(fd)
    line, _, rest = octets.partition(b"\n")
    fields = fields_of(line)
    if not line or len(fields) < 20:
        return NotStarted("the agent was killed while it started the container")
    words = rest.split()
    if words[:1] == [b"failed"] and len(words) == 3:
        return NotStarted(f"{STEPS[int(words[2])]}: {os.strerror(int(words[1]))}")
    return int(line.split()[0]), int(fields[19])


def _kept_status(fds: Sequence[int]) -> ExitStatus | None:
    """The end of a container that ended while there was no agent, from the pidfd that was kept."""
    for fd in fds:
        if "pidfd" in os.readlink(f"/proc/self/fd/{fd}"):
            try:
                status = exit_status(fd)
            except OSError:
                return None
            return ExitStatus.of_wait_status(status) if status is not None else None
    return None


def _is_terminal_master(fd: int) -> bool:
    return os.readlink(f"/proc/self/fd/{fd}").endswith("/ptmx")


def _read_boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _cgroup_name(state_dir: str) -> str:
    """Agents beside each other, each with a state directory of its own, must not sweep each other's."""
    if state_dir == _DEFAULT_STATE_DIR:
        return "arcbox"
    import zlib  # a shared library that only a state directory elsewhere needs

    return f"arcbox-{zlib.crc32(os.path.realpath(state_dir).encode()):08x}"

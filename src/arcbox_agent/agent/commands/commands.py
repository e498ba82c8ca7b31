"""Commands run for a client: in the guest, or in a container.

A command ends when its process ends, though a grandchild may still hold its output
open: what it wrote itself is read, and then whatever comes without a pause, for a
bounded time.  It ends with its client too, unless it was detached, and with all it
started: each has a cgroup of its own where there are cgroups.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import signal
import struct
import sys
import termios

from arcbox_agent.agent.config import budget
from arcbox_agent.agent.containers.runtimes.protocol import Place, reason
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.processes import cgroups, environment, users
from arcbox_agent.agent.processes.children import SpawnError, SpawnSpec
from arcbox_agent.agent.processes.descendants import Session
from arcbox_agent.errors import AgentFailedError, BadRequestError, BusyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.containers.runtimes.protocol import Scope
    from arcbox_agent.agent.containers.service import Containers
    from arcbox_agent.agent.metrics import Metrics
    from arcbox_agent.agent.processes.children import ExitStatus, Process, Processes
    from arcbox_agent.agent.processes.lanes import Lanes
    from arcbox_agent.wire import ExecRequest

log = Logger("exec")

#: What a pipe is to hold; over fs.pipe-max-size or fs.pipe-user-pages-soft it stays smaller.
PIPE_SIZES = (1 << 20, 1 << 18)

#: After the process has ended and all it wrote itself is read: how much may still come from
#: others that hold its output open.
CHATTER_BYTES = 1 << 20

#: Reads without a wait after which the other tasks of the loop get their turn.
TURN = 8

#: Empty cgroups that are kept: to make and remove one costs as much as a tenth of a spawn.
SPARE_CGROUPS = 8

#: How often, and how many seconds apart, it is tried to kill what a command started.
KILL_PAUSE = 0.1
KILL_ATTEMPTS = round(budget.COMMAND_KILLED / KILL_PAUSE)

#: Control-D: at the beginning of a line the end of a terminal's input, else only that of the line.
END_OF_TRANSMISSION = b"\x04"

#: How often to look whether a command has opened its terminal again, which nobody has open.
REOPENED = 0.05


class Output:
    """A command's end of one stream, ours of it."""

    __slots__ = ("fd", "name", "owed")

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        #: Bytes that the process itself has left in it when it ended.
        self.owed = 0

    def read_into(self, room: memoryview) -> int | None:
        """Bytes read; 0 at the end; None where there is nothing at present."""
        try:
            return os.readv(self.fd, [room])
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.EIO:
                return 0  # a terminal whose other side is closed
            raise

    def waiting(self) -> int | None:
        """Bytes that can be read from a pipe; 0 at its end; None where there is nothing at present."""
        size = self._readable_bytes()
        if size:
            return size
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        for _, events in poll.poll(0):
            if events & select.POLLHUP and not events & select.POLLIN:
                return 0
        return None

    def note_owed(self) -> None:
        try:
            self.owed = self._readable_bytes()
        except OSError:
            self.owed = 0  # a terminal that is closed

    def _readable_bytes(self) -> int:
        count = bytearray(4)
        fcntl.ioctl(self.fd, termios.FIONREAD, count)
        return int.from_bytes(count, sys.byteorder)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Command:
    """One command that runs."""

    def __init__(
        self,
        process: Process,
        scope: Scope,
        outputs: list[Output],
        typed: bytes,
        terminal: bool,
        in_guest: bool,
    ) -> None:
        self.process = process
        self.scope = scope
        self.timed_out = False
        self._outputs = outputs
        #: What is still to be typed at its terminal.
        self._typed = memoryview(typed)
        #: Its cgroup is one of the guest's, not of a container's.
        self.in_guest = in_guest
        self.terminal = terminal
        #: Nobody had the terminal open when it was last read.
        self._hung_up = False
        self._loop = asyncio.get_running_loop()
        self._wakes: asyncio.Future[None] | None = None
        self._ended_at: float | None = None
        self.done = False
        process.on_exit(self._ended)

    async def read(self, take: Callable[[Output], Awaitable[int | None]]) -> ExitStatus:
        """Calls `take` on whatever has output, until there is no more; then how it ended.

        `take` says how much it took: 0 at the end, None where there is nothing at present.
        """
        turns = 0
        chatter = 0
        last_read = self._loop.time()
        while self._outputs:
            got_any = False
            for output in list(self._outputs):
                size = await take(output)
                if size is None:
                    output.owed = 0  # there is no more in it than there was
                elif size == 0 and self.terminal and self._ended_at is None:
                    # The command may open /dev/tty again; and to close our side would be its SIGHUP,
                    # where it is only about to exit.
                    self._hung_up = True
                elif size == 0:
                    self._drop(output)
                else:
                    if self._ended_at is not None:
                        chatter += max(0, size - output.owed)
                    output.owed = max(0, output.owed - size)
                    got_any = True
                    turns += 1
            self._type()
            if got_any:
                last_read = self._loop.time()
                if turns >= TURN:
                    turns = 0
                    await asyncio.sleep(0)
            if self._ended_at is None:
                if not got_any:
                    await self._wait_for_something(None)
                continue
            if any(output.owed for output in self._outputs):
                continue
            now = self._loop.time()
            left = min(last_read + budget.COMMAND_QUIET, self._ended_at + budget.COMMAND_CHATTER) - now
            if left <= 0 or chatter > CHATTER_BYTES:
                break
            if not got_any:
                await self._wait_for_something(left)
        return await self.process.wait()

    def _ended(self, status: ExitStatus) -> None:
        self._ended_at = self._loop.time()
        for output in self._outputs:
            output.note_owed()
        self._wake()

    def _drop(self, output: Output) -> None:
        self._outputs.remove(output)
        output.close()

    def close_outputs(self) -> None:
        for output in self._outputs:
            output.close()
        self._outputs.clear()

    async def _wait_for_something(self, timeout: float | None) -> None:
        """Until an output has something, the terminal takes something, or the process ends."""
        if not self._outputs:
            return
        loop = self._loop
        self._wakes = loop.create_future()
        fds = [output.fd for output in self._outputs]
        if self._hung_up:
            # It would be readable all the time.
            self._hung_up, fds, timeout = False, [], REOPENED
        timer = loop.call_later(timeout, self._wake) if timeout is not None else None
        for fd in fds:
            loop.add_reader(fd, self._wake)
        writer = fds[0] if fds and self._typed else -1
        if writer >= 0:
            loop.add_writer(writer, self._wake)
        try:
            await self._wakes
        finally:
            for fd in fds:
                loop.remove_reader(fd)
            if writer >= 0:
                loop.remove_writer(writer)
            if timer is not None:
                timer.cancel()
            self._wakes = None

    def _wake(self) -> None:
        if self._wakes is not None and not self._wakes.done():
            self._wakes.set_result(None)

    def _type(self) -> None:
        while self._typed and self._outputs:
            try:
                self._typed = self._typed[os.write(self._outputs[0].fd, self._typed) :]
            except BlockingIOError:
                return
            except OSError:
                self._typed = memoryview(b"")


class Commands:
    """All commands that run for clients."""

    def __init__(
        self, settings: Settings, metrics: Metrics, processes: Processes, lanes: Lanes, containers: Containers
    ) -> None:
        self._settings = settings
        self._lanes = lanes
        self._metrics = metrics
        self._processes = processes
        self._containers = containers
        self._number = 0
        #: Slots taken: by what runs, and by what is being started.
        self._active = 0
        #: Empty cgroups of commands that are over, for those to come.
        self._spare: list[cgroups.Cgroup] = []
        #: Starts under way, which go on when their clients go away.
        self._starting: set[asyncio.Task[Command]] = set()
        self._endings: set[asyncio.Task[None]] = set()
        #: Until each detached command ends: nobody waits for these.
        self._detached: set[asyncio.Task[None]] = set()
        metrics.gauge("commands_running", lambda: self._active, "Commands that run for clients.")

    async def start(self, request: ExecRequest, *, stderr: bool) -> Command:
        """Starts what `request` asks for.  `stderr` False: nobody wants to know it."""
        environment.check_command(request.cmd)
        environment.check_env(request.env)
        if self._active >= self._settings.max_execs:
            self._metrics.add("bound_execs")
            raise BusyError(f"max_execs = {self._settings.max_execs} commands run already: try again later")
        try:
            place = self._place(request)
        except OSError as error:
            raise _failed(error) from error
        self._active += 1
        task = asyncio.get_running_loop().create_task(self._start(request, place, stderr))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._let_go if request.detach else self._abandon)
            raise

    def _abandon(self, task: asyncio.Task[Command]) -> None:
        """The client went away while its command was being started."""
        if not task.cancelled() and task.exception() is None:
            self.leave(task.result())

    def _let_go(self, task: asyncio.Task[Command]) -> None:
        """The same, of a command that is not its client's."""
        if not task.cancelled() and task.exception() is None:
            self.detach(task.result())

    async def _start(self, request: ExecRequest, place: Callable[[], Place], stderr: bool) -> Command:
        try:
            return await self._spawn(request, place, stderr)
        except BaseException:
            self._active -= 1
            raise

    async def _spawn(self, request: ExecRequest, place: Callable[[], Place], stderr: bool) -> Command:
        self._number += 1
        preparation = _Preparation(f"{os.getpid()}-{self._number}")
        if self._spare and not request.container_id and not request.detach:
            preparation.scope = self._spare.pop()
        try:
            process = await self._processes.prepare_and_spawn(lambda: _prepare(request, place(), preparation, stderr))
        except SpawnError as error:
            await self._lanes.disk(preparation.undo)
            words = reason(error, request.cmd[0], preparation.cwd, ())
            if error.step == "exec":
                # As 0.0.1-alpha.1 says it, and then which program.
                words = f"{error.strerror} (os error {error.errno}): {request.cmd[0]}"
            raise AgentFailedError(f"exec failed: {words}") from error
        except Exception as error:
            # Where it is to run could not be found out, or what it needs not be opened.
            await self._lanes.disk(preparation.undo)
            if isinstance(error, OSError):
                raise _failed(error) from error
            raise
        self._metrics.add("commands_started")
        command = Command(
            process,
            preparation.scope or Session(process.pid, process.start_time),
            preparation.outputs,
            _typed(request.stdin) if request.tty and request.stdin else b"",
            request.tty,
            in_guest=preparation.scope is not None and not request.container_id,
        )
        if preparation.within is not None and preparation.within.pidfd < 0:
            # The container ended meanwhile, and may have been looked through before this was there.
            self._end_later(self._kill(command))
        if request.timeout_ms:
            timer = asyncio.get_running_loop().call_later(
                request.timeout_ms / 1000, self._time_out, command, request.cmd[0]
            )
            process.on_exit(lambda _: timer.cancel())
        return command

    def _place(self, request: ExecRequest) -> Callable[[], Place]:
        """Where the command is to run.  What needs files is done by what is returned, in a thread."""
        if request.container_id:
            # An unknown container is told before a directory that is wrong.
            self._containers.resolve(request.container_id)
            environment.check_working_dir(request.working_dir)
            return self._containers.place(request.container_id, request.env, request.working_dir, request.user)
        environment.check_working_dir(request.working_dir)
        scope = self._containers.runtime.command_scope()

        def in_guest() -> Place:
            user = users.look_up_in_guest(request.user)
            return Place(
                env=environment.environment(request.env, user.home),
                cwd=request.working_dir or "/",
                ids=None if not request.user and os.geteuid() != 0 else user.ids,
                scope=scope,
            )

        return in_guest

    # ----------------------------------------------------------------- end

    def _time_out(self, command: Command, program: str) -> None:
        command.timed_out = True
        self._metrics.add("commands_timed_out")
        log.info("command timed out", program=program, pid=command.process.pid)
        self._end_later(self._kill(command))

    def leave(self, command: Command) -> None:
        """The client of `command` needs nothing of it any more: it, and all it started, is ended.

        One that has ended by itself leaves behind what it put into the background.
        """
        if command.done:
            return
        command.done = True
        command.close_outputs()
        kill = command.process.status is None or command.timed_out
        if kill or not command.in_guest:
            self._end_later(self._finish(command, kill))
            return
        # Nobody will kill it any more.  Its cgroup is looked at when its client has the reply.
        self._active -= 1
        asyncio.get_running_loop().call_soon(self._keep_scope, command.scope)

    def _keep_scope(self, scope: Scope) -> None:
        """The cgroup of a command that has ended, for another if nothing is left in it."""
        if len(self._spare) < SPARE_CGROUPS and not scope.alive():
            assert isinstance(scope, cgroups.Cgroup)
            self._spare.append(scope)
        else:
            self._end_later(self._remove_scope(scope))

    def detach(self, command: Command) -> None:
        """Nobody waits for `command`."""
        command.done = True
        self._end_later(self._finish(command, kill=False), self._detached)

    async def _finish(self, command: Command, kill: bool) -> None:
        try:
            if kill:
                await self._kill(command)
            await command.process.wait()
        finally:
            self._active -= 1
        await self._remove_scope(command.scope)

    async def _kill(self, command: Command) -> None:
        command.process.send_signal(signal.SIGKILL)
        for attempt in range(KILL_ATTEMPTS):
            try:
                await self._lanes.signals(command.scope.kill)
                return
            except OSError as error:
                # No descriptor left, most likely: there will be one again.
                if attempt == KILL_ATTEMPTS - 1:
                    log.error("what a command started cannot be killed", pid=command.process.pid, error=error)
            await asyncio.sleep(KILL_PAUSE)

    async def _remove_scope(self, scope: Scope | None) -> None:
        if scope is not None:
            await self._lanes.disk(_remove, scope)

    def _end_later(self, work: Awaitable[None], among: set[asyncio.Task[None]] | None = None) -> None:
        async def run() -> None:
            await work

        tasks = self._endings if among is None else among
        task = asyncio.get_running_loop().create_task(run())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def close(self) -> None:
        """Every client is gone by now; waits, not for long, until what they started is."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + budget.COMMANDS_ENDED
        # In this order: what was started for nobody is then being ended.
        for tasks in (self._starting, self._endings):
            if tasks:
                await asyncio.wait(tasks, timeout=max(0.0, deadline - loop.time()))
        left = [*self._starting, *self._endings, *self._detached]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for scope in self._spare:
            await self._lanes.signals(_remove, scope)
        self._spare.clear()


def _prepare(request: ExecRequest, place: Place, preparation: _Preparation, stderr: bool) -> SpawnSpec:
    """In a thread.  `preparation` holds what was opened, whatever fails."""
    try:
        preparation.own(place.join_fd)
        preparation.within = place.within
        preparation.cwd = place.cwd
        stdio = preparation.stdio(request, place.ids[0] if place.ids else -1, stderr)
        cgroup_fd = -1
        if place.scope is not None:
            if preparation.scope is None:
                # One of a detached command is not ended with the agent.
                prefix = cgroups.DETACHED_PREFIX if request.detach else cgroups.COMMAND_PREFIX
                preparation.scope = place.scope.child(prefix + preparation.name)
                try:
                    preparation.scope.create(parents=place.within is None)
                except FileNotFoundError:
                    # Not made anew: nobody would remove it.
                    raise BadRequestError(f"container is not running: {request.container_id}") from None
            cgroup_fd = preparation.own(preparation.scope.open())
        spec = SpawnSpec(
            request.cmd,
            programs=environment.programs(request.cmd[0], place.env),
            env=environment.strings(place.env),
            stdio=stdio,
            cwd=place.cwd,
            root=place.root,
            join_fd=place.join_fd,
            ids=place.ids,
            terminal=request.tty and not request.detach,
            cgroup_fd=cgroup_fd,
        )
    except BaseException:
        preparation.undo()
        raise
    preparation.give_away(spec.descriptors())
    return spec


def _typed(octets: bytes) -> bytes:
    """All of the input of a terminal, and its end."""
    return octets + END_OF_TRANSMISSION * (1 if octets.endswith((b"\n", b"\r")) else 2)


def _failed(error: OSError) -> AgentFailedError:
    """As 0.0.1-alpha.1 says it."""
    return AgentFailedError(f"exec failed: {error.strerror} (os error {error.errno})")


def _remove(scope: Scope) -> None:
    """What still runs in a command's cgroup moves up: to that of the container, or of all commands."""
    if not isinstance(scope, cgroups.Cgroup):
        return
    for _ in range(3):
        if scope.remove():
            return
        scope.leave_to(cgroups.Cgroup(os.path.dirname(scope.path)))


class _Preparation:
    """What was opened for a command."""

    def __init__(self, name: str) -> None:
        self._fds: set[int] = set()
        self.name = name
        self.cwd = ""
        self.outputs: list[Output] = []
        self.scope: cgroups.Cgroup | None = None
        self.within: Process | None = None

    def own(self, fd: int) -> int:
        if fd >= 0:
            self._fds.add(fd)
        return fd

    def give_away(self, fds: set[int]) -> None:
        self._fds -= fds

    def stdio(self, request: ExecRequest, uid: int, stderr: bool) -> tuple[int, int, int]:
        if request.detach:
            null = self._null()
            return (self._input(request.stdin) if request.stdin else null), null, null
        if request.tty:
            master, slave = os.openpty()
            self.own(slave)
            self.outputs.append(Output("stdout", master))
            os.set_blocking(master, False)
            rows, columns = min(request.tty_height, 0xFFFF) or 24, min(request.tty_width, 0xFFFF) or 80
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.fchown(slave, uid, -1)
            return slave, slave, slave
        stdin = self._input(request.stdin) if request.stdin else self._null()
        return stdin, self._pipe("stdout", uid), self._pipe("stderr", uid) if stderr else self._null()

    def _null(self) -> int:
        return self.own(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))

    def _pipe(self, name: str, uid: int) -> int:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self.own(writer)
        self.outputs.append(Output(name, reader))
        os.set_blocking(reader, False)
        os.fchown(writer, uid, -1)  # or it could not open its own /dev/stdout
        for size in PIPE_SIZES:
            try:
                fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, size)
                break
            except OSError:
                continue
        return writer

    def _input(self, octets: bytes) -> int:
        """A file in memory: it takes all of the input at once, so nobody has to feed it."""
        file = os.memfd_create("stdin", os.MFD_CLOEXEC)
        try:
            rest = memoryview(octets)
            while rest:
                rest = rest[os.write(file, rest) :]
            # Opened again for reading only, with a position of its own.
            return self.own(os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC))
        finally:
            os.close(file)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        for output in self.outputs:
            output.close()

    def undo(self) -> None:
        self.close()
        if self.scope is not None:
            self.scope.remove()

"""What a start of an execution needs before the spawn: its FIFOs or terminal, its spools, its scope."""

from __future__ import annotations

import os

from arcbox_agent.agent.containers.output.stdio import INPUT_MODE, OUTPUT_MODE, open_terminal
from arcbox_agent.agent.containers.runtimes.process import pid_file
from arcbox_agent.agent.executions import record as records
from arcbox_agent.agent.executions.spools import Channels, Input, Output
from arcbox_agent.agent.processes.cgroups import Cgroup
from arcbox_agent.agent.processes.pipes import widen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_agent.agent.containers.runtimes.protocol import CommandHost
    from arcbox_agent.agent.executions.record import Record
    from arcbox_agent.agent.processes.scopes import Scope
    from arcbox_agent.agent.processes.spec import SpawnSpec
    from arcbox_agent.wire import ExecRequest

#: What a command may write while the thread is busy elsewhere.
PIPE_SIZES = (1 << 20, 1 << 18, 1 << 16)

#: The name of its scope begins with this, which no sweep of another agent's commands takes for one of them.
SCOPE_PREFIX = ".execution-"

#: The most that a terminal's size can be: it is kept in 16 bits.
MOST_CELLS = 0xFFFF


class Preparation:
    """`state_path`, `run_path`: its directories.  `scope_name`: unique among all starts."""

    __slots__ = (
        "_host",
        "_request",
        "_scope_name",
        "channels",
        "cwd",
        "record",
        "run_path",
        "scope",
        "spec",
        "state_path",
    )

    def __init__(
        self, record: Record, request: ExecRequest, host: CommandHost, state_path: str, run_path: str, scope_name: str
    ) -> None:
        self.record = record
        self._request = request
        self._host = host
        self._scope_name = scope_name
        self.state_path = state_path
        self.run_path = run_path
        self.scope: Scope | None = None
        self.spec: SpawnSpec | None = None
        self.channels: Channels | None = None
        self.cwd = ""

    def prepare(self, octets: bytes, changed: Callable[[], None]) -> None:
        """All of it; `octets`: the request, to be kept.  For a thread.  `undo` closes what is open, whatever failed."""
        record, request = self.record, self._request
        for path in (self.state_path, self.run_path):
            os.makedirs(path, mode=0o700, exist_ok=True)
        self.spec, self.scope = spec, scope = self._host.command(request, self._scope_name, record.tty)
        self.cwd = spec.cwd or ""
        if isinstance(scope, Cgroup):
            record.cgroup = scope.path
        spec.pid_fd = pid_file.create(os.path.join(self.run_path, pid_file.NAME))
        self._open(spec, spec.ids[0] if spec.ids else -1, changed)
        records.write(os.path.join(self.state_path, "request"), octets)
        records.write(os.path.join(self.state_path, "record"), record.encode())

    def _open(self, spec: SpawnSpec, uid: int, changed: Callable[[], None]) -> None:
        channels = self.channels = Channels(self.record.id, [], None, changed)
        if self.record.tty:
            self._open_terminal(spec, uid, channels)
            return
        child: list[int] = []
        try:
            if self.record.open_stdin:
                self._open_input(uid, channels, child)
            else:
                child.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            for name in ("stdout", "stderr"):
                self._open_output(name, uid, channels, child)
        except BaseException:
            for fd in child:
                os.close(fd)
            raise
        spec.stdio = child[0], child[1], child[2]

    def _open_terminal(self, spec: SpawnSpec, uid: int, channels: Channels) -> None:
        request = self._request
        rows, columns = min(request.tty_height, MOST_CELLS), min(request.tty_width, MOST_CELLS)
        master, slave = open_terminal(uid, rows, columns)
        spec.stdio = slave, slave, slave
        os.set_blocking(master, False)
        channels.outputs.append(own_output(self.state("stdout"), "stdout", master, self.record))
        if self.record.open_stdin:
            channels.input = Input(self.state("stdin"), os.dup(master), -1, True)

    def _open_input(self, uid: int, channels: Channels, child: list[int]) -> None:
        fifo = self._fifo("stdin")
        # For reading only, so that its end is seen; and first, so that there is a reader for the end that writes.
        child.append(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        os.set_blocking(child[-1], True)
        _give(child[-1], uid, INPUT_MODE)
        writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            widen(writer, PIPE_SIZES)
            file = os.open(self.state("stdin"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except BaseException:
            os.close(writer)
            raise
        channels.input = Input(self.state("stdin"), writer, file, False)

    def _open_output(self, name: str, uid: int, channels: Channels, child: list[int]) -> None:
        fifo = self._fifo(name)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        output = own_output(self.state(name), name, reader, self.record)
        channels.outputs.append(output)
        widen(reader, PIPE_SIZES)
        # For reading too: while no agent runs, it meets no SIGPIPE.
        child.append(os.open(fifo, os.O_RDWR | os.O_CLOEXEC))
        _give(child[-1], uid, OUTPUT_MODE)

    def state(self, name: str) -> str:
        return os.path.join(self.state_path, name)

    def _fifo(self, name: str) -> str:
        path = os.path.join(self.run_path, name)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        os.mkfifo(path, 0o600)
        return path

    def undo(self) -> None:
        """Nothing of the start stays.  For a thread."""
        if self.spec is not None:
            self.spec.close()
        if self.channels is not None:
            self.channels.close()
        if self.scope is not None:
            self.scope.remove()
        for path in (self.run_path, self.state_path):
            try:
                records.remove(path)
            except OSError:
                continue  # the next agent removes it


def own_output(path: str, name: str, fd: int, record: Record) -> Output:
    """The Output for a descriptor, which is closed where that fails."""
    try:
        output = Output(path, name, fd, record.spool_limit, record.tty)
        if record.wait_when_full:
            output.floor = output.begin
        return output
    except BaseException:
        if fd >= 0:
            os.close(fd)
        raise


def _give(fd: int, uid: int, mode: int) -> None:
    """The user of the command may open it again, by /dev/stdout."""
    os.fchown(fd, uid, -1)
    os.fchmod(fd, mode)

"""What a command needs before its spawn: its standard streams, and the launch of its host."""

from __future__ import annotations

import os

from arcbox_agent.agent.commands.output import CommandOutput
from arcbox_agent.agent.containers.output.stdio import open_null, open_terminal, widen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_agent.agent.containers.runtimes.protocol import Launch
    from arcbox_agent.agent.processes.spec import SpawnSpec
    from arcbox_agent.wire import ExecRequest

#: What a command may write while nobody reads.
PIPE_SIZES = (1 << 20, 1 << 18)

#: Control-D: at the beginning of a line it ends a terminal's input, elsewhere only the line.
END_OF_TRANSMISSION = b"\x04"

#: The most that a terminal's size can be: it is kept in 16 bits.
_MOST_CELLS = 0xFFFF


class Preparation:
    """`stderr` False: nobody reads it."""

    __slots__ = ("_child", "_prepare", "_request", "_stderr", "launch", "outputs")

    def __init__(self, request: ExecRequest, prepare: Callable[[], Launch], stderr: bool) -> None:
        self._request = request
        self._prepare = prepare
        self._stderr = stderr
        #: Descriptors for the child that are not the spawn's yet.
        self._child: list[int] = []
        self.launch: Launch | None = None
        #: Our ends of the command's output, to be closed by whoever reads them.
        self.outputs: list[CommandOutput] = []

    def spec(self) -> SpawnSpec:
        """In a spawn thread.  Whatever this raises, nothing is left of it."""
        try:
            launch = self.launch = self._prepare()
            spec = launch.spec
            spec.stdio = self._stdio(spec.ids[0] if spec.ids else -1)
        except BaseException:
            self.undo()
            raise
        self._child.clear()
        return spec

    @property
    def cwd(self) -> str:
        return (self.launch.spec.cwd if self.launch is not None else None) or ""

    def typed(self) -> bytes:
        """All of the input of a terminal, and its end."""
        octets = self._request.stdin
        if not octets or not self._request.tty:
            return b""
        return octets + END_OF_TRANSMISSION * (1 if octets.endswith((b"\n", b"\r")) else 2)

    def undo(self) -> None:
        """Close and remove what was made; it may be called again.  For a thread."""
        for fd in set(self._child):
            os.close(fd)
        self._child.clear()
        for output in self.outputs:
            output.close()
        self.outputs.clear()
        if self.launch is not None:
            self.launch.undo()

    # --------------------------------------------------------- private

    def _own(self, fd: int) -> int:
        self._child.append(fd)
        return fd

    def _stdio(self, uid: int) -> tuple[int, int, int]:
        request = self._request
        if request.detach:
            null = self._own(open_null())
            return (self._input(request.stdin) if request.stdin else null), null, null
        if request.tty:
            rows, columns = min(request.tty_height, _MOST_CELLS), min(request.tty_width, _MOST_CELLS)
            master, slave = open_terminal(uid, rows, columns)
            self._own(slave)
            self._read_from("stdout", master)
            return slave, slave, slave
        stdin = self._input(request.stdin) if request.stdin else self._own(open_null())
        return stdin, self._pipe("stdout", uid), self._pipe("stderr", uid) if self._stderr else self._own(open_null())

    def _read_from(self, name: str, fd: int) -> None:
        self.outputs.append(CommandOutput(name, fd))
        os.set_blocking(fd, False)

    def _pipe(self, name: str, uid: int) -> int:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._own(writer)
        self._read_from(name, reader)
        os.fchown(writer, uid, -1)  # or the command could not open its own /dev/stdout
        widen(reader, PIPE_SIZES)
        return writer

    def _input(self, octets: bytes) -> int:
        """A file in memory: it takes all of the input at once, so nobody has to feed it."""
        file = os.memfd_create("stdin", os.MFD_CLOEXEC)
        try:
            rest = memoryview(octets)
            while rest:
                rest = rest[os.write(file, rest) :]
            # Opened again for reading only, with a position of its own.
            return self._own(os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC))
        finally:
            os.close(file)

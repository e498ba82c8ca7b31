"""What is done for a command in the thread that spawns it: its host prepares it, and it gets standard streams."""

from __future__ import annotations

import os

from arcbox_agent.agent.containers.output.stdio import OUTPUT_MODE, open_terminal
from arcbox_agent.agent.containers.runtimes.protocol import CommandSpec
from arcbox_agent.agent.processes.pipes import widen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent._spawn import Attempt
    from arcbox_agent.agent.containers.runtimes.protocol import CommandHost
    from arcbox_agent.agent.processes.scopes import Scope
    from arcbox_agent.agent.processes.spec import SpawnSpec
    from arcbox_agent.wire import ExecRequest

#: What a command may write while nobody reads.
PIPE_SIZES = (1 << 20, 1 << 18)

#: Control-D: at the beginning of a line it ends a terminal's input, elsewhere only the line.
END_OF_TRANSMISSION = b"\x04"

#: The most that a terminal's size can be: it is kept in 16 bits.
_MOST_CELLS = 0xFFFF


class Preparation:
    """`name` tells the commands of all agents apart.  `stderr` False: nobody reads it."""

    __slots__ = ("_child", "_name", "_request", "_spec", "_stderr", "host", "readers", "scope", "typed")

    def __init__(self, request: ExecRequest, host: CommandHost, name: str, stderr: bool) -> None:
        self._request = request
        self._name = name
        self._stderr = stderr
        #: Descriptors for the child that are not the spawn's yet.
        self._child: list[int] = []
        self._spec: SpawnSpec | None = None
        self.host = host
        self.scope: Scope | None = None
        #: Our ends of the command's output, by the name of the stream.
        self.readers: dict[str, int] = {}
        #: All of the input of a terminal, and its end.
        self.typed = b""

    def run(self, attempt: Attempt) -> tuple[int, int, int]:
        """Prepare the command and spawn it; see SpawnSpec.run.  Whatever this raises, nothing is left of it."""
        request = self._request
        asked = CommandSpec(
            request.cmd,
            name=self._name,
            env=request.env,
            cwd=request.working_dir,
            user=request.user,
            terminal=request.tty and not request.detach,
            detached=request.detach,
        )
        try:
            self._spec, self.scope = self.host.command(asked)
            self._spec.stdio = self._stdio(self._spec.ids[0] if self._spec.ids else -1)
            self._child.clear()
            return self._spec.run(attempt)
        except BaseException:
            self._undo()
            raise

    @property
    def cwd(self) -> str:
        return (self._spec.cwd if self._spec is not None else None) or ""

    def close(self) -> None:
        """After a spawn that nobody waited for: close what was the client's."""
        for fd in self.readers.values():
            os.close(fd)
        self.readers.clear()

    # --------------------------------------------------------- private

    def _undo(self) -> None:
        for fd in self._child:
            os.close(fd)
        self.close()
        if self._spec is not None:
            self._spec.close()
        if self.scope is not None:
            self.scope.remove()

    def _own(self, fd: int) -> int:
        self._child.append(fd)
        return fd

    def _read_from(self, name: str, fd: int) -> None:
        self.readers[name] = fd
        os.set_blocking(fd, False)

    def _stdio(self, uid: int) -> tuple[int, int, int]:
        request = self._request
        if request.detach:
            null = self._null()
            return (self._input(request.stdin) if request.stdin else null), null, null
        if request.tty:
            rows, columns = min(request.tty_height, _MOST_CELLS), min(request.tty_width, _MOST_CELLS)
            master, slave = open_terminal(uid, rows, columns)
            self._own(slave)
            self._read_from("stdout", master)
            if octets := request.stdin:
                self.typed = octets + END_OF_TRANSMISSION * (1 if octets.endswith((b"\n", b"\r")) else 2)
            return slave, slave, slave
        stdin = self._input(request.stdin) if request.stdin else self._null()
        stdout = self._pipe("stdout", uid)
        stderr = self._pipe("stderr", uid) if self._stderr else self._null()
        for reader in self.readers.values():
            widen(reader, PIPE_SIZES)
        return stdin, stdout, stderr

    def _null(self) -> int:
        return self._own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))

    def _pipe(self, name: str, uid: int) -> int:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._own(writer)
        self._read_from(name, reader)
        os.fchown(writer, uid, -1)
        os.fchmod(writer, OUTPUT_MODE)
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

"""What is done for a command in the thread that spawns it: its streams are opened, its host prepares it."""

from __future__ import annotations

import os

from arcbox_agent.agent.containers.output.stdio import OUTPUT_MODE, open_terminal
from arcbox_agent.agent.processes.cgroups import COMMAND_PREFIX, DETACHED_PREFIX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent._spawn import Attempt
    from arcbox_agent.agent.containers.runtimes.protocol import CommandHost
    from arcbox_agent.agent.processes.scopes import Scope
    from arcbox_agent.agent.processes.spec import SpawnSpec
    from arcbox_agent.wire import ExecRequest

#: Control-D: at the beginning of a line it ends a terminal's input, elsewhere only the line.
END_OF_TRANSMISSION = b"\x04"

#: The most that a terminal's size can be: it is kept in 16 bits.
_MOST_CELLS = 0xFFFF


class Preparation:
    """`number` tells the commands of this agent apart.  `stderr` False: nobody reads it.  `null`: /dev/null, lent."""

    __slots__ = (
        "_child",
        "_host",
        "_name",
        "_null",
        "_request",
        "_spec",
        "_stderr",
        "_users",
        "readers",
        "scope",
        "typed",
    )

    def __init__(self, request: ExecRequest, host: CommandHost, number: int, stderr: bool, null: int) -> None:
        self._request = request
        # The name of its scope tells the commands of all agents apart, and the next agent whether it was detached.
        self._name = f"{DETACHED_PREFIX if request.detach else COMMAND_PREFIX}{os.getpid()}-{number}"
        self._stderr = stderr
        self._null = null
        #: Descriptors for the child that are not the spawn's yet.
        self._child: list[int] = []
        #: Those of them that the user of the command may open again, by /dev/stdout or /dev/tty.
        self._users: list[int] = []
        self._spec: SpawnSpec | None = None
        self._host = host
        self.scope: Scope | None = None
        #: Our ends of the command's output, by the name of the stream.
        self.readers: dict[str, int] = {}
        #: All of the input of a terminal, and its end.
        self.typed = b""

    def run(self, attempt: Attempt) -> tuple[int, int, int]:
        """Prepare the command and spawn it; see SpawnSpec.run.  Whatever this raises, nothing is left of it."""
        request = self._request
        terminal = request.tty and not request.detach
        try:
            stdio = self._streams()
            self._spec, self.scope = spec, scope = self._host.command(request, self._name, terminal)
            if spec.ids and spec.ids[0] != os.geteuid():
                for fd in self._users:
                    os.fchown(fd, spec.ids[0], -1)
            spec.lent.add(self._null)
            spec.stdio = stdio
            self._child.clear()
            born_in_scope = spec.cgroup_fd >= 0
            pid, pidfd, start_time = spec.run(attempt)
        except BaseException:
            self._undo()
            raise
        if not born_in_scope:
            scope.bind(pid, start_time)
        return pid, pidfd, start_time

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

    def _streams(self) -> tuple[int, int, int]:
        request = self._request
        if request.detach:
            return (self._input(request.stdin) if request.stdin else self._null), self._null, self._null
        if request.tty:
            rows, columns = min(request.tty_height, _MOST_CELLS), min(request.tty_width, _MOST_CELLS)
            master, slave = open_terminal(-1, rows, columns)
            self._users.append(self._own(slave))
            self._read_from("stdout", master)
            if octets := request.stdin:
                self.typed = octets + END_OF_TRANSMISSION * (1 if octets.endswith((b"\n", b"\r")) else 2)
            return slave, slave, slave
        stdin = self._input(request.stdin) if request.stdin else self._null
        stdout = self._pipe("stdout")
        stderr = self._pipe("stderr") if self._stderr else self._null
        return stdin, stdout, stderr

    def _pipe(self, name: str) -> int:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._users.append(self._own(writer))
        self._read_from(name, reader)
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

"""What a runtime does for containers: the line between what a container is and how it is run.

A Runtime starts a container and adopts one after a restart of the agent; either way it
returns a Run, which says when the container ends, ends what is left of it, and prepares
commands in it.  The runtime of processes (process/) spawns the container itself.  One of
the OCI kind (an outside monitor that writes log and exit file, a program to call) fits
the same shape.
"""

from __future__ import annotations

from arcbox_agent.errors import ConflictError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Protocol

    from arcbox_agent._spawn import SpawnError
    from arcbox_agent.agent.containers.record import Record
    from arcbox_agent.agent.processes.scopes import Scope
    from arcbox_agent.agent.processes.spec import SpawnSpec
    from arcbox_agent.agent.processes.status import ExitStatus
    from arcbox_agent.wire import ExecRequest, Mount
else:
    Protocol = object


class StartError(Exception):
    """A container could not be started; nothing is left of the attempt."""


class NotStarted:
    """After a restart of the agent: the start that was under way then failed."""

    __slots__ = ("error",)

    def __init__(self, error: str) -> None:
        self.error = error


class CommandHost(Protocol):
    """Where commands run: in a run of a container, or in the guest itself."""

    #: The container's id, whose share of the lanes they have; None: the guest.
    key: str | None

    @property
    def ended(self) -> bool:
        """It has ended: so must a command that was started meanwhile."""

    def command(self, request: ExecRequest, name: str, terminal: bool) -> tuple[SpawnSpec, Scope]:
        """Prepare a command: what to spawn, and the scope of all that it starts.  For the `spawn` lane.

        Where the request names no directory or no user, those of the container or the guest are
        taken.  `name`: of the scope.  `terminal`: its streams are one.  The caller fills in `stdio`
        and spawns it, or closes the one and removes the other.  RequestError: it cannot be run.
        OSError: a file or a descriptor is missing.
        """

    def take_back(self, scope: Scope) -> bool:
        """The scope of a command that ended by itself; False: the caller dissolves it."""


class Run(CommandHost, Protocol):
    """One run of a container, from its start until `close`."""

    pid: int
    start_time: int
    #: Everything the container started, commands of clients included.
    scope: Scope
    #: It has ended, and its last output with it: nobody held that.
    output_cut: bool

    async def wait(self) -> ExitStatus:
        """Until the main process has ended."""

    def send_signal(self, sig: int) -> bool:
        """To the main process; False: it has ended."""

    async def signal_all(self, sig: int) -> None:
        """To everything the container started."""

    async def kill_all(self) -> None:
        """SIGKILL to everything the container started."""

    async def alive(self) -> bool:
        """Whether anything runs that the container started."""

    async def output_holders(self) -> tuple[int, int]:
        """Who has its output open (processes/helpers.py), and a number that changes with what is written."""

    async def finish_output(self, timeout: float) -> bool:
        """After the end: bring the rest of the output into the log; False: not all of it in time."""

    async def close(self) -> None:
        """After the end: leave nothing but log and record."""


class Runtime(Protocol):
    """One way to run containers: those whose record names it."""

    name: str

    def check(self, record: Record, mounts: Sequence[Mount]) -> None:
        """Whether such a container can be; adds to `warnings`, fills `mounts`.  RequestError.  For a thread."""

    async def start(self, record: Record) -> Run:
        """StartError: it does not run, and nothing is left of the attempt."""

    def give_up(self, record: Record) -> None:
        """Wait no longer for a start that is under way: it fails."""

    async def recover(self, record: Record) -> Run | NotStarted:
        """After a restart of the agent: adopt the run of `record`, which may have ended meanwhile."""

    async def recover_output(self, record: Record) -> None:
        """After a restart, for a container that does not run: what waits for room in its log."""

    async def release(self, record: Record) -> None:
        """Release what the last run needed, where its `close` had to wait for the record of its end."""

    async def remove(self, record: Record) -> None:
        """For good: all that the runtime still has of a container that does not run."""

    async def sweep(self, over: Iterable[str]) -> None:
        """After a restart: clean up after the last runs of these containers, which do not run."""


def frozen(what: str) -> ConflictError:
    """Nothing can be started there: it would wait, before its first instruction, for somebody to thaw the cgroup."""
    return ConflictError(f"{what} is frozen: write 0 to cgroup.freeze of its cgroup, and of those above it, first")


def system_reason(error: OSError) -> str:
    """A failed system call in words: about which file, where one is known, and what the system said."""
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text


def interpreter_of(error: SpawnError) -> str:
    """What to add to a failed exec: of a program that is there, the interpreter that is at fault."""
    path = error.interpreter
    if not path:
        return ""
    if path.endswith("\r"):
        return f", whose interpreter is {path!r}: its first line ends in a carriage return, as Windows writes it"
    return f", whose interpreter is {path!r}"


def reason(error: SpawnError, program: str, cwd: str, targets: Sequence[str]) -> str:
    """A failed spawn in words: what it was about, and what the system said."""
    if error.step == "exec":
        # The number, as in 0.0.1-alpha.1's text for exec, and only here: by it a client tells a
        # command that is not there (exit code 127) from one that cannot be executed (126).
        return f"{program}: {error.strerror} (os error {error.errno}){interpreter_of(error)}"
    if error.step == "working directory":
        return f"working directory {cwd}: {error.strerror}"
    if 0 <= error.item < len(targets) and error.step.startswith("mount"):
        return f"{error.step} of {targets[error.item]}: {error.strerror}"
    return f"{error.step}: {error.strerror}"

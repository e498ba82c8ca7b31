"""What a runtime does for containers: the line between what a container is and how it is run.

ProcessRuntime runs one as a plain process.  A runtime of the OCI kind (an outside
monitor that writes log and exit file, a program to call) fits the same shape: it
starts, says that something runs and how it ended, ends what is left, and finds all
that again after a restart of the agent.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Protocol

    from arcbox_agent.agent.containers.record import Record
    from arcbox_agent.agent.processes.cgroups import Cgroup
    from arcbox_agent.agent.processes.children import ExitStatus, Process, SpawnError
    from arcbox_agent.wire import Mount
else:
    Protocol = object


class StartError(Exception):
    """A container, or a command in one, could not be started; nothing is left of the attempt."""


class NotStarted:
    """After a restart of the agent: the start under way then did not come about."""

    __slots__ = ("error",)

    def __init__(self, error: str) -> None:
        self.error = error


class Scope(Protocol):
    """Everything that was started in one place: a cgroup, or a session."""

    def alive(self) -> bool: ...
    def pids(self) -> set[int]: ...
    def counted(self) -> dict[str, int]: ...
    def send_signal(self, sig: int) -> int: ...
    def kill(self) -> None: ...
    def remove(self) -> bool: ...


class Running(Protocol):
    """One run of a container, from its start until `close`."""

    pid: int
    start_time: int
    #: Everything the container started, commands of clients included.
    scope: Scope

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

    async def finish_output(self, timeout: float) -> bool:
        """After the end: the rest of the output is in the log; False: not all of it in time."""

    async def close(self) -> None:
        """After the end: nothing is left but log and record."""


class Place:
    """Where and as whom a command is run."""

    __slots__ = ("cwd", "env", "ids", "join_fd", "root", "scope", "within")

    def __init__(
        self,
        *,
        env: Mapping[str, str],
        cwd: str,
        ids: tuple[int, int, Sequence[int]] | None,
        root: str | None = None,
        join_fd: int = -1,
        scope: Cgroup | None = None,
        within: Process | None = None,
    ) -> None:
        self.env = env
        self.cwd = cwd
        self.ids = ids
        self.root = root
        #: A descriptor of the taker's own.
        self.join_fd = join_fd
        #: The cgroup to make a cgroup for the command in; None: there are none.
        self.scope = scope
        #: The main process of the container, with which the command ends; None: it is none of a container.
        self.within = within


class Runtime(Protocol):
    """How containers are run."""

    name: str
    #: Of the guest's present boot: what ran in another does not run any more.
    boot_id: str

    async def open(self) -> None:
        """Before anything else."""

    async def sweep(self, known: Iterable[str], running: Iterable[str]) -> None:
        """At start-up: remove what belongs to none of the containers that are known, or to a run that is over."""

    def check(self, record: Record, mounts: Sequence[Mount]) -> None:
        """Whether such a container can be; adds to `warnings`, fills `mounts`.  RequestError.  For a thread."""

    async def start(self, record: Record) -> Running:
        """StartError."""

    async def recover(self, record: Record) -> Running | NotStarted:
        """The run that `record` speaks of, after a restart of the agent; it may have ended."""

    def place(
        self, record: Record, running: Running, env: Mapping[str, str], cwd: str, user: str
    ) -> Callable[[], Place]:
        """To run a command in a running container.  What is returned looks at files: for a thread."""

    async def recover_output(self, record: Record) -> None:
        """After a restart of the agent, for a container that does not run: what waits for room in its log."""

    async def release(self, record: Record) -> None:
        """Let go of what the last run needed, where its `close` had to wait for the record of its end."""

    async def remove(self, record: Record) -> None:
        """For good: all that the runtime still has of a container that does not run."""

    async def close(self) -> None: ...


def system_reason(error: OSError) -> str:
    """A failed system call in words: about which file, where one is known, and what the system said."""
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text


def reason(error: SpawnError, program: str, cwd: str, targets: Sequence[str]) -> str:
    """A failed spawn in words: what it was about, and what the system said."""
    if error.step == "exec":
        # The number, as in 0.0.1-alpha.1's text for exec, and only here: by it a client tells a
        # command that is not there (exit code 127) or cannot be executed (126).
        return f"{program}: {error.strerror} (os error {error.errno})"
    if error.step == "working directory":
        return f"working directory {cwd}: {error.strerror}"
    if 0 <= error.item < len(targets) and error.step.startswith("mount"):
        return f"{error.step} of {targets[error.item]}: {error.strerror}"
    return f"{error.step}: {error.strerror}"

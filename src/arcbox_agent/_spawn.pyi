from collections.abc import Iterable, Sequence
from typing import final

STEPS: tuple[str, ...]
MAX_ITEMS: int

class SpawnError(Exception):
    """A process could not be started; nothing is left of the attempt."""

    errno: int
    step: str
    item: int
    interpreter: str
    strerror: str
    def __init__(self, errno: int, step: str, item: int = -1, interpreter: str = "") -> None: ...

@final
class Attempt:
    """One spawn, as another thread sees it."""

    #: Of the child; 0: it is not known, or there is none.
    pid: int
    #: It is with the kernel, or over.
    begun: bool
    #: Where it stands: one of STEPS, or `preparation` before.
    step: str
    def may_own(self, pid: int) -> bool:
        """Whether that child of the agent may be the one of this spawn."""

    def kill(self) -> None:
        """Kill the child where there is one.  The spawn then ends, unless the kernel cannot end it."""

    def cancel(self) -> None:
        """The same, and make none later: the spawn fails with ECANCELED."""

def spawn(
    *,
    programs: Iterable[str | bytes],
    argv: Iterable[str | bytes],
    env: Iterable[str | bytes],
    stdio: Sequence[int],
    keep_fd: int = -1,
    pid_fd: int = -1,
    cgroup_fd: int = -1,
    join_fd: int = -1,
    new_namespace: bool = False,
    new_session: bool = True,
    terminal: bool = False,
    reset_oom: bool = False,
    root: str | bytes | None = None,
    cwd: str | bytes | None = None,
    mounts: Sequence[tuple[str, str, str, str, bool, bool]] = (),
    ids: tuple[int, int, Sequence[int]] | None = None,
    rlimits: Sequence[tuple[int, int, int]] = (),
    attempt: Attempt | None = None,
) -> tuple[int, int]: ...
def take_status(pidfd: int) -> tuple[int, int] | None: ...
def exit_status(pidfd: int) -> int | None: ...
def readable_bytes(fd: int) -> int: ...
def widen(pipe: int, sizes: Sequence[int]) -> None: ...
def read_at(directory: int, path: str | bytes) -> bytes:
    """The first 4096 bytes of a small file of the kernel, below an open directory (-1: the current one).

    It takes one call from an open to a close.  OSError: which of them failed, and why.
    """

def open_in_root(root: int, path: str | bytes, flags: int) -> int: ...

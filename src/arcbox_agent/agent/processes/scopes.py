"""Scopes: everything that one process started, found and ended as a whole.

Each container has a scope, and each command one of its own.  Where there is a cgroup2 that
can be written it is a cgroup (cgroups.py), else the process's session and its descendants
(descendants.py).

    CGROUP2/NAME/@ID/            a container
    CGROUP2/NAME/@ID/.exec-N/    a command in it
    CGROUP2/NAME/.commands/      commands in the guest itself

An id may be the name of a file that the kernel has in each cgroup (`cgroup.procs`).  No such
file's name begins as those of the directories do.
"""

from __future__ import annotations

import os
import time

from arcbox_agent.agent.config import budget
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.processes import cgroups
from arcbox_agent.agent.processes.descendants import ProcessSession

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

log = Logger("containers")

#: The name of the scope of all commands in the guest.
COMMANDS = ".commands"

#: The name of a container's scope begins with this.  Earlier agents took the id alone.
CONTAINER_PREFIX = "@"

_DEFAULT_STATE_DIR = "/var/lib/arcbox-agent"


class Scope(Protocol):
    """Everything that one process started.  Each method looks at kernel memory only: for the `signals` lane."""

    #: Once it is empty another command may be born in it.
    reusable: bool

    def child(self, name: str) -> Scope:
        """The scope of a command within this one; it is not made yet."""

    def create(self, parents: bool = True) -> None:
        """Make it.  FileNotFoundError, without `parents`: the scope above it is gone."""

    def open(self) -> int:
        """The descriptor for a process to be born in it (SpawnSpec.cgroup_fd); -1: none is needed."""

    def keep_open(self) -> int:
        """The same, but the scope keeps it: for one that is `reusable`."""

    def bind(self, pid: int, start_time: int) -> None:
        """Its first process was spawned."""

    def alive(self) -> bool:
        """Whether anything runs in it.  Zombies do not count."""

    def pids(self) -> set[int]:
        """The processes in it."""

    def counted(self) -> dict[str, int]:
        """See Cgroup.counted."""

    def send_signal(self, sig: int) -> int:
        """To every process in it; returns how many there were."""

    def kill(self) -> None:
        """SIGKILL for every process in it, those included that fork meanwhile."""

    def frozen(self) -> bool:
        """Whether what is born in it would wait for somebody to thaw it."""

    def remove(self) -> bool:
        """Remove it; False: something runs in it."""

    def dissolve(self) -> None:
        """Remove it; what runs in it moves to the scope above."""


def end(scope: Scope) -> bool:
    """Kill what is in it, wait, remove it; False: something is left.  It blocks: for a thread."""
    scope.kill()
    give_up = time.monotonic() + budget.LEFTOVERS_KILLED
    while scope.alive() and time.monotonic() < give_up:
        time.sleep(0.01)
    return scope.remove()


class Scopes:
    """Where the scopes of one agent are: below a cgroup of its own; without cgroup2, sessions.

    Each method but `open` and `close` looks at kernel memory only.
    """

    __slots__ = ("_name", "_parent")

    def __init__(self, state_dir: str) -> None:
        self._name = cgroup_name(state_dir)
        self._parent: str | None = None

    def open(self) -> None:
        """Find out whether there is cgroup2.  It blocks: for a thread."""
        self._parent = cgroups.find_parent(self._name)
        if self._parent is None:
            log.warning("no cgroup2 that can be written: processes are followed by session and parent")

    def container(self, id: str) -> Scope:
        """The scope of a container; it is not made here."""
        if self._parent is None:
            return ProcessSession()
        return cgroups.Cgroup(os.path.join(self._parent, CONTAINER_PREFIX + id))

    def new_container(self, id: str) -> Scope:
        """The same, for a new run: what is left of a former one is ended.  It blocks: for a thread."""
        scope = self.container(id)
        if isinstance(scope, cgroups.Cgroup) and os.path.isdir(scope.path):
            # Left by an agent that was killed.  Whatever is born (CLONE_INTO_CGROUP) in a cgroup
            # that was ever written to by cgroup.kill is killed at birth, as of Linux 6.18.
            end(scope)
        return scope

    def adopted_container(self, id: str, pid: int, start_time: int) -> Scope:
        """The scope of a run that a former agent started with this process."""
        if self._parent is not None:
            # The second: as earlier agents named it.
            for name in (CONTAINER_PREFIX + id, id):
                path = os.path.join(self._parent, name)
                if os.path.isdir(path):
                    return cgroups.Cgroup(path)
        return ProcessSession(pid, start_time)  # there may be cgroup2 now, but there was none then

    def commands(self) -> Scope:
        """The scope of all commands in the guest itself."""
        if self._parent is None:
            return ProcessSession()
        return cgroups.Cgroup(os.path.join(self._parent, COMMANDS))

    def sweep(self, keep: set[str], running: set[str]) -> None:
        """End the containers but those in `keep`, and every command that was not detached.

        `running`: of these a scope may have the name that earlier agents gave it.

        It blocks: for a thread.
        """
        if self._parent is None:
            return
        for entry in list(os.scandir(self._parent)):
            if not entry.is_dir(follow_symlinks=False):
                continue
            name = entry.name
            kept = name[1:] in keep if name.startswith(CONTAINER_PREFIX) else name == COMMANDS or name in running
            if not kept:
                log.info("ending what a container left", cgroup=entry.path)
                end(cgroups.Cgroup(entry.path))
                continue
            # The clients of the former agent's commands are gone with it.
            try:
                inside = list(os.scandir(entry.path))
            except FileNotFoundError:
                continue  # the adopted container has ended meanwhile
            for below in inside:
                if below.name.startswith(cgroups.COMMAND_PREFIX):
                    end(cgroups.Cgroup(below.path))

    def close(self) -> None:
        """Remove the agent's cgroup where nothing is in it."""
        if self._parent is None:
            return
        for path in (os.path.join(self._parent, COMMANDS), self._parent):
            try:
                os.rmdir(path)
            except FileNotFoundError:
                continue  # no command was ever run
            except OSError:
                return  # containers or commands go on in it


def cgroup_name(state_dir: str) -> str:
    """The agent's cgroup: agents with different state directories must not sweep each other's."""
    if state_dir == _DEFAULT_STATE_DIR:
        return "arcbox"
    import zlib  # a shared library that only a state directory elsewhere needs

    return f"arcbox-{zlib.crc32(os.path.realpath(state_dir).encode()):08x}"

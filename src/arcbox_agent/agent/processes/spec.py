"""What to spawn."""

from __future__ import annotations

import errno
import os
import resource
import signal

from arcbox_agent._spawn import SpawnError, spawn
from arcbox_agent.agent.processes.stat_line import start_time_in, start_time_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from arcbox_agent._spawn import Attempt

# The limits that the agent was started with.  The agent raises its own; its children get these, because
# programs that use select(), or close every possible descriptor, rely on a low limit.
_NOFILE = resource.getrlimit(resource.RLIMIT_NOFILE)
_CORE = resource.getrlimit(resource.RLIMIT_CORE)

#: How many resources Linux has limits for, numbered from 0.
_RLIMITS = 16


#: Of a program with a terminal: without one, top, less and editors refuse to start.
DEFAULT_TERM = "xterm"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: The most directories of a PATH that are searched.
MAX_PATH = 256


def complete(name: str, env: Mapping[str, str], home: str, *, terminal: bool = False) -> tuple[list[str], list[str]]:
    """What a client's program is spawned with: its PATH, HOME and TERM, and nothing of the agent's own environment.

    Gives the paths to try for the program `name`, in order, and its environment as KEY=VALUE.

    The environment is `env`, with a default for PATH and HOME, and for TERM with a terminal.  The paths are those that
    execvp(3) finds in its PATH.
    """
    whole = {"PATH": DEFAULT_PATH, "HOME": home, **({"TERM": DEFAULT_TERM} if terminal else {}), **env}
    if "/" in name:
        programs = [name]
    else:
        programs = [f"{directory or '.'}/{name}" for directory in whole["PATH"].split(":")[:MAX_PATH]]
    return programs, [f"{key}={value}" for key, value in whole.items()]


class SpawnSpec:
    """What to start.

    It owns every descriptor named here but those in `lent`: a spawn closes them, whether it succeeds or fails.
    """

    __slots__ = (
        "argv",
        "cgroup_fd",
        "cwd",
        "env",
        "ids",
        "join_fd",
        "keep_fd",
        "lent",
        "mounts",
        "new_namespace",
        "own_limits",
        "pid_fd",
        "programs",
        "root",
        "stdio",
        "terminal",
    )

    def __init__(
        self,
        argv: Sequence[str | bytes],
        *,
        stdio: tuple[int, int, int] = (-1, -1, -1),
        env: Iterable[str | bytes] = (),
        programs: Sequence[str | bytes] | None = None,
        cwd: str | None = None,
        root: str | None = None,
        mounts: Sequence[tuple[str, str, str, str, bool, bool]] = (),
        new_namespace: bool = False,
        join_fd: int = -1,
        ids: tuple[int, int, Sequence[int]] | None = None,
        terminal: bool = False,
        keep_fd: int = -1,
        pid_fd: int = -1,
        cgroup_fd: int = -1,
        own_limits: bool = False,
    ) -> None:
        self.argv = argv
        self.env = env
        #: Tried in order; without them argv[0], as it stands.
        self.programs = programs if programs is not None else argv[:1]
        #: stdin, stdout, stderr; filled in before the spawn at the latest.
        self.stdio = stdio
        self.cwd = cwd
        self.root = root
        self.mounts = mounts
        self.new_namespace = new_namespace
        self.join_fd = join_fd
        self.ids = ids
        self.terminal = terminal
        self.keep_fd = keep_fd
        self.pid_fd = pid_fd
        self.cgroup_fd = cgroup_fd
        self.lent: set[int] = set()
        #: The child keeps the limits of the agent, and its protection from the OOM killer: for a part of the agent.
        self.own_limits = own_limits

    def descriptors(self) -> set[int]:
        fds = {*self.stdio, self.keep_fd, self.pid_fd, self.cgroup_fd, self.join_fd}
        fds.discard(-1)
        return fds

    def run(self, attempt: Attempt | None = None) -> tuple[int, int, int]:
        """Spawn; (pid, pidfd, start time).  It blocks: for a thread.  `attempt` tells another one where it stands.

        The start time is 0 for a process in a cgroup and without a pid file: its cgroup finds it, and
        no later agent looks for it.
        """
        dated = self.pid_fd >= 0 or self.cgroup_fd < 0
        start_time = 0
        try:
            pid, pidfd = spawn(
                programs=self.programs,
                argv=self.argv,
                env=self.env,
                stdio=self.stdio,
                keep_fd=self.keep_fd,
                pid_fd=self.pid_fd,
                cgroup_fd=self.cgroup_fd,
                join_fd=self.join_fd,
                new_namespace=self.new_namespace,
                terminal=self.terminal,
                reset_oom=not self.own_limits and _has_oom_score_adj(),
                root=self.root,
                cwd=self.cwd,
                mounts=self.mounts,
                ids=self.ids,
                rlimits=() if self.own_limits else _rlimits(),
                attempt=attempt,
            )
            if self.pid_fd >= 0:
                # The child has written its stat line there, so no file has to be opened.
                start_time = start_time_in(os.pread(self.pid_fd, 4096, 0))
        finally:
            self.close()
        if start_time or not dated:
            return pid, pidfd, start_time
        try:
            # The zombie stays until the loop takes its status, so the number is still its own.
            return pid, pidfd, start_time_of(pid) or 0
        except OSError as error:
            # No descriptor is left to read /proc with.  A process without a start time cannot be told
            # from a later one of the same pid, so it must not run; and it has no owner yet.
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)
            raise SpawnError(error.errno or errno.EIO, "clone") from error

    def plan(self, keeper: int) -> tuple[dict[str, Any], list[int]]:
        """The arguments of `spawn` for the keeper, as marshal takes them, and descriptors, which stay this spec's.

        `keeper`: its pid, for it may have the limits of another agent; 0: not known.
        A descriptor is given by its index among the keeper's, of which the first two are not the spec's.
        """
        fds = sorted(self.descriptors())
        index = {-1: -1, **{fd: at for at, fd in enumerate(fds, 2)}}
        uid, gid, groups = self.ids or (0, 0, ())
        plan = {
            "programs": [os.fsencode(each) for each in self.programs],
            "argv": [os.fsencode(each) for each in self.argv],
            "env": [os.fsencode(each) for each in self.env],
            "stdio": tuple(index[fd] for fd in self.stdio),
            "keep_fd": index[self.keep_fd],
            "pid_fd": index[self.pid_fd],
            "cgroup_fd": index[self.cgroup_fd],
            "join_fd": index[self.join_fd],
            "new_namespace": self.new_namespace,
            "terminal": self.terminal,
            "root": self.root,
            "cwd": self.cwd,
            "mounts": [tuple(each) for each in self.mounts],
            "ids": (uid, gid, list(groups)) if self.ids is not None else None,
            "rlimits": _rlimits_beside(keeper),
        }
        return plan, fds

    def close(self) -> None:
        for fd in self.descriptors() - self.lent:
            os.close(fd)
        self.stdio = (-1, -1, -1)
        self.keep_fd = self.pid_fd = self.cgroup_fd = self.join_fd = -1


def _rlimits() -> list[tuple[int, int, int]]:
    """The limits that the agent changed for itself, as (resource, soft, hard): a child gets the former ones."""
    wanted = ((resource.RLIMIT_NOFILE, _NOFILE), (resource.RLIMIT_CORE, _CORE))
    return [(which, *limit) for which, limit in wanted if resource.getrlimit(which) != limit]


def _rlimits_beside(keeper: int) -> list[tuple[int, int, int]]:
    """As _rlimits, for a child that would have those of the keeper."""
    changed = {resource.RLIMIT_NOFILE: _NOFILE, resource.RLIMIT_CORE: _CORE}
    if not keeper:
        return [(which, *limit) for which, limit in changed.items()]
    found = []
    for which in range(_RLIMITS):
        limit = changed.get(which) or resource.getrlimit(which)
        if limit != resource.prlimit(keeper, which):
            found.append((which, *limit))
    return found


_reset_oom: bool | None = None


def _has_oom_score_adj() -> bool:
    """Whether the agent is protected from the OOM killer, as its children must not be.

    Asked once, at the first spawn: it is set when the agent starts, if at all.
    """
    global _reset_oom
    if _reset_oom is None:
        try:
            with open("/proc/self/oom_score_adj", "rb") as file:
                _reset_oom = int(file.read()) != 0
        except OSError:
            _reset_oom = False
    return _reset_oom

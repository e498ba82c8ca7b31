"""The spawn of a container by the keeper, which is its parent then, and outlives the agent.

Where there is no keeper, or it cannot, the agent spawns the container itself.
"""

from __future__ import annotations

import errno
import marshal
import os
import signal
import socket
import sys

from arcbox_agent._spawn import SpawnError
from arcbox_agent.agent.containers.runtimes.process import pid_file
from arcbox_agent.agent.processes.stat_line import start_time_in, start_time_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from arcbox_agent._spawn import Attempt
    from arcbox_agent.agent.processes.children import Process, Processes
    from arcbox_agent.agent.processes.keeper import Keeper
    from arcbox_agent.agent.processes.spawning import Late
    from arcbox_agent.agent.processes.spec import SpawnSpec

_OUTCOME = 4096


class EndedUnseenError(Exception):
    """The keeper was killed during the spawn, and what it had started has ended."""

    def __init__(self, pid: int, start_time: int) -> None:
        super().__init__(pid)
        self.pid = pid
        self.start_time = start_time


class Spawning:
    """One spawn.  `generation`: of the keeper that has the child, and holds its pidfd; 0: none."""

    __slots__ = ("_keeper", "_key", "_kill", "_late", "_pid_path", "_share", "_spec", "generation")

    def __init__(
        self,
        keeper: Keeper,
        key: str,
        spec: SpawnSpec,
        pid_path: str,
        kill: Callable[[], None] | None = None,
        late: Late | None = None,
        share: str | None = None,
    ) -> None:
        """`key`: of the keeper.  `share`: whose share of the lanes it has.  `kill`, `late`: see Processes.spawn_by."""
        self._keeper = keeper
        self._key = key
        self._spec = spec
        self._kill = kill
        self._pid_path = pid_path
        self._late = late
        self._share = share
        self.generation = 0

    async def run(self, processes: Processes) -> Process:
        """As Processes.spawn.  EndedUnseenError."""
        return await processes.spawn_by(
            self._run,
            self._spec.close,
            outlives=True,
            ask=lambda pid: self._keeper.exit_of(self._key, pid),
            key=self._share,
            late=self._late,
            kill=self._kill,
        )

    def _run(self, attempt: Attempt) -> tuple[int, int, int]:
        """See SpawnSpec.run."""
        self.generation = self._keeper.generation
        answer = self._order()
        if answer is None:
            self.generation = 0
            return self._spec.run(attempt)
        with answer:
            outcome = _receive(answer)
        if outcome is None:
            self.generation = 0
            return self._find_out(attempt)
        try:
            words, pidfd = outcome
            if len(words) > 1:
                raise SpawnError(*words)
            (pid,) = words
            if pidfd < 0:
                try:
                    pidfd = os.pidfd_open(pid)
                except OSError as error:
                    # No descriptor is left.  Its parent takes its status only when the key is dropped, so the
                    # pid is still its own.
                    os.kill(pid, signal.SIGKILL)
                    raise SpawnError(error.errno or errno.EMFILE, "clone") from error
            return pid, pidfd, start_time_in(os.pread(self._spec.pid_fd, 4096, 0))
        finally:
            self._spec.close()

    def _order(self) -> socket.socket | None:
        """Have the keeper spawn; where the outcome comes.  None: it does not."""
        try:
            plan, fds = self._spec.plan(self._keeper.pid)
        except OSError:
            return None  # the keeper is gone
        try:
            file = _in_memory(marshal.dumps(plan))
        except OSError:
            return None
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            os.close(file)
            return None
        try:
            reply, _ = self._keeper.line.exchange(b"s" + self._key.encode(), [file, theirs.detach()], fds)
        except OSError:
            # Perhaps it has the order all the same: the other end of the socket tells.
            return ours
        except BaseException:
            ours.close()
            raise
        if reply == b"ok":
            return ours
        ours.close()
        return None

    def _find_out(self, attempt: Attempt) -> tuple[int, int, int]:
        """The keeper was killed: the pid file tells whether there is a child."""
        spec = self._spec
        # Its lock is the child's alone then, until the child has its program.
        os.close(spec.pid_fd)
        spec.pid_fd = -1
        try:
            found = pid_file.wait(self._pid_path)
            if not isinstance(found, tuple):
                spec.pid_fd = pid_file.create(self._pid_path)
                return spec.run(attempt)
            pid, start_time = found
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                raise EndedUnseenError(pid, start_time) from None
            if start_time_of(pid) != start_time:
                os.close(pidfd)
                raise EndedUnseenError(pid, start_time)
            return pid, pidfd, start_time
        finally:
            spec.close()


def _receive(answer: socket.socket) -> tuple[tuple[Any, ...], int] | None:
    """What became of a spawn: (pid,) and the pidfd, or what SpawnError takes and -1; None: the keeper was killed."""
    try:
        packet, ancillary, _, _ = answer.recvmsg(_OUTCOME, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return None
    if not packet:
        return None
    pidfd = -1
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(data) >= 4:
            pidfd = int.from_bytes(data[:4], sys.byteorder)
    return marshal.loads(packet), pidfd


def _in_memory(octets: bytes) -> int:
    file = os.memfd_create("plan", os.MFD_CLOEXEC)
    try:
        rest = memoryview(octets)
        while rest:
            rest = rest[os.write(file, rest) :]
    except BaseException:
        os.close(file)
        raise
    return file

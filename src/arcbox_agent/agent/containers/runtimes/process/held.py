"""What of a running container outlives the agent, to be given to another keeper where one was killed."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Iterable

    from arcbox_agent.agent.processes.children import Process
    from arcbox_agent.agent.processes.status import ExitStatus


class Held:
    """`fifos`: their paths.  `master`: of its terminal, duplicated here; None: it has none."""

    __slots__ = ("_fifos", "_master", "_process", "end")

    def __init__(self, fifos: Iterable[str], master: int | None) -> None:
        self._fifos = list(fifos)
        self._master = os.dup(master) if master is not None else -1
        self._process: Process | None = None
        #: Its pid and wait status, once it has ended.
        self.end: tuple[int, int] | None = None

    def follow(self, process: Process) -> None:
        """Its main process, once there is one."""
        self._process = process
        process.ended.add_done_callback(self._ended)

    def _ended(self, ended: Future[ExitStatus]) -> None:
        if self._process is not None and not ended.cancelled() and not ended.result().lost:
            self.end = self._process.pid, ended.result().wait_status

    def descriptors(self) -> list[int]:
        fds: list[int] = []
        try:
            for path in self._fifos:
                fds.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW))
            if self._master >= 0:
                fds.append(os.dup(self._master))
            if self._process is not None and self._process.pidfd >= 0:
                fds.append(os.dup(self._process.pidfd))
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    def close(self) -> None:
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

"""One epoll instance, and a callback for each descriptor."""

from __future__ import annotations

import select
from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
#: Always reported where a descriptor is watched, asked for or not.
HANGUP = select.EPOLLHUP | select.EPOLLERR


class Poller:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, tuple[int, Callable[[int], None]]] = {}

    def watch(self, fd: int, mask: int, callback: Callable[[int], None]) -> None:
        """Calls `callback(events)` from now on.  A mask of 0 tells of a hang-up alone."""
        known = self._callbacks.get(fd)
        if known is None:
            self._epoll.register(fd, mask)
        elif known[0] != mask:
            self._epoll.modify(fd, mask)
        self._callbacks[fd] = (mask, callback)

    def forget(self, fd: int) -> None:
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def run_once(self, timeout: float | None) -> None:
        for fd, events in self._epoll.poll(-1 if timeout is None else timeout):
            # An earlier callback of this round may have closed it.
            known = self._callbacks.get(fd)
            if known is not None:
                known[1](events)

"""Waits for the descriptors of processes: their ends, and their output.

They are in an epoll set of their own, and only that set is watched by the event loop: uvloop's
add_reader and remove_reader of one descriptor are seven system calls and three objects.
"""

from __future__ import annotations

import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

#: A descriptor that is readable wakes once: who does not read yet must not be woken without end.
_ONCE = select.EPOLLIN | select.EPOLLONESHOT

#: The most that are woken before the other work of the loop has its turn.
_A_TURN = 64


class Ready:
    """One epoll set.  Each descriptor has one waiter."""

    __slots__ = ("_loop", "_set", "_wakes")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._set = select.epoll()
        self._wakes: dict[int, Callable[[], None]] = {}
        loop.add_reader(self._set.fileno(), self._look)

    def once(self, fd: int, wake: Callable[[], None]) -> None:
        """Call `wake` when `fd` is readable or at its end, once.  Before it is closed: `forget`.  OSError."""
        if fd in self._wakes:
            self._set.modify(fd, _ONCE)
        else:
            self._set.register(fd, _ONCE)
        self._wakes[fd] = wake

    def forget(self, fd: int) -> None:
        if self._wakes.pop(fd, None) is not None:
            self._set.unregister(fd)

    def close(self) -> None:
        if not self._set.closed:
            self._loop.remove_reader(self._set.fileno())
            self._set.close()
            self._wakes.clear()

    def _look(self) -> None:
        for fd, _ in self._set.poll(0, _A_TURN):
            wake = self._wakes.get(fd)  # an earlier one may have forgotten it
            if wake is not None:
                wake()

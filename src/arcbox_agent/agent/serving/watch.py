"""What only time brings about: half a frame, idleness, a peer that went away unseen.

One timer looks after all connections, and runs only while one of them asks for it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle
    from typing import Protocol

    class Watched(Protocol):
        def check(self, now: float) -> bool:
            """Do what is due at `now` (loop time); whether to go on watching."""


class Watch:
    """`interval`: seconds from one look to the next."""

    __slots__ = ("_interval", "_loop", "_timer", "watched")

    def __init__(self, loop: AbstractEventLoop, interval: float) -> None:
        self._loop = loop
        self._interval = interval
        self._timer: TimerHandle | None = None
        self.watched: set[Watched] = set()

    def add(self, watched: Watched) -> None:
        """Look at it now and then, until its `check` says that it needs no more."""
        self.watched.add(watched)
        if self._timer is None:
            self._timer = self._loop.call_later(self._interval, self._look)

    def discard(self, watched: Watched) -> None:
        self.watched.discard(watched)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        for watched in list(self.watched):
            if not watched.check(now):
                self.watched.discard(watched)
        if self.watched:
            self._timer = self._loop.call_later(self._interval, self._look)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

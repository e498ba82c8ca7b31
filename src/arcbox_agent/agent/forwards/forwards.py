"""All forwards of the agent: how many there are, and the connections that wait to be picked up."""

from __future__ import annotations

import os
from asyncio import get_running_loop

from arcbox_agent.agent.forwards.relay import reset
from arcbox_agent.errors import BusyError, NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from asyncio import TimerHandle
    from collections.abc import Callable

    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.metrics import Metrics

#: Seconds that an accepted connection waits for its AcceptRequest.
PICKED_UP_IN = 10.0


class Waiting:
    """An accepted connection that nobody has picked up yet.  `left`: called when it has gone, whatever way."""

    __slots__ = ("left", "sock", "timer")

    def __init__(self, sock: socket.socket, timer: TimerHandle, left: Callable[[str], None]) -> None:
        self.sock = sock
        self.timer = timer
        self.left = left


class Forwards:
    """`settings`: max_forwards bounds streams and listeners together."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._loop = get_running_loop()
        self._open = 0
        self._waiting: dict[str, Waiting] = {}
        metrics.gauge("forwards", lambda: self._open, "Forwarded connections and their listeners now.")

    def enter(self) -> None:
        """One more begins; `leave` ends it.  BusyError: there are too many."""
        most = self._settings.max_forwards
        if self._open >= most:
            self._metrics.add("bound_forwards")
            raise BusyError(f"max_forwards = {most} connections and listeners are forwarded already: try again later")
        self._open += 1

    def leave(self) -> None:
        self._open -= 1

    def keep(self, sock: socket.socket, left: Callable[[str], None]) -> str:
        """Keep an accepted connection for PICKED_UP_IN seconds; the id to pick it up with."""
        id = os.urandom(8).hex()
        self._waiting[id] = Waiting(sock, self._loop.call_later(PICKED_UP_IN, self.drop, id), left)
        return id

    def take(self, id: str) -> socket.socket:
        """Pick up a connection.  NotFoundError."""
        waiting = self._waiting.pop(id, None)
        if waiting is None:
            raise NotFoundError(f"connection not found: {id}: it was picked up, or waited for too long")
        waiting.timer.cancel()
        waiting.left(id)
        return waiting.sock

    def drop(self, id: str) -> None:
        """Close a connection that nobody has picked up."""
        waiting = self._waiting.pop(id, None)
        if waiting is None:
            return
        waiting.timer.cancel()
        reset(waiting.sock)
        waiting.sock.close()
        waiting.left(id)

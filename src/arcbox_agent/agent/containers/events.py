"""What happens to containers, as events: one bounded ring of them, and who learns of each.

A subscriber is called with every event, at once.  A listener is called for the events of one
container, and looks for itself what has changed.  A reader takes the events of one container
from the ring at its own pace, and learns how many it may have missed where the ring has
gone on without it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from itertools import islice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_agent.agent.containers.lifecycle import Kind
    from arcbox_agent.errors import RequestError

#: Events that the ring keeps: a quarter of a mebibyte at most.
RING = 1024


class Exit:
    """How a container ended: `code` is 128 + `signal` where a signal ended it; `lost`: the agent did not see it.

    `output_cut`: its last output may be missing: what passed it on was killed, or nobody held it.
    """

    __slots__ = ("code", "error", "lost", "output_cut", "signal")

    def __init__(self, code: int, signal: int, error: str, lost: bool = False, output_cut: bool = False) -> None:
        self.code = code
        self.signal = signal
        self.error = error
        self.lost = lost
        self.output_cut = output_cut


class Event:
    """One event: of which container, in which of its runs, and how it had ended by then."""

    __slots__ = ("exit", "id", "kind", "name", "number", "pid", "run", "time_ns")

    def __init__(self, kind: Kind, id: str, name: str, run: int, pid: int, exit: Exit) -> None:
        #: Its place in the order of all events of this agent; the ring sets it.
        self.number = -1
        self.time_ns = time.time_ns()
        self.kind = kind
        self.id = id
        self.name = name
        #: The number of the run, from 1.
        self.run = run
        self.pid = pid
        self.exit = exit


class Events:
    """The ring, and all who learn of what goes into it."""

    def __init__(self, size: int = RING) -> None:
        self._ring: deque[Event] = deque(maxlen=size)
        #: The number of the next event.
        self.end = 0
        self._subscribers: list[Callable[[Event], None]] = []
        #: By container.  Dicts as sets that keep their order.
        self._listeners: dict[str, dict[Callable[[], None], None]] = {}
        self._closed: RequestError | None = None

    def publish(self, event: Event) -> None:
        event.number = self.end
        self.end += 1
        self._ring.append(event)
        for subscriber in self._subscribers:
            subscriber(event)
        for listener in list(self._listeners.get(event.id, ())):
            listener()

    def subscribe(self, subscriber: Callable[[Event], None]) -> None:
        """`subscriber(event)` is called with every event from now on; it must not raise."""
        self._subscribers.append(subscriber)

    def listen(self, id: str, listener: Callable[[], None]) -> None:
        """`listener()` is called after each event of container `id`."""
        self._listeners.setdefault(id, {})[listener] = None

    def unlisten(self, id: str, listener: Callable[[], None]) -> None:
        """The end of `listen`; nothing where it has ended already."""
        listeners = self._listeners.get(id)
        if listeners is not None:
            listeners.pop(listener, None)
            if not listeners:
                del self._listeners[id]

    def read(self, cursor: int, id: str) -> tuple[int, list[Event]]:
        """The events of container `id` from number `cursor` on, and how many events (of all) the ring no longer has."""
        missed = max(0, self.end - len(self._ring) - cursor)
        # From the back: a reader is seldom far behind.
        recent = islice(reversed(self._ring), max(0, self.end - cursor))
        found = [event for event in recent if event.id == id]
        found.reverse()
        return missed, found

    def reader(self, id: str) -> Reader:
        """Reads the events of container `id` that are published from now on."""
        return Reader(self, id)

    def close(self, error: RequestError) -> None:
        """End every reader with `error`."""
        self._closed = error
        for listeners in list(self._listeners.values()):
            for listener in list(listeners):
                listener()

    def check_open(self) -> None:
        """Raises what `close` was given."""
        if self._closed is not None:
            raise self._closed


class Reader:
    """A cursor in the ring, for the events of one container."""

    __slots__ = ("_cursor", "_events", "_id", "_waiter")

    def __init__(self, events: Events, id: str) -> None:
        self._events = events
        self._id = id
        self._cursor = events.end
        self._waiter: asyncio.Future[None] | None = None

    async def next(self) -> tuple[int, list[Event]]:
        """Waits for the next events of the container; how many events of all containers are lost to it, and those.

        Where some are lost, the list may be empty: the container itself tells what has become of it.
        The error that Events.close was given.
        """
        events = self._events
        while True:
            events.check_open()
            missed, found = events.read(self._cursor, self._id)
            self._cursor = events.end
            if missed or found:
                return missed, found
            waiter = self._waiter = asyncio.get_running_loop().create_future()
            events.listen(self._id, self._wake)
            try:
                await waiter
            finally:
                events.unlisten(self._id, self._wake)

    def _wake(self) -> None:
        assert self._waiter is not None
        if not self._waiter.done():
            # None of the events before this one is of our container.
            self._cursor = self._events.end - 1
            self._waiter.set_result(None)

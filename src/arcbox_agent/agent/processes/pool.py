"""A pool of threads of which nobody's hanging work takes more than a share.

Work has a key: the container for which it is done, or None for the guest and the agent itself.
Of one key some run at once and a bounded number wait; of all keys together so many run that
threads for None are left.  Work that runs for longer than SLOW does not count as running any
more: another thread takes its place.  So what hangs costs the others nothing but that time.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections import deque
from queue import SimpleQueue

from arcbox_agent.errors import BusyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar, TypeVarTuple

    T = TypeVar("T")
    Ts = TypeVarTuple("Ts")

#: Seconds after which work counts as slow.
SLOW = 0.03

#: Seconds after which work counts as hanging.
HANGS = 1.0

#: The most threads beside those of a pool that slow work may hold.
MOST_SLOW = 120


class Work:
    """What one thread does."""

    __slots__ = ("args", "begun", "dropped", "fn", "future", "key", "late")

    def __init__(
        self,
        key: str | None,
        future: asyncio.Future[Any],
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        late: Callable[[Any, BaseException | None], None] | None,
        dropped: Callable[[], None] | None,
    ) -> None:
        self.key = key
        self.future = future
        self.fn = fn
        self.args = args
        self.late = late
        self.dropped = dropped
        #: Loop time; 0: it waits.
        self.begun = 0.0


class Pool:
    """`threads` for all work that is not slow, `share` for that of one key, `reserved` for that of no key.

    `waiting`: the most work of one key that waits for a thread; a quarter of it, where all that runs of
    that key hangs.  Only the loop's thread calls it, and it alone decides what runs.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, name: str, threads: int, share: int, reserved: int, waiting: int
    ) -> None:
        self._loop = loop
        self._name = name
        self._size = threads
        self._share = share
        self._reserved = reserved
        self._most_waiting = waiting
        self._threads = 0
        self._number = 0
        self._closed = False
        #: What threads take: work, or None to end.
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._running: set[Work] = set()
        #: How much of each key runs, slow or not.
        self._by_key: dict[str | None, int] = {}
        self._waiting: dict[str | None, deque[Work]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def submit(
        self,
        key: str | None,
        fn: Callable[[*Ts], T],
        *args: *Ts,
        late: Callable[[T | None, BaseException | None], None] | None = None,
        dropped: Callable[[], None] | None = None,
    ) -> asyncio.Future[T]:
        """Run `fn(*args)` in a thread.  BusyError: too much of that key waits.  OSError: there is no thread.

        The future may be cancelled, or given an exception, by who waits no longer.  Then `late` gets
        the result or the error in the end; `dropped` is called where it never ran, and then nothing
        of it will.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        work = Work(key, future, fn, args, late, dropped)
        if not self._waiting and self._has_room(key):
            self._begin(work)
            return future
        waiting = self._waiting.setdefault(key, deque())
        most = self._most_waiting // 4 if self._hangs(key) else self._most_waiting
        if len(waiting) >= most:
            whose = f"in container {key}" if key is not None else "in the guest"
            raise BusyError(f"{len(waiting)} calls {whose} wait already for others that are under way: try again later")
        waiting.append(work)
        future.add_done_callback(lambda _: self._leave(work))
        self._begin_waiting()
        return future

    def waits(self, future: asyncio.Future[Any]) -> bool:
        """Whether the work of that future has not begun."""
        return any(work.future is future for waiting in self._waiting.values() for work in waiting)

    def close(self) -> None:
        """Begin no more, and drop what waits.  Threads that hang are left."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for waiting in list(self._waiting.values()):
            for work in list(waiting):
                work.future.cancel()
                self._leave(work)
        for _ in range(self._threads):
            self._queue.put(None)

    # --------------------------------------------------------- private

    def _hangs(self, key: str | None) -> bool:
        """Whether all hangs that runs of that key."""
        long_ago = self._loop.time() - HANGS
        return all(work.begun < long_ago for work in self._running if work.key == key)

    def _has_share(self, key: str | None) -> bool:
        return key is None or self._by_key.get(key, 0) < self._share

    def _has_room(self, key: str | None) -> bool:
        if not self._has_share(key):
            return False
        room = self._size if key is None else self._size - self._reserved
        if len(self._running) < room:
            return True
        long_ago = self._loop.time() - SLOW
        # Those of a key have to leave room for None, and not the other way round.
        counted = self._running if key is None else [work for work in self._running if work.key is not None]
        quick = sum(work.begun > long_ago for work in counted)
        slow = len(self._running) - sum(work.begun > long_ago for work in self._running)
        if key is not None and slow >= MOST_SLOW:
            return len(counted) < room
        return quick < room and slow < 2 * MOST_SLOW

    def _begin(self, work: Work) -> None:
        work.begun = self._loop.time()
        self._running.add(work)
        self._by_key[work.key] = self._by_key.get(work.key, 0) + 1
        if len(self._running) > self._threads:
            try:
                self._start_thread()
            except RuntimeError as error:
                # A container that forks without end uses up the threads of the system, and must not
                # keep the agent from ending it: what threads there are do the work in turn.
                if not self._threads:
                    self._forget(work)
                    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
        self._queue.put(work)

    def _start_thread(self) -> None:
        # A daemon: one that hangs must not keep the interpreter from ending.
        threading.Thread(target=self._work, name=f"{self._name}_{self._number}", daemon=True).start()
        self._number += 1
        self._threads += 1

    def _forget(self, work: Work) -> None:
        self._running.discard(work)
        left = self._by_key[work.key] - 1
        if left:
            self._by_key[work.key] = left
        else:
            del self._by_key[work.key]

    def _leave(self, work: Work) -> None:
        """Nobody waits for it any more.  Where it has not begun, it never does."""
        waiting = self._waiting.get(work.key)
        if work.begun or waiting is None or work not in waiting:
            return
        waiting.remove(work)
        if not waiting:
            del self._waiting[work.key]
        if work.dropped is not None:
            work.dropped()

    def _begin_waiting(self) -> None:
        """Begin what there is room for: of each key in turn, of those first that have the least running."""
        while self._waiting:
            keys = [key for key in self._waiting if self._has_room(key)]
            if not keys:
                break
            key = min(keys, key=lambda key: self._by_key.get(key, 0))
            waiting = self._waiting.pop(key)
            work = waiting.popleft()
            if waiting:
                self._waiting[key] = waiting  # behind the others
            try:
                self._begin(work)
            except OSError as error:
                work.future.set_exception(error)
                if work.dropped is not None:
                    work.dropped()
        if self._timer is None and not self._closed and any(map(self._has_share, self._waiting)):
            self._timer = self._loop.call_later(SLOW, self._look_again)

    def _look_again(self) -> None:
        """What runs may have become slow meanwhile."""
        self._timer = None
        self._begin_waiting()

    def _done(self, work: Work, result: Any, error: BaseException | None) -> None:
        self._forget(work)
        if work.future.done():
            if work.late is not None:
                work.late(result, error)
        elif error is not None:
            work.future.set_exception(error)
        else:
            work.future.set_result(result)
        if self._waiting:
            self._begin_waiting()
        if self._threads > max(self._size, len(self._running)) and not self._closed:
            self._threads -= 1
            self._queue.put(None)

    # ------------------------------------------------------ in a thread

    def _work(self) -> None:
        post = self._loop.call_soon_threadsafe
        while (work := self._queue.get()) is not None:
            result: Any = None
            failure: BaseException | None = None
            try:
                result = work.fn(*work.args)
            except BaseException as error:
                failure = error
            try:
                post(self._done, work, result, failure)
            except RuntimeError:
                return  # the loop is closed: the agent has ended
            del work, result, failure

"""Follows logs for clients: many followers of one log share one reader and one encoding.

    file --Cursor--> Flow --batches--> Follow, Follow, Follow ... --> connections

A flow keeps the last batches only until every follower has taken them, and at
most RING_LIMIT bytes.  A follower that has not taken the oldest one by then is
let go, with a cursor where it stands: it reads the file for itself until it has
caught up, and then joins again.  So a slow follower costs its own place and
nothing else, and holds up nobody.
"""

from __future__ import annotations

import asyncio
import time

from arcbox_agent._logs import BLOCKED, END, with_trace
from arcbox_agent.agent.logs.cursor import Cursor
from arcbox_agent.agent.logs.inotify import Inotify
from arcbox_agent.logs.reader import LogReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.logs.inotify import Watch
    from arcbox_agent.agent.metrics import Metrics

RING_LIMIT = 1 << 20
#: Logs that are read whole into memory at once, one reply each; more wait in line.
WHOLE_AT_ONCE = 4

#: Lines written at the very time of `until` have this long to arrive.
UNTIL_GRACE = 0.2


class Options:
    """What a client wants of a log; equal ones can share a flow."""

    __slots__ = ("since", "stderr", "stdout", "tail", "timestamps", "trace", "until", "version")

    def __init__(
        self,
        *,
        version: int = 1,
        trace: bytes = b"",
        stdout: bool = True,
        stderr: bool = True,
        tail: int = 0,
        since: int | None = None,
        until: int | None = None,
        timestamps: bool = False,
    ) -> None:
        self.version = version
        self.trace = trace
        self.stdout = stdout
        self.stderr = stderr
        self.tail = tail
        self.since = since
        self.until = until
        self.timestamps = timestamps

    def key(self, path: str) -> tuple[Any, ...]:
        return path, self.version, self.stdout, self.stderr, self.since, self.until, self.timestamps

    def reader(
        self, path: str, output: str = "", trace: bytes = b"", unended: bool = False, keep_open: bool = False
    ) -> LogReader:
        return LogReader(
            path,
            output=output or f"v{self.version}",
            trace=trace,
            stdout=self.stdout,
            stderr=self.stderr,
            tail=self.tail,
            since=self.since,
            until=self.until,
            timestamps=self.timestamps,
            unended=unended,
            keep_open=keep_open,
        )


class Batch:
    """Encoded entries, and the place where they begin."""

    __slots__ = ("data", "start", "waiting")

    def __init__(self, data: bytes, start: Cursor | None, waiting: int) -> None:
        self.data = data
        self.start = start
        self.waiting = waiting  # followers that have not taken it


class Flow:
    """One reader of one log, for all who want the same of it."""

    __slots__ = (
        "_busy",
        "_dropped",
        "_inotify",
        "_loop",
        "_name_watch",
        "_next_watch",
        "_next_watched",
        "_progress",
        "_waiters",
        "_watch",
        "_watched",
        "batches",
        "changes",
        "cursor",
        "first",
        "followers",
        "held",
        "key",
        "users",
    )  # fmt: skip

    def __init__(self, key: tuple[Any, ...], cursor: Cursor, inotify: Inotify, loop: asyncio.AbstractEventLoop) -> None:
        self.key = key
        self.cursor = cursor
        # Lists: most flows have one follower, and an empty set or deque is larger than all the rest.
        self.followers: list[Follow] = []
        self.batches: list[Batch] = []
        self.first = 0  # the number of batches[0]
        self.held = 0
        self.users = 0
        #: How often something may have changed.  What changes while a thread reads finds nobody
        #: who waits: by this number it is noticed before anybody does.
        self.changes = 0
        self._loop = loop
        self._inotify = inotify
        self._waiters: list[asyncio.Future[None]] = []
        self._busy: asyncio.Future[tuple[int, Any]] | None = None
        self._progress = False  # of the last read in a thread
        # Watched first, read afterwards: nothing falls in between.
        self._name_watch = inotify.watch_name(cursor.path, self.changed)
        self._watch: Watch | None = None
        self._next_watch: Watch | None = None
        self._watched: Any = None
        self._next_watched: Any = None
        self._follow_file()

    def close(self) -> None:
        for watch in (self._name_watch, self._watch, self._next_watch):
            if watch is not None:
                self._inotify.drop(watch)
        self._watch = self._next_watch = None
        self._watched = self._next_watched = self.cursor.file = self.cursor.next_file = None  # closes them
        self.batches.clear()
        self.changed()

    def _follow_file(self) -> bool:
        """Watch the file the cursor is in, and the one that it waits for.

        True: a watch has begun, and what was written before it is yet to be looked for.
        """
        cursor = self.cursor
        begun = False
        if self._watched is not cursor.file:
            if self._watch is not None:
                self._inotify.drop(self._watch)
            self._watched = cursor.file
            self._watch = None
            if cursor.file is not None:
                self._watch = self._inotify.watch_file(cursor.file.fd, self.changed)
                begun = True
        waited, before = cursor.next_file, self._next_watched
        if waited is None or before is None or (waited.device, waited.inode) != (before.device, before.inode):
            if self._next_watch is not None:
                self._inotify.drop(self._next_watch)
                self._next_watch = None
            if waited is not None:
                self._next_watch = self._inotify.watch_file(waited.fd, self.changed)
                begun = True
        self._next_watched = waited
        return begun

    def changed(self) -> None:
        """Wake all who wait, and whoever is about to."""
        self.changes += 1
        waiters = self._waiters
        if waiters:
            self._waiters = []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def wait(self) -> asyncio.Future[None]:
        """Done at the next change.  (No coroutine: there may be thousands, and each has its frame.)"""
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        return waiter

    def read_for_one(self) -> bytes | None:
        """Read on for an only follower, without keeping it for others; None: see `advance`."""
        if self._busy is not None or len(self.followers) != 1 or self.batches:
            return None
        status, output = self.cursor.read(nowait=True)
        begun = self._follow_file()
        if not output and (status != END or begun):
            return None
        return output  # type: ignore[no-any-return]

    async def advance(self, follow: Follow | None = None) -> bool:
        """Read on, for a follower that has had all there is; False: there is nothing more for now."""
        if await self.settled():
            return True
        # Where everybody takes it at once, nobody will have to go back to where it begins.
        alone = follow is not None and len(self.followers) == 1
        start = None if alone or not self.followers else self.cursor.fork()
        status, output = self.cursor.read(nowait=True)
        if status == BLOCKED:
            # The disk must be waited for: a thread does that, for all, and whoever of them goes away.
            if start is None and self.followers:
                start = self.cursor.fork()  # others may come before it is taken
            read = self._busy = self._loop.run_in_executor(None, self.cursor.read)
            read.add_done_callback(lambda read: self._read_in_thread(read, start))
            await asyncio.shield(read)
            return self._progress
        return self._took(status, output, start)

    async def settled(self) -> bool:
        """Wait while a thread moves the cursor; whether one did."""
        if self._busy is None:
            return False
        if self._busy.done():
            # Its result is taken in the loop's next round; to wait for it would be no wait at all.
            await asyncio.sleep(0)
        else:
            await asyncio.shield(self._busy)
        return True

    def _read_in_thread(self, read: asyncio.Future[tuple[int, Any]], start: Cursor | None) -> None:
        self._busy = None
        if not read.cancelled() and read.exception() is None:
            self._progress = self._took(*read.result(), start)

    def _took(self, status: int, output: Any, start: Cursor | None) -> bool:
        """The cursor has read; whether there may be more at once."""
        if output:
            self._keep(Batch(output, start, len(self.followers)))
        return self._follow_file() or bool(output) or status != END

    def _keep(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.held += len(batch.data)
        while self.held > RING_LIMIT and len(self.batches) > 1:
            oldest = self.batches[0]
            for follow in [each for each in self.followers if each.number == self.first]:
                assert oldest.start is not None
                follow.leave(oldest.start.fork())
            self._forget_taken()
        self.changed()

    def _forget_taken(self) -> None:
        while self.batches and self.batches[0].waiting <= 0:
            self.held -= len(self.batches.pop(0).data)
            self.first += 1

    def join(self, follow: Follow) -> None:
        follow.number = self.first + len(self.batches)
        self.followers.append(follow)

    def take(self, follow: Follow) -> bytes | None:
        """The next batch for a follower, if there is one."""
        index = follow.number - self.first
        if index >= len(self.batches):
            return None
        batch = self.batches[index]
        follow.number += 1
        batch.waiting -= 1
        self._forget_taken()
        return batch.data

    def is_taken(self, follow: Follow) -> bool:
        """A follower has had all there is."""
        return follow.number - self.first >= len(self.batches)

    def part(self, follow: Follow) -> None:
        """A follower leaves; what it has not taken does not wait for it."""
        self.followers.remove(follow)
        self._waiters = [waiter for waiter in self._waiters if not waiter.done()]
        for index in range(follow.number - self.first, len(self.batches)):
            self.batches[index].waiting -= 1
        self._forget_taken()


class Follow:
    """One client's way along a log: `next` until it gives None, and `close` in any case."""

    __slots__ = (
        "_cursor",
        "_eager",
        "_ended",
        "_finished",
        "_flow",
        "_followers",
        "_options",
        "_path",
        "_reader",
        "_trace",
        "_until",
        "_until_timer",
        "number",
        "over",
    )  # fmt: skip

    def __init__(self, followers: Followers, path: str, options: Options, ended: Callable[[], bool]) -> None:
        self.number = 0  # of the next batch of the flow
        self.over = False  # `until` has passed
        self._followers = followers
        self._path = path
        self._options: Options | None = options  # until it is with a flow
        self._trace = options.trace
        self._until = options.until
        self._ended = ended
        self._reader: LogReader | None = options.reader(path, keep_open=True)  # of what is there already
        self._flow: Flow | None = None
        self._cursor: Cursor | None = None  # of our own, while we are not with the flow
        self._eager = False  # the last output came without waiting
        self._finished = False
        self._until_timer: asyncio.TimerHandle | None = None
        self._set_until()

    def set_flow(self, flow: Flow) -> None:
        self._flow = flow

    def stand_alone(self, cursor: Cursor) -> None:
        self._cursor = cursor

    def leave(self, cursor: Cursor) -> None:
        """Too slow for the flow: read alone from here."""
        assert self._flow is not None
        self._flow.part(self)
        self._cursor = cursor
        self._followers.detached += 1

    def wake(self) -> None:
        """The container's output has ended: look again."""
        if self._flow is not None:
            self._flow.changed()

    def close(self) -> None:
        if self._until_timer is not None:
            self._until_timer.cancel()
            self._until_timer = None
        flow, self._flow = self._flow, None
        if flow is not None:
            if self._cursor is None:
                flow.part(self)
            self._followers.release(flow)
        if self._reader is not None:
            self._reader.close()
        self._cursor = self._reader = None
        self._finished = True

    async def next(self) -> bytes | None:
        """Encoded entries; None: that was all."""
        if self._eager:
            # Where the client takes all at once nothing has waited: the others' turn.
            self._eager = False
            await asyncio.sleep(0)
        if self._reader is not None:
            data = await self._initial(self._reader)
            if data is not None:
                return self._own(data)
        while not self._finished:
            assert self._flow is not None
            flow = self._flow
            # Asked before looking: what is written before the end is seen after it.
            changes = flow.changes
            over = self.over or self._ended()
            data = await self._alone(flow, self._cursor) if self._cursor is not None else await self._shared(flow)
            if data:
                self._eager = True
                return self._own(data)
            if data is None:
                continue
            if over:
                self._finished = True
                cursor = (self._cursor or flow.cursor).fork()
                data = cursor.engine.finish(None if cursor.file is None else cursor.file.fd)
                return self._own(data) if data else None
            if flow.changes == changes:
                await flow.wait()
        return None

    def _own(self, data: bytes) -> bytes:
        return with_trace(data, self._trace) if self._trace else data

    async def _initial(self, reader: LogReader) -> bytes | None:
        """What is there already; None: that was all of it."""
        try:
            data: bytes | None = await read_on(reader)
        except FileNotFoundError:
            data = None  # the container has not written yet
        if data is None:
            assert self._options is not None
            key = self._options.key(self._path)
            self._reader = self._options = None
            self._followers.enter(self, key, Cursor(self._path, reader.engine, reader.file))
        return data

    async def _shared(self, flow: Flow) -> bytes | None:
        """The flow's next batch.  None: look again; empty: that is all for now."""
        data = flow.take(self)
        if data is None:
            data = flow.read_for_one()
        if data is None and not await flow.advance(self):
            return b"" if self._cursor is None and flow.is_taken(self) else None
        return data

    async def _alone(self, flow: Flow, cursor: Cursor) -> bytes | None:
        """What our own cursor reads.  None: look again; empty: that is all for now."""
        if await flow.settled():
            return None
        theirs = flow.cursor
        if cursor.is_at(theirs):
            flow.join(self)
            self._cursor = None
            return None
        end = None
        if cursor.file is not None and theirs.file is not None and cursor.file.inode == theirs.file.inode:
            if cursor.engine.offset < theirs.engine.offset:
                end = theirs.engine.offset
            elif cursor.engine.offset > theirs.engine.offset:
                # We have read on past it: let it come after us.  Where it cannot,
                # the file was truncated, as our own read will tell.
                if await flow.advance():
                    return None
        status, data = cursor.read(nowait=True, end=end)
        if status == BLOCKED:
            loop = asyncio.get_running_loop()
            status, data = await loop.run_in_executor(None, cursor.read, False, end)
        if data:
            return bytes(data)
        if status != END or (end is not None and cursor.engine.offset >= end):
            await asyncio.sleep(0)
            return None
        # At the end: let the flow come here too, since it is the one who watches.  Where the end
        # comes before the flow's place the file was truncated, as the flow's own read will tell.
        return None if await flow.advance() or cursor.is_at(flow.cursor) else b""

    def _set_until(self) -> None:
        until = self._until
        if until is None:
            return
        left = (until - time.time_ns()) / 1e9 + UNTIL_GRACE
        if left <= 0:
            self.over = True
        else:
            # Long ones are cut in pieces: the clock may be set meanwhile.
            self._until_timer = asyncio.get_running_loop().call_later(min(left, 60.0), self._until_passed)

    def _until_passed(self) -> None:
        self._set_until()
        if self.over:
            self.wake()


class Followers:
    """All who follow logs in this agent."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._inotify = Inotify(self._loop)
        self._flows: dict[tuple[Any, ...], Flow] = {}
        #: For who reads a log whole into memory, up to max_frame_size.
        self.whole = asyncio.Semaphore(WHOLE_AT_ONCE)
        self.detached = 0
        metrics.gauge("log_flows", lambda: len(self._flows), "Logs being followed, each for one or more clients.")
        metrics.gauge(
            "log_followers",
            lambda: sum(len(flow.followers) for flow in self._flows.values()),
            "Clients that follow a log.",
        )
        metrics.gauge("log_followers_detached", lambda: self.detached, "Times a slow follower was left to read alone.")
        metrics.gauge("log_watches_polled", lambda: self._inotify.polled, "Files watched by polling.")

    async def start(self) -> None:
        self._inotify.start()

    async def close(self) -> None:
        for flow in list(self._flows.values()):
            flow.close()
        self._flows.clear()
        self._inotify.close()

    def follow(self, path: str, options: Options, ended: Callable[[], bool]) -> Follow:
        """Follow a log until `ended` says that nothing more will be written (see Follow.wake)."""
        return Follow(self, path, options, ended)

    def wake_all(self) -> None:
        """Let every follower look again."""
        for flow in list(self._flows.values()):
            flow.changed()

    def enter(self, follow: Follow, key: tuple[Any, ...], cursor: Cursor) -> None:
        """A follower has read what there was, up to `cursor`, and goes on with the flow of its kind."""
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = Flow(key, cursor, self._inotify, self._loop)
            flow.join(follow)
        else:
            follow.stand_alone(cursor)
        flow.users += 1
        follow.set_flow(flow)

    def release(self, flow: Flow) -> None:
        flow.users -= 1
        if flow.users == 0 and self._flows.get(flow.key) is flow:
            del self._flows[flow.key]
            flow.close()


async def read_on(reader: LogReader) -> Any:
    """A reader's next output; None: that was all.  What must wait for the disk does so in a thread."""
    while True:
        piece = reader.step(nowait=True)
        if piece is BLOCKED:
            piece = await asyncio.get_running_loop().run_in_executor(None, reader.step)
        if piece is None or piece:
            return piece
        await asyncio.sleep(0)

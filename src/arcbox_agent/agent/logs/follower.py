"""Follows logs for clients: one Follow each, which share the flows of their kind.

A follow goes through the states of TRANSITIONS:

    READING --entered--> ALONE <--overrun-- JOINED --ended--> OVER
       |                   +----caught up---->^
       +--------------founded-----------------+
"""

from __future__ import annotations

import asyncio
import enum
import time

from arcbox_agent._log_output import with_trace
from arcbox_agent.agent.logs.cursor import BLOCKED, END, Cursor
from arcbox_agent.agent.logs.flow import Flow, Rings
from arcbox_agent.agent.logs.inotify import Inotify
from arcbox_agent.logs.reader import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from arcbox_agent._log_history import LogHistory
    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.metrics import Metrics
    from arcbox_agent.logs.reader import LogReader

__all__ = ["Event", "Follow", "Followers", "Options", "State"]

#: Logs that are read whole into memory at once, one reply each; further requests wait.
WHOLE_READS = 4

#: Seconds that a line written at the very time of `until` has to arrive.
UNTIL_GRACE = 0.2
#: Seconds after which a longer wait for `until` looks at the clock again: it may be set meanwhile.
UNTIL_RECHECK = 60.0


class State(enum.Enum):
    """Where a follow's next entries come from."""

    READING = enum.auto()  # its LogReader: what was in the log at its beginning
    JOINED = enum.auto()  # the batches of its flow
    ALONE = enum.auto()  # its own cursor; the flow only watches the file for it
    OVER = enum.auto()  # nowhere: there are no more


class Event(enum.Enum):
    FOUNDED = enum.auto()  # all that was there is read, and no flow of its kind was there: it began one
    ENTERED = enum.auto()  # all that was there is read, and a flow of its kind is somewhere else in the log
    CAUGHT_UP = enum.auto()  # its own cursor stands where the flow's does
    OVERRUN = enum.auto()  # the flow dropped a batch that it had not taken
    ENDED = enum.auto()  # the container's output ended, or `until` has passed, and all before that is read
    CLOSED = enum.auto()  # nobody wants it any more


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.READING: {Event.FOUNDED: State.JOINED, Event.ENTERED: State.ALONE, Event.CLOSED: State.OVER},
    State.JOINED: {Event.OVERRUN: State.ALONE, Event.ENDED: State.OVER, Event.CLOSED: State.OVER},
    State.ALONE: {Event.CAUGHT_UP: State.JOINED, Event.ENDED: State.OVER, Event.CLOSED: State.OVER},
    State.OVER: {Event.CLOSED: State.OVER},
}

# Bound once: each is asked for with every line.
_READING, _JOINED, _OVER = State.READING, State.JOINED, State.OVER


class Follow:
    """One client's way along a log: call `next` until it gives None, and `close` in any case."""

    __slots__ = (
        "_cursor",
        "_eager",
        "_ended",
        "_event_seen",
        "_flow",
        "_followers",
        "_history",
        "_listen",
        "_options",
        "_over",
        "_path",
        "_reader",
        "_state",
        "_trace",
        "_until",
        "_until_passed",
        "_until_timer",
        "number",
    )  # fmt: skip

    def __init__(
        self,
        followers: Followers,
        path: str,
        options: Options,
        over: Callable[[], bool],
        listen: Callable[[Callable[[], None]], None] | None,
        history: LogHistory | None,
    ) -> None:
        self.number = 0  # of the flow's batch that it takes next
        self._state = _READING
        self._followers = followers
        self._path = path
        self._options: Options | None = options  # while READING
        self._trace = options.trace
        self._until = options.until
        self._over = over
        self._listen = listen  # while READING
        self._history = history  # while READING
        self._ended = False  # what `over` answered last
        self._event_seen = False  # it has been asked since the last `wake`
        self._reader: LogReader | None = None  # while READING, from the first read on
        self._flow: Flow | None = None  # while JOINED or ALONE
        self._cursor: Cursor | None = None  # while ALONE
        self._eager = False  # the last output came without waiting
        self._until_passed = False
        self._until_timer: asyncio.TimerHandle | None = None
        self._watch_until()

    @property
    def state(self) -> State:
        return self._state

    def _pass(self, event: Event) -> None:
        """KeyError: the event cannot happen in this state."""
        self._state = TRANSITIONS[self._state][event]

    async def next(self) -> bytes | None:
        """Encoded entries, one frame each; None: there are no more.

        OSError: the log cannot be read.
        """
        if self._eager:
            # A client that takes everything at once never waits: let the other tasks run.
            self._eager = False
            await asyncio.sleep(0)
        data = await self._initial() if self._state is _READING else None
        while not data and self._state is not _OVER:
            flow = self._flow
            assert flow is not None
            # Both are asked before the read: what was written before the end is read after it.
            changes = flow.changes.number
            if not self._event_seen:
                self._event_seen = True
                self._ended = self._over()
            ended = self._ended or self._until_passed
            data = await self._shared(flow) if self._state is _JOINED else await self._alone(flow)
            if data:
                self._eager = True
            elif data is not None:
                if ended:
                    data = self._last_words(flow)
                elif flow.changes.number == changes:
                    await flow.changes.next()
        if not data:
            return None
        return with_trace(data, self._trace) if self._trace else data

    @property
    def inode(self) -> int:
        """The file that it reads, once all that was there at its beginning is read; 0: none."""
        flow = self._flow
        if flow is None:
            return 0
        file = (self._cursor or flow.cursor).file
        return 0 if file is None else file.inode

    def wake(self) -> None:
        """The output may have ended, or `until` has passed: look again."""
        self._event_seen = False
        if self._flow is not None:
            self._flow.changes.tell()

    def leave(self, cursor: Cursor) -> None:
        """The flow dropped a batch that this follow has not taken: read alone, from `cursor` on."""
        assert self._flow is not None
        self._pass(Event.OVERRUN)
        self._flow.part(self)
        self._cursor = cursor
        self._followers.detached += 1

    def close(self) -> None:
        """Let go of the log and the flow; may be called again."""
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
        self._pass(Event.CLOSED)

    # ------------------------------------------------------ a read by state

    async def _initial(self) -> bytes | None:
        """READING: what was in the log at the beginning; None: that was all of it."""
        options, reader = self._options, self._reader
        assert options is not None
        if reader is None:
            reader = self._reader = options.reader(self._path, keep_open=True)
        try:
            data: bytes | None = await reader.next()
        except FileNotFoundError:
            data = None  # the container has not written yet
        if data is None and self._state is _READING:
            self._reader = self._options = None
            # `over` is asked after this: an end that came before it is found then.
            if self._listen is not None:
                self._listen(self.wake)
                self._listen = None
            cursor = Cursor(self._path, reader.engine, reader.file, self._history)
            self._history = None
            self._flow, founded = self._followers.enter(self._path, options, cursor)
            if founded:
                self._flow.join(self)
                self._pass(Event.FOUNDED)
            else:
                self._cursor = cursor
                self._pass(Event.ENTERED)
        return data

    async def _shared(self, flow: Flow) -> bytes | None:
        """JOINED: the flow's next batch.  None: look again; empty: that is all for now."""
        data = flow.take(self)
        if data is None and not await flow.advance(self):
            return b"" if self._state is _JOINED and flow.has_taken_all(self) else None
        return data

    async def _alone(self, flow: Flow) -> bytes | None:
        """ALONE: what the own cursor reads.  None: look again; empty: that is all for now."""
        if await flow.settled():
            return None
        cursor, theirs = self._cursor, flow.cursor
        assert cursor is not None
        if cursor.is_at(theirs):
            flow.join(self)
            self._cursor = None
            self._pass(Event.CAUGHT_UP)
            return None
        end = None
        if cursor.file is not None and theirs.file is not None and cursor.file.inode == theirs.file.inode:
            if cursor.engine.offset < theirs.engine.offset:
                end = theirs.engine.offset
            elif cursor.engine.offset > theirs.engine.offset:
                # This follow is ahead of the flow: let the flow catch up.  Where the flow cannot,
                # the file was truncated, as the own read will find out.
                if await flow.advance():
                    return None
        status, data = cursor.read(nowait=True, end=end)
        if status is BLOCKED:
            loop = asyncio.get_running_loop()
            status, data = await loop.run_in_executor(None, cursor.read, False, end)
        if data:
            return bytes(data)
        if status is not END or (end is not None and cursor.engine.offset >= end):
            await asyncio.sleep(0)
            return None
        # At the file's end: let the flow come here too, since only the flow watches the file.
        # Where the end lies before the flow's place the file was truncated, as the flow's own read
        # will find out.
        return None if await flow.advance() or cursor.is_at(flow.cursor) else b""

    def _last_words(self, flow: Flow) -> bytes:
        """The end: a last line without its newline, of a copy of the cursor, as others may use it still."""
        cursor = (self._cursor or flow.cursor).fork()
        self._pass(Event.ENDED)
        return cursor.engine.finish(None if cursor.file is None else cursor.file.fd)  # type: ignore[no-any-return]

    # ---------------------------------------------------------------- until

    def _watch_until(self) -> None:
        if self._until is None:
            return
        left = (self._until - time.time_ns()) / 1e9 + UNTIL_GRACE
        if left > 0:
            loop = asyncio.get_running_loop()
            self._until_timer = loop.call_later(min(left, UNTIL_RECHECK), self._watch_until)
            return
        self._until_timer = None
        self._until_passed = True
        self.wake()


class Followers:
    """All who follow logs in this agent."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._inotify = Inotify(self._loop)
        self._flows: dict[tuple[Any, ...], Flow] = {}
        self._rings = Rings()
        #: For reading a log whole into memory, up to max_frame_size.
        self.whole_reads = asyncio.Semaphore(WHOLE_READS)
        self.detached = 0
        metrics.gauge("log_flows", lambda: len(self._flows), "Logs being followed, each for one or more clients.")
        metrics.gauge(
            "log_followers",
            lambda: sum(len(flow.members) for flow in self._flows.values()),
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

    def follow(
        self,
        path: str,
        options: Options,
        over: Callable[[], bool],
        listen: Callable[[Callable[[], None]], None] | None = None,
        history: LogHistory | None = None,
    ) -> Follow:
        """Follow the log at `path` until `over` says that nothing more will be written.

        It is asked when all that was there is read, and then after each `Follow.wake`.
        `listen` is given that `wake`, before `over` is asked; without it the caller wakes the
        follow itself.  `history`: what the log's capture knows of files that are gone.
        """
        return Follow(self, path, options, over, listen, history)

    def enter(self, path: str, options: Options, cursor: Cursor) -> tuple[Flow, bool]:
        """The flow of a kind, until `release`; whether it is a new one, which begins at `cursor` and takes it."""
        # All that tells one flow from another: a tail only says where a follow begins.
        key = (
            path, options.version, options.stdout, options.stderr, options.since, options.until, options.timestamps,
            options.detail,
        )  # fmt: skip
        flow = self._flows.get(key)
        founded = flow is None
        if flow is None:
            flow = self._flows[key] = Flow(key, cursor, self._inotify, self._loop, self._rings)
        flow.users += 1
        return flow, founded

    def release(self, flow: Flow) -> None:
        flow.users -= 1
        if flow.users == 0 and self._flows.get(flow.key) is flow:
            del self._flows[flow.key]
            flow.close()

"""One output of a stream: bytes that have arrived, and the credit for more.

    StreamOutput, StreamGap, StreamEnd -> arrived, lost, ended -> read, readline, async for

The agent sends no byte beyond the credit, so what is kept here is at most two windows: one that
was under way when a connection was lost, and one behind it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from arcbox_agent import wire
from arcbox_agent.errors import FrameError, GapError, ReplyLimitError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

#: Bytes of each output that may be under way, where the caller does not say.
WINDOW = 1024 * 1024

#: The most bytes that one `read()` to the end, `readline` or `readexactly` collects.
LIMIT = 64 * 1024 * 1024

#: Pieces below this are joined: an agent that sends a byte at a time would take fifty times their memory.
_SMALL = 4096

#: The most gaps that are kept unread; they take no credit.
_MOST_GAPS = 1024

#: The greatest cursor of a stream: beyond it a credit would not fit its field.
MOST = 1 << 63


@dataclass(frozen=True, slots=True)
class Gap:
    """Output that is not kept any more.  `cursor`: of the first byte that is missing.  `bytes`: how many are."""

    cursor: int
    bytes: int


class ByteReader:
    """An output as a reader, like asyncio.StreamReader.  One task reads it.

    `cursor`: of the first byte that is wanted; None: of the first that comes.  `window`: bytes that may be
    under way.  `limit`: bytes that one call collects at most.
    """

    def __init__(self, stream: str, *, cursor: int | None = 0, window: int = WINDOW, limit: int = LIMIT) -> None:
        self.stream = stream
        #: The cursor behind what has arrived; None: nothing has, and where it begins is not known.
        self.cursor = cursor
        #: The cursor behind what the reader has taken.
        self.taken = cursor or 0
        #: Sends credit to the agent; None while there is no connection.
        self.grant: Callable[[wire.StreamCredit], None] | None = None
        #: Is called when the agent may send no more until something is read.
        self.on_full: Callable[[], None] | None = None
        self._window = window
        self._limit = limit
        self._until = (cursor or 0) + window
        # The piece that is being taken, from `_at` on, and those behind it.
        self._head = b""
        self._at = 0
        self._kept: deque[bytes | Gap] = deque()
        self._gaps = 0
        self._over = False
        self._discards = False
        self._failure: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    # ------------------------------------------------- called as messages arrive

    def attached(self, cursor: int, grant: Callable[[wire.StreamCredit], None]) -> None:
        """A new connection sends this output from `cursor` on."""
        if self.cursor is None:
            self._begin(cursor)
        assert self.cursor is not None
        self._until = self.cursor + self._window
        self.grant = grant

    def arrived(self, message: wire.StreamOutput) -> None:
        """Raises FrameError for bytes out of order, or beyond the credit."""
        data = message.data
        self._check(message.cursor)
        end = message.cursor + len(data)
        if end > self._until:
            raise FrameError(f"{self.stream} up to {end}, where credit was given up to {self._until}")
        self.cursor = end
        if not data:
            return
        if self._discards:
            self._took(len(data))
            return
        kept = self._kept
        last = kept[-1] if kept else None
        if isinstance(last, bytes) and len(last) + len(data) <= _SMALL:
            kept[-1] = last + data
        else:
            kept.append(data)
        self._wake()
        if end == self._until and self.on_full is not None:
            self.on_full()

    def lost(self, message: wire.StreamGap) -> None:
        self._check(message.cursor)
        end = message.cursor + message.bytes
        if end > MOST:
            raise FrameError(f"a gap in {self.stream} up to {end}, where no stream is so long")
        self.cursor = end
        # A gap takes no credit.
        self._until = max(self._until, end)
        if self._discards:
            self._took(message.bytes)
            return
        kept = self._kept
        last = kept[-1] if kept else None
        if isinstance(last, Gap):
            kept[-1] = Gap(last.cursor, last.bytes + message.bytes)
        elif message.bytes:
            self._gaps += 1
            if self._gaps > _MOST_GAPS:
                raise FrameError(f"more than {_MOST_GAPS} gaps in {self.stream}, of which none was read")
            kept.append(Gap(message.cursor, message.bytes))
        self._wake()

    def ended(self, message: wire.StreamEnd | None = None) -> None:
        if message is not None:
            self._check(message.cursor)
        self._over = True
        self._wake()

    def failed(self, error: BaseException) -> None:
        """No more comes; whoever reads gets `error` behind what has arrived."""
        if not self._over and self._failure is None:
            self._failure = error
            self._wake()

    # ------------------------------------------------------------ for the reader

    @property
    def over(self) -> bool:
        """Whether all of it has arrived."""
        return self._over

    @property
    def full(self) -> bool:
        """Whether the agent may send no more until something is read."""
        return not self._over and self.cursor is not None and self.cursor >= self._until

    def at_eof(self) -> bool:
        return self._over and not self._ready()

    async def read(self, n: int = -1) -> bytes:
        """At most `n` bytes as soon as there are some; with -1 all to the end.  b"": the end.

        Raises GapError where bytes are missing, once: the next read goes on behind them.
        """
        if n == 0:
            return b""
        if n > 0:
            await self._something()
            return self._take(n)
        parts: list[bytes] = []
        size = 0
        while data := await self._next(parts):
            size += len(data)
            parts.append(data)
            self._check_limit(size)
        return b"".join(parts)

    async def readline(self) -> bytes:
        """A line with its newline; without one at the end, or before a gap.  b"": the end."""
        return await self.readuntil(b"\n")

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        """The bytes up to and with `separator`; what there is at the end, or before a gap.  b"": the end."""
        found = bytearray()
        while True:
            data = await self._next([bytes(found)], separator)
            if not data:
                return bytes(found)
            if not found and data.endswith(separator):
                return data
            found += data
            # It may lie across two pieces.
            at = found.find(separator, max(0, len(found) - len(data) - len(separator) + 1))
            if at >= 0:
                self._put_back(bytes(found[at + len(separator) :]))
                return bytes(found[: at + len(separator)])
            self._check_limit(len(found))

    async def readexactly(self, n: int) -> bytes:
        """`n` bytes.  Raises asyncio.IncompleteReadError with what there is at the end, or before a gap."""
        found = bytearray()
        self._check_limit(n)
        while len(found) < n:
            data = await self._next([bytes(found)], most=n - len(found))
            if not data:
                raise asyncio.IncompleteReadError(bytes(found), n)
            found += data
        return bytes(found)

    def __aiter__(self) -> ByteReader:
        return self

    async def __anext__(self) -> bytes:
        """The next bytes, however many there are.  Raises GapError where bytes are missing."""
        data = await self.read(self._window)
        if not data:
            raise StopAsyncIteration
        return data

    async def items(self) -> AsyncIterator[bytes | Gap]:
        """The output to its end; a gap is an item."""
        while True:
            try:
                data = await self.read(self._window)
            except GapError as error:
                yield Gap(error.cursor, error.bytes)
                continue
            if not data:
                return
            yield data

    def discard(self) -> None:
        """Take all that has arrived, and that comes, without keeping it."""
        self._discards = True
        size = sum(each.bytes if isinstance(each, Gap) else len(each) for each in self._kept)
        size += len(self._head) - self._at
        self._kept.clear()
        self._gaps = 0
        self._head, self._at = b"", 0
        self._took(size)
        self._wake()

    # ------------------------------------------------------------------- private

    def _ready(self) -> bool:
        return self._at < len(self._head) or bool(self._kept)

    async def _something(self) -> None:
        """Until there is something to take, or the end."""
        while not self._ready() and not self._over:
            if self._failure is not None:
                raise self._failure
            if self._waiter is not None:
                raise RuntimeError(f"another task reads {self.stream}")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    async def _next(self, before: list[bytes], separator: bytes = b"", *, most: int = 1 << 62) -> bytes:
        """The next bytes of a call that has taken `before`; b"" at the end, or at a gap behind some.

        They end behind the first `separator`, if there is one.  If it fails, or is cancelled, `before` is put back.
        """
        try:
            await self._something()
        except BaseException:
            self._put_back(b"".join(before))
            raise
        if self._at == len(self._head) and self._kept:
            if isinstance(self._kept[0], Gap):
                if any(before):
                    return b""
            else:
                self._head, self._at = self._kept.popleft(), 0  # type: ignore[assignment]
        if separator:
            at = self._head.find(separator, self._at)
            if at >= 0:
                most = at + len(separator) - self._at
        return self._take(most)

    def _take(self, most: int) -> bytes:
        if self._at == len(self._head):
            if not self._kept:
                return b""
            first = self._kept.popleft()
            if isinstance(first, Gap):
                self._gaps -= 1
                self._took(first.bytes)
                raise GapError(self.stream, first.cursor, first.bytes)
            self._head, self._at = first, 0
        head, at = self._head, self._at
        data = head[at : at + most] if at or most < len(head) else head
        self._at = at + len(data)
        if self._at == len(head):
            self._head, self._at = b"", 0
        self._took(len(data))
        return data

    def _put_back(self, data: bytes) -> None:
        """Keep bytes again that were taken.  Their credit is given."""
        if data:
            if self._at < len(self._head):
                self._kept.appendleft(self._head[self._at :])
            self._head, self._at = data, 0
            self.taken -= len(data)

    def _took(self, size: int) -> None:
        self.taken += size
        until = self.taken + self._window
        if until - self._until >= self._window // 2 or (until > self._until and self.full):
            self._until = until
            if self.grant is not None and not self._over:
                self.grant(wire.StreamCredit(stream=self.stream, taken=self.taken, until=until))

    def _begin(self, cursor: int) -> None:
        if cursor > MOST:
            raise FrameError(f"{self.stream} begins at {cursor}, where no stream is so long")
        self.cursor = self.taken = cursor
        self._until = cursor + self._window

    def _check(self, cursor: int) -> None:
        if self._over:
            raise FrameError(f"more of {self.stream} behind its end")
        if self.cursor is None:
            self._begin(cursor)
        if cursor != self.cursor:
            raise FrameError(f"{self.stream} goes on at {cursor}, where {self.cursor} was expected")

    def _check_limit(self, size: int) -> None:
        if size > self._limit:
            raise ReplyLimitError(self.stream, self._limit, "read it in pieces")

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

"""A call with many replies, as an async iterator.

    async with client.logs("web", follow=True) as entries:
        async for entry in entries:
            ...

The request is sent when the first item is requested.  Leaving early closes the connection,
and the agent then ends the command or the follow.  `async with` and `aclose()` close it at
once; otherwise it is closed when the iterator is garbage-collected.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

from arcbox_agent.errors import CallTimeoutError, RequestError
from arcbox_agent.wire import LogEntry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import TracebackType

    from arcbox_agent.client.calls import Replies
    from arcbox_agent.client.connection import Connection
    from arcbox_agent.client.pool import Lease
    from arcbox_agent.wire import Frame

T = TypeVar("T")


class ReplyStream(Generic[T]):
    """The replies of one call, as an async iterator.

    `start` leases a connection and sends the request.  `first_timeout`, `next_timeout`:
    seconds to wait for the first and for each further item; None: no limit.
    """

    def __init__(
        self,
        replies: Replies[T],
        start: Callable[[], Awaitable[Lease]],
        *,
        first_timeout: float | None,
        next_timeout: float | None,
    ) -> None:
        self._replies = replies
        self._start = start
        self._first_timeout = first_timeout
        self._next_timeout = next_timeout
        self._lease: Lease | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = False
        self._waiting = False
        self._failure: Exception | None = None

    def __aiter__(self) -> ReplyStream[T]:
        return self

    async def __anext__(self) -> T:
        item = self._take()
        if item is None:
            item = await self._wait()
        if item is None:
            raise StopAsyncIteration
        return item

    async def batch(self, limit: int = 256) -> list[T]:
        """The next items: at least one and at most `limit`, or an empty list at the end.

        It waits only for the first item; the others are those that have already arrived.
        """
        items: list[T] = []
        first = self._take()
        if first is None:
            first = await self._wait()
        if first is None:
            return items
        items.append(first)
        while len(items) < limit:
            try:
                item = self._take()
            except Exception as error:
                # The items before it are returned; the next call raises the error.
                self._failure = error
                break
            if item is None:
                break
            items.append(item)
        return items

    async def aclose(self) -> None:
        """Leave the stream: the agent ends what it does for this call."""
        self._leave()

    async def __aenter__(self) -> ReplyStream[T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def __del__(self) -> None:
        lease, loop = self._lease, self._loop
        if lease is None or loop is None:
            return
        try:
            # The garbage collector runs in any thread; a connection belongs to its loop's thread.
            loop.call_soon_threadsafe(lease.discard)
        except RuntimeError:
            pass  # The loop is closed, and its connections are closed with it.

    # --------------------------------------------------------------- private

    def _take(self) -> T | None:
        """The next item, or None if it has not arrived yet."""
        if self._failure is not None:
            error, self._failure = self._failure, None
            raise error
        lease = self._lease
        if lease is None:
            return None
        try:
            frame = lease.connection.take()
            if frame is None:
                return None
            item, last = self._read(frame, lease.connection)
        except RequestError:
            # A refusal is a complete answer: it ends the stream, and the connection stays usable.
            self._finish()
            raise
        except BaseException:
            self._leave()
            raise
        if last:
            self._finish()
        return item

    def _read(self, frame: Frame, connection: Connection) -> tuple[T | None, bool]:
        return self._replies.read(frame)

    async def _wait(self) -> T | None:
        """Wait for the next item; None at the end."""
        if self._ended:
            return None
        if self._waiting:
            raise RuntimeError("another task reads this stream")
        self._waiting = True
        seconds = self._next_timeout if self._lease is not None else self._first_timeout
        try:
            async with asyncio.timeout(seconds):
                if self._lease is None:
                    self._loop = asyncio.get_running_loop()
                    lease = await self._start()
                    if self._ended:  # Another task has left the stream meanwhile.
                        lease.discard()
                        return None
                    self._lease = lease
                connection = self._lease.connection
                while True:
                    item = self._take()
                    if item is not None or self._ended:
                        return item
                    await connection.more()
        except TimeoutError as error:
            self._leave()
            if isinstance(error, CallTimeoutError):
                raise
            raise CallTimeoutError(self._replies.call, seconds or 0.0) from None
        except BaseException:
            self._leave()
            raise
        finally:
            self._waiting = False

    def _finish(self) -> None:
        self._ended = True
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()

    def _leave(self) -> None:
        self._ended = True
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.discard()


class LogStream(ReplyStream[LogEntry]):
    """A log that is not followed.

    An agent other than ours answers with one entry that holds all lines, joined by newlines.
    """

    _entry: LogEntry | None = None
    _lines: Iterator[bytes] = iter(())
    _joined = False

    def _read(self, frame: Frame, connection: Connection) -> tuple[LogEntry | None, bool]:
        entry, last = super()._read(frame, connection)
        self._joined = connection.agent is not None and not connection.agent.is_ours
        return entry, last or self._joined

    def _take(self) -> LogEntry | None:
        line = next(self._lines, None)
        if line is None:
            self._entry = super()._take()
            if not self._joined:
                return self._entry
            # No data at all means an empty log, not a log with one empty line.
            if self._entry is None or not self._entry.data:
                return None
            self._lines = _lines_of(self._entry.data)
            line = next(self._lines)
        assert self._entry is not None
        return LogEntry(stream=self._entry.stream, data=line, timestamp=self._entry.timestamp)

    def _leave(self) -> None:
        self._lines = iter(())
        super()._leave()


def _lines_of(data: bytes) -> Iterator[bytes]:
    """The lines one by one: all at once they may take twenty times the memory of the data."""
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        yield data[start:end]
        start = end + 1
    yield data[start:]

"""The connections of one client.

Two lanes, each with a bound of its own: short calls, and calls that may take as
long as they like (follows, commands, waits).  So however many of the second kind
there are, a ping never waits for one.  Both lanes take from the same idle
connections, and give back to them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from arcbox_agent.errors import ConnectionLostError

if TYPE_CHECKING:
    from arcbox_agent.client.connection import Connection


class Pool:
    """`max_calls`, `max_streams`: connections in use at a time, in each lane.

    `open_connection`: adopts the connection that it opens.
    """

    def __init__(
        self, open_connection: Callable[[], Awaitable[Connection]], *, max_calls: int, max_streams: int
    ) -> None:
        if max_calls < 1 or max_streams < 1:
            raise ValueError("a pool needs at least one connection in each lane")
        self._open_connection = open_connection
        self._calls = asyncio.Semaphore(max_calls)
        self._streams = asyncio.Semaphore(max_streams)
        self._max_idle = max_calls
        self._idle: list[Connection] = []
        self._leased: set[Connection] = set()
        self._closed = False

    @property
    def idle(self) -> int:
        """Connections that wait for a call."""
        return len(self._idle)

    @property
    def in_use(self) -> int:
        return len(self._leased)

    @property
    def closed(self) -> bool:
        return self._closed

    async def lease(self, *, stream: bool, fresh: bool = False) -> Lease:
        """A connection for one call.  `fresh`: a new one, never an idle one."""
        lane = self._streams if stream else self._calls
        await lane.acquire()
        try:
            self._check_open()
            connection = None if fresh else self._take_idle()
            reused = connection is not None
            if connection is None:
                connection = await self._open_connection()
        except BaseException:
            lane.release()
            raise
        self._leased.add(connection)
        return Lease(self, lane, connection, reused)

    def living(self) -> Connection | None:
        """A connection over which the agent that answered is still there."""
        for connection in (*self._idle, *self._leased):
            if connection.agent is not None and connection.is_alive():
                return connection
        return None

    def adopt(self, connection: Connection) -> None:
        """Have a connection that is being opened closed with the others."""
        if self._closed:
            connection.abort()
        self._check_open()
        self._leased.add(connection)

    def drop(self, connection: Connection) -> None:
        """Close one that was adopted, and is of no use."""
        self._leased.discard(connection)
        connection.abort()

    async def close(self) -> None:
        """Close all connections; the calls that run get ConnectionLostError."""
        self._closed = True
        connections = [*self._idle, *self._leased]
        self._idle.clear()
        for connection in connections:
            connection.abort("the client was closed")
        for connection in connections:
            await connection.wait_closed()

    def give_back(self, connection: Connection, lane: asyncio.Semaphore, *, reusable: bool) -> None:
        """The end of a lease; for Lease alone."""
        self._leased.discard(connection)
        lane.release()
        if reusable and not self._closed and len(self._idle) < self._max_idle and connection.is_clean():
            self._idle.append(connection)
        else:
            connection.abort()

    def _take_idle(self) -> Connection | None:
        # The last used first: those at the other end are the ones to go stale.
        while self._idle:
            connection = self._idle.pop()
            if connection.is_idle():
                return connection
            connection.abort()
        return None

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionLostError("the client was closed")


class Lease:
    """The use of one connection, ended by the first of `release` and `discard`."""

    __slots__ = ("_lane", "_pool", "connection", "reused")

    def __init__(self, pool: Pool, lane: asyncio.Semaphore, connection: Connection, reused: bool) -> None:
        self._pool: Pool | None = pool
        self._lane = lane
        self.connection = connection
        #: Whether earlier calls went over it, so that the agent may have closed it since.
        self.reused = reused

    def release(self) -> None:
        """The call is complete: the connection may serve another."""
        self._end(reusable=True)

    def discard(self) -> None:
        """The call was left, or went wrong: close the connection."""
        self._end(reusable=False)

    def _end(self, *, reusable: bool) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.give_back(self.connection, self._lane, reusable=reusable)

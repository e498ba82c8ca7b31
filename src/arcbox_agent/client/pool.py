"""The connections of one client.

There are three lanes, each with a limit of its own: one for short calls, one for calls that
may take as long as they like (follows, commands, waits), one for forwarded connections.  So a
ping never waits for one of the other kinds, however many there are.  All share the idle connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from arcbox_agent.errors import ConnectionLostError

if TYPE_CHECKING:
    from arcbox_agent.client.connection import Connection


class Pool:
    """`max_calls`, `max_streams`, `max_tunnels`: how many connections each lane may use at a time.

    `open_connection` opens a connection, and calls `adopt` with it.
    """

    def __init__(
        self,
        open_connection: Callable[[], Awaitable[Connection]],
        *,
        max_calls: int,
        max_streams: int,
        max_tunnels: int = 1024,
    ) -> None:
        if min(max_calls, max_streams, max_tunnels) < 1:
            raise ValueError("a pool needs at least one connection in each lane")
        self._open_connection = open_connection
        self._calls = asyncio.Semaphore(max_calls)
        self._streams = asyncio.Semaphore(max_streams)
        self._tunnels = asyncio.Semaphore(max_tunnels)
        self._max_idle = max_calls
        self._idle: list[Connection] = []
        self._leased: set[Connection] = set()
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    async def lease(self, *, stream: bool, fresh: bool = False, tunnel: bool = False) -> Lease:
        """Lease a connection for one call.  `fresh`: open a new one in any case; `tunnel`: for a forwarded connection.

        Raises ConnectionLostError if the pool is closed, and what `open_connection` raises.
        """
        lane = self._tunnels if tunnel else self._streams if stream else self._calls
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
        """A connection whose agent has answered, and is still there."""
        for connection in (*self._idle, *self._leased):
            if connection.agent is not None and connection.is_alive():
                return connection
        return None

    def adopt(self, connection: Connection) -> None:
        """Own a connection that is still being opened, so that `close` closes it too."""
        if self._closed:
            connection.abort()
        self._check_open()
        self._leased.add(connection)

    def drop(self, connection: Connection) -> None:
        """Close a connection that was adopted and cannot be used."""
        self._leased.discard(connection)
        connection.abort()

    async def close(self) -> None:
        """Close all connections.  Calls that are still running get ConnectionLostError."""
        self._closed = True
        connections = [*self._idle, *self._leased]
        self._idle.clear()
        for connection in connections:
            connection.abort("the client was closed")
        for connection in connections:
            await connection.wait_closed()

    def give_back(self, connection: Connection, lane: asyncio.Semaphore, *, reusable: bool) -> None:
        """End a lease; only Lease calls this."""
        self._leased.discard(connection)
        lane.release()
        if reusable and not self._closed and len(self._idle) < self._max_idle and connection.is_clean():
            self._idle.append(connection)
        else:
            connection.abort()

    def _take_idle(self) -> Connection | None:
        # The most recently used first: the others are left to go stale.
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
    """The use of one connection.  The first `release` or `discard` ends it."""

    __slots__ = ("_lane", "_pool", "connection", "reused")

    def __init__(self, pool: Pool, lane: asyncio.Semaphore, connection: Connection, reused: bool) -> None:
        self._pool: Pool | None = pool
        self._lane = lane
        self.connection = connection
        #: Whether the connection was idle before; the agent may have closed it since.
        self.reused = reused

    def release(self) -> None:
        """The call is complete: another call may use the connection."""
        self._end(reusable=True)

    def discard(self) -> None:
        """The call was left early, or failed: close the connection."""
        self._end(reusable=False)

    def _end(self, *, reusable: bool) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.give_back(self.connection, self._lane, reusable=reusable)

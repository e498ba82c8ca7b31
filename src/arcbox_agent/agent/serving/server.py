"""All connections of the agent together: how many there may be, and their end.

The bytes that they keep are in the ledger, what only time brings about is the watch's.
"""

from __future__ import annotations

from asyncio import Event, get_running_loop
from socket import SO_SNDBUF, SOL_SOCKET

from arcbox_agent._guest import give_back_memory
from arcbox_agent.agent.config import budget
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.observe.rate import OncePerMinute
from arcbox_agent.agent.serving.call import Dispatch
from arcbox_agent.agent.serving.connection import Connection
from arcbox_agent.agent.serving.ledger import Ledger
from arcbox_agent.agent.serving.outbox import Outbox
from arcbox_agent.agent.serving.shared import Shared
from arcbox_agent.agent.serving.shortage import Shortage
from arcbox_agent.agent.serving.watch import Watch
from arcbox_agent.errors import BusyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Coroutine, Mapping
    from typing import Any

    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.metrics import Metrics
    from arcbox_agent.agent.observe.memory import Memory
    from arcbox_agent.agent.serving.ending import Ending
    from arcbox_agent.agent.serving.listeners import Listener
    from arcbox_agent.agent.serving.route import Route

log = Logger("server")

#: Connections over max_connections that are kept just long enough to answer their first
#: request with a 429 in its own frame version; more than these wait until one of them has gone.
MOST_REFUSALS = 1024

#: A peer that may only look has at most its share, one part of so many, of max_connections (if
#: that is more than LEAST_RESTRICTED) and of max_queued_total; and the kernel keeps at most twice
#: SEND_BUFFER for each of its connections.
SHARES_OF_CONNECTIONS = 16
LEAST_RESTRICTED = 64
SHARES_OF_BYTES = 8
SEND_BUFFER = 32 << 10

#: How often watched connections are looked at.
WATCH_INTERVAL = 1.0


class Server:
    """The connections of one agent."""

    def __init__(
        self, settings: Settings, metrics: Metrics, version: str, routes: Mapping[int, Route], memory: Memory
    ) -> None:
        loop = get_running_loop()
        self._loop = loop
        self._counters = metrics.counters
        self._max_connections = settings.max_connections
        self._connections: dict[Ending, Listener] = {}
        self._refusing: set[Ending] = set()  # those over max_connections
        self._paused: set[Listener] = set()  # while those are too many
        self._changed = Event()  # set when a connection or a task has ended
        self._limit_log = OncePerMinute()
        self._restricted: dict[str, int] = {}  # connections of each peer that may only look
        self._most_restricted = max(LEAST_RESTRICTED, settings.max_connections // SHARES_OF_CONNECTIONS)
        self._ledger = Ledger(
            settings.max_queued_total,
            settings.max_queued_total // SHARES_OF_BYTES,
            lambda: self._watch.add(self._shortage),
        )
        self._shortage = Shortage(memory, self._ledger, metrics.counters, loop.time, give_back_memory)
        interval = WATCH_INTERVAL
        for bound in (settings.frame_timeout, settings.idle_timeout):
            if bound:
                interval = min(interval, max(bound / 4, 0.01))
        self._watch = Watch(loop, interval)
        self._shared = Shared(
            loop,
            settings,
            metrics.counters,
            version.encode(),
            Dispatch(routes, metrics.counters, settings.max_frame_size, self._shortage.admit),
            self._ledger,
            self._watch,
            self._forget,
            self._changed.set,
        )
        metrics.gauge("connections", lambda: len(self._connections), "Connections now.")
        metrics.gauge("requests_running", lambda: len(self._shared.running), "Requests that run in a task now.")
        metrics.gauge(
            "queued_bytes",
            lambda: sum(each.unsent() for each in self._connections),
            "Replies not yet taken by their peers.",
        )
        metrics.gauge("held_bytes", lambda: self._ledger.total, "Bytes counted towards max_queued_total.")

    # --------------------------------------------------------- connections come

    def accept(self, sock: socket.socket, peer: str, owner: str, listener: Listener) -> Coroutine[Any, Any, None]:
        """Take over an accepted socket, whose peer has been checked (see listeners.Accept)."""
        refusal = self._refusal(peer, owner, listener)
        if listener.restricted:
            sock.setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BUFFER)
        outbox = Outbox(sock, self._loop, self._counters)
        connection = Connection(self._shared, sock, outbox, peer, owner, listener.allowed, listener.restricted, refusal)
        # Counted from now on, not from connection_made: a burst must not overshoot.
        self._connections[connection] = listener
        if refusal is not None:
            self._counters["connections_refused_limit"] += 1
            self._refusing.add(connection)
            if len(self._refusing) >= MOST_REFUSALS:
                listener.pause()
                self._paused.add(listener)
        elif listener.restricted:
            self._restricted[owner] = self._restricted.get(owner, 0) + 1
        listener.connections += 1
        self._counters["connections_accepted"] += 1
        return connection.join()

    def _refusal(self, peer: str, owner: str, listener: Listener) -> BusyError | None:
        """Why there can be no more connections, or none of that peer."""
        if len(self._connections) - len(self._refusing) >= self._max_connections:
            self._limit_log.log(log.warning, "connection refused: max_connections reached", "also_refused", peer=peer)
            return BusyError(f"the agent's bound of {self._max_connections} connections is reached (max_connections)")
        most = self._most_restricted
        if listener.restricted and self._restricted.get(owner, 0) >= most:
            reason = "connection refused: the peer has its share of max_connections"
            self._limit_log.log(log.warning, reason, "also_refused", owner, peer=peer, share=most)
            return BusyError(f"{owner} has {most} connections already, all that one who may only look can have")
        return None

    def _forget(self, connection: Ending) -> None:
        """A connection has ended."""
        listener = self._connections.pop(connection, None)
        if listener is not None:
            listener.connections -= 1
            if connection.restricted and connection not in self._refusing:
                left = self._restricted.pop(connection.owner) - 1
                if left:
                    self._restricted[connection.owner] = left
        self._refusing.discard(connection)
        self._watch.discard(connection)
        self._ledger.release(connection)
        while self._paused and len(self._refusing) < MOST_REFUSALS:
            self._paused.pop().resume()
        self._changed.set()

    # ------------------------------------------------------------------ the end

    async def close(self, deadline: float) -> None:
        """Let what runs finish until `deadline` (loop time), close the rest.  The listeners are closed already."""
        self._shared.stopping = True
        for connection in list(self._connections):
            connection.stop()
        await self._until_no_connection(deadline)
        late = len(self._shared.running)
        if late:
            log.warning("calls that did not finish in time are cancelled", calls=late)
        for connection in list(self._connections):
            connection.cancel()
        # A cancelled call still answers and cleans up; then its connection closes.
        await self._until_no_connection(self._loop.time() + budget.CALLS_CANCELLED)
        for connection in list(self._connections):
            connection.cancel()
            connection.abort()
        await self._until_no_connection(self._loop.time() + budget.CONNECTIONS_ABORTED)
        self._watch.close()

    async def _until_no_connection(self, deadline: float) -> None:
        while self._connections or self._shared.running:
            left = deadline - self._loop.time()
            if left <= 0:
                return
            self._changed.clear()
            timer = self._loop.call_later(left, self._changed.set)
            try:
                await self._changed.wait()
            finally:
                timer.cancel()

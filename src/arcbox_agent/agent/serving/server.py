"""All connections of the agent together: bounds over all of them, and their end.

A connection looks after itself while it has something to do.  What only time brings
about (half a frame, a peer that went away unseen, idleness) is found by one timer for
all, which runs only while a connection asks to be watched.
"""

from __future__ import annotations

from asyncio import Event, get_running_loop

from arcbox_agent.agent.config import budget
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.observe.rate import OncePerMinute
from arcbox_agent.agent.serving.connection import Connection
from arcbox_agent.errors import BusyError
from arcbox_agent.wire import encode_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from asyncio import TimerHandle

    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.metrics import Metrics
    from arcbox_agent.agent.serving.listeners import Listener
    from arcbox_agent.agent.serving.route import Route

log = Logger("server")

#: Connections over max_connections that are kept just long enough to answer their first
#: request with a 429 in its own frame version; more than these get one in V1 at once.
MOST_REFUSALS = 64

#: How often watched connections are looked at.
WATCH_INTERVAL = 1.0


class Server:
    """The connections of one agent."""

    def __init__(self, settings: Settings, metrics: Metrics, version: str, routes: dict[int, Route]) -> None:
        loop = get_running_loop()
        self.loop = loop
        self.now = loop.time
        self.routes = routes
        self.counters = metrics.counters
        self.version = version.encode()
        # Copied: an attribute of an own slot is found faster than one of the settings.
        self.max_frame_size = settings.max_frame_size
        self.max_connections = settings.max_connections
        self.max_pipelined = settings.max_pipelined
        self.max_queued_bytes = settings.max_queued_bytes
        self.max_queued_total = settings.max_queued_total
        self.frame_timeout = settings.frame_timeout
        self.idle_timeout = settings.idle_timeout
        self.connections: dict[Connection, Listener] = {}
        self.running: set[Connection] = set()  # those whose task runs
        self.stopping = False
        self._refusing: set[Connection] = set()  # those over max_connections
        self._watched: set[Connection] = set()
        self._watch_timer: TimerHandle | None = None
        self._watch_interval = WATCH_INTERVAL
        for bound in (self.frame_timeout, self.idle_timeout):
            if bound:
                self._watch_interval = min(self._watch_interval, max(bound / 4, 0.01))
        self._holding: set[Connection] = set()  # those that hold counted bytes
        self._held = 0
        self._changed = Event()  # set when a connection or a task has ended
        self._limit_log = OncePerMinute()
        self.closed_log = OncePerMinute()  # of connections that did what they must not
        metrics.gauge("connections", lambda: len(self.connections), "Connections now.")
        metrics.gauge("requests_running", lambda: len(self.running), "Requests that run in a task now.")
        metrics.gauge("queued_bytes", self.queued_bytes, "Replies not yet taken by their peers.")
        metrics.gauge("held_bytes", lambda: self._held, "Bytes counted towards max_queued_total.")

    def queued_bytes(self) -> int:
        # Only a connection with a large queue is among those that hold bytes; the small
        # ones are found in the few that are watched for not being read.
        return sum(connection.queued_bytes() for connection in self._holding | self._watched)

    # --------------------------------------------------------- connections come

    def accept(self, sock: socket.socket, peer: str, listener: Listener) -> Connection | None:
        """Take over an accepted socket, whose peer has been checked."""
        refusal = None
        if len(self.connections) - len(self._refusing) >= self.max_connections:
            self.counters["connections_refused_limit"] += 1
            self._limit_log.log(log.warning, "connection refused: max_connections reached", "also_refused", peer=peer)
            refusal = BusyError(f"the agent's bound of {self.max_connections} connections is reached (max_connections)")
            if len(self._refusing) >= MOST_REFUSALS:
                _send_and_close(sock, encode_error(refusal.code, refusal.message))
                return None
        connection = Connection(self, sock, peer, listener.allowed, refusal)
        # Counted from now on, not from connection_made: a burst must not overshoot.
        self.connections[connection] = listener
        if refusal is not None:
            self._refusing.add(connection)
        listener.connections += 1
        self.counters["connections_accepted"] += 1
        return connection

    def forget(self, connection: Connection) -> None:
        """A connection has ended."""
        listener = self.connections.pop(connection, None)
        if listener is not None:
            listener.connections -= 1
        self._refusing.discard(connection)
        self._watched.discard(connection)
        self._unhold(connection)
        self._changed.set()

    def task_ended(self) -> None:
        self._changed.set()

    # ------------------------------------------------------------ what is held

    def hold(self, connection: Connection, held: int) -> None:
        """`connection` holds `held` bytes now; the largest holder goes where that is too much."""
        self._held += held - connection.held
        connection.held = held
        if held:
            self._holding.add(connection)
        else:
            self._holding.discard(connection)
        if self._held > self.max_queued_total:
            largest = max(self._holding, key=lambda each: each.held)
            self.counters["bound_queued_total"] += 1
            held = largest.held
            self._unhold(largest)
            largest.refuse_for_memory(held)

    def _unhold(self, connection: Connection) -> None:
        self._held -= connection.held
        connection.held = 0
        self._holding.discard(connection)

    # --------------------------------------------------------- what time brings

    def watch(self, connection: Connection) -> None:
        """Look at `connection` now and then, until its `check` says that it needs no more."""
        self._watched.add(connection)
        if self._watch_timer is None:
            self._watch_timer = self.loop.call_later(self._watch_interval, self._look)

    def _look(self) -> None:
        self._watch_timer = None
        now = self.now()
        for connection in list(self._watched):
            if not connection.check(now):
                self._watched.discard(connection)
        if self._watched:
            self._watch_timer = self.loop.call_later(self._watch_interval, self._look)

    # ------------------------------------------------------------------ the end

    async def close(self, deadline: float) -> None:
        """Let what runs finish until `deadline` (loop time), close the rest.  The listeners are closed already."""
        self.stopping = True
        for connection in list(self.connections):
            connection.stop()
        await self._until_no_connection(deadline)
        late = len(self.running)
        if late:
            log.warning("calls that did not finish in time are cancelled", calls=late)
        for connection in list(self.connections):
            connection.cancel()
        # A cancelled call still answers and cleans up; then its connection closes.
        await self._until_no_connection(self.now() + budget.CALLS_CANCELLED)
        for connection in list(self.connections):
            connection.cancel()
            connection.abort()
        await self._until_no_connection(self.now() + budget.CONNECTIONS_ABORTED)
        if self._watch_timer is not None:
            self._watch_timer.cancel()

    async def _until_no_connection(self, deadline: float) -> None:
        while self.connections or self.running:
            left = deadline - self.now()
            if left <= 0:
                return
            self._changed.clear()
            timer = self.loop.call_later(left, self._changed.set)
            try:
                await self._changed.wait()
            finally:
                timer.cancel()


def _send_and_close(sock: socket.socket, data: bytes) -> None:
    try:
        sock.send(data)
    except OSError:
        pass  # its buffer is empty and this is short, so it is gone
    sock.close()

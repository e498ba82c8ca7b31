"""The device: packets from the queues to the connections, and back."""

from __future__ import annotations

import socket
import time
from collections import deque

from tests.vm.vsock_backend.connection import Connection, State
from tests.vm.vsock_backend.memory import GuestMemory
from tests.vm.vsock_backend.packets import HEADER, HOST_CID, STREAM, Header, Op
from tests.vm.vsock_backend.poller import READ, Poller
from tests.vm.vsock_backend.virtqueue import Chain, QueueError, Virtqueue

RX, TX, EVENT = range(3)

MAX_CONNECTIONS = 8192
#: Packets without data that wait for a buffer of the guest.  Beyond it the guest's own
#: packets are left in their queue, so one that never makes room costs no more than this.
MAX_WAITING = 16384
#: Seconds for `CONNECT PORT` to arrive, and for the guest to answer.
PATIENCE = 10.0
#: Ports of the host are taken from here on, as no service of it has such a one.
FIRST_PORT = 1 << 30
LAST_PORT = (1 << 31) - 1


class VsockDevice:
    def __init__(self, poller: Poller, guest_cid: int, path: str) -> None:
        self.poller = poller
        self.guest_cid = guest_cid
        self.memory = GuestMemory()
        self.queues = [Virtqueue(self.memory) for _ in range(3)]
        self._path = path
        self._connections: dict[tuple[int, int], Connection] = {}
        #: Those that have yet to say which port they want.
        self._arriving: set[Connection] = set()
        #: Those that wait for the guest to offer a buffer.
        self._starved: set[Connection] = set()
        self._waiting: deque[Header] = deque()
        self._next_port = FIRST_PORT
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind(path)
        self._listener.listen(1024)
        poller.watch(self._listener.fileno(), READ, self._accept)

    @property
    def running(self) -> bool:
        return self.queues[RX].running and self.queues[TX].running

    # ---- connections

    def _accept(self, events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # gone again, or no descriptor free: the backlog waits
        if len(self._connections) + len(self._arriving) >= MAX_CONNECTIONS:
            sock.close()
            return
        connection = Connection(self, self._take_port(), 0, sock)
        connection.deadline = time.monotonic() + PATIENCE
        self._arriving.add(connection)
        connection.watch()

    def _take_port(self) -> int:
        port = self._next_port
        self._next_port = FIRST_PORT if port == LAST_PORT else port + 1
        return port

    def opened(self, connection: Connection) -> None:
        self._connections[connection.host_port, connection.guest_port] = connection

    def closed(self, connection: Connection) -> None:
        self._arriving.discard(connection)
        self._starved.discard(connection)
        self._connections.pop((connection.host_port, connection.guest_port), None)

    def drop_late(self) -> None:
        """Ends what did not come about in time.  To be called every second or so."""
        now = time.monotonic()
        for connection in list(self._arriving):
            if connection.state not in (State.HANDSHAKE, State.REQUESTED):
                self._arriving.discard(connection)
            elif connection.deadline < now:
                connection.expire()

    def close(self, patience: float) -> None:
        """The guest is gone: delivers what it had sent, for as long as somebody takes it."""
        self.poller.forget(self._listener.fileno())
        self._listener.close()
        deadline = time.monotonic() + patience
        while True:
            for connection in list(self._connections.values()):
                if not connection.undelivered:
                    connection.close()
            left = deadline - time.monotonic()
            if not self._connections or left <= 0:
                break
            self.poller.run_once(min(left, 0.1))
        for connection in [*self._connections.values(), *self._arriving]:
            connection.close()

    # ---- to the guest

    def can_deliver(self) -> bool:
        return self.queues[RX].has_next()

    def starve(self, connection: Connection) -> None:
        """It will be asked to read again once the guest offers a buffer."""
        self._starved.add(connection)

    def send(self, header: Header) -> None:
        self._waiting.append(header)

    def deliver_waiting(self) -> None:
        """Packets without data, then the data of those that found no buffer before."""
        queue = self.queues[RX]
        sent = False
        while self._waiting and (chain := queue.pop()) is not None:
            _fill(chain, self._waiting.popleft().pack())
            queue.push(chain, HEADER.size)
            sent = True
        if sent:
            queue.notify()
        if self._starved and queue.has_next():
            # All of them: each comes to its turn by the poller, and the late ones starve again.
            starved, self._starved = self._starved, set()
            for connection in starved:
                connection.watch()

    def deliver_from(self, connection: Connection) -> None:
        """What a host's client has written, as far as there is room."""
        self.deliver_waiting()
        queue = self.queues[RX]
        budget = 64  # packets, so that one busy stream does not hold up the others
        sent = False
        while budget and connection.credit():
            # Nothing overtakes what waits: an older count of what was taken would come behind a newer.
            if self._waiting or not queue.has_next():
                self._starved.add(connection)
                break
            # Looked at, not taken: there may be nothing to put in it.
            chain = queue.peek()
            room = min(sum(map(len, chain.writable)) - HEADER.size, connection.credit())
            if room <= 0:
                raise QueueError("a buffer without room for data")
            size = connection.read_into(_cut(chain.writable, HEADER.size, room))
            if size is None:
                break
            if size:
                header = connection.header(Op.RW, size)
            else:
                header = connection.header(Op.SHUTDOWN, 0, connection.end_flags())
            _fill(chain, header.pack())
            queue.take()
            queue.push(chain, HEADER.size + size)
            sent = True
            if not size:
                break
            budget -= 1
        if sent:
            queue.notify()

    # ---- from the guest

    def receive(self) -> None:
        queue = self.queues[TX]
        received = False
        while len(self._waiting) < MAX_WAITING and (chain := queue.pop()) is not None:
            header, payload = _split(chain)
            self._handle(header, payload)
            queue.push(chain, 0)
            received = True
        if received:
            queue.notify()

    def _handle(self, header: Header, payload: list[memoryview]) -> None:
        connection = self._connections.get((header.destination_port, header.source_port))
        if header.source_cid != self.guest_cid or header.destination_cid != HOST_CID:
            return
        if connection is not None:
            connection.receive(header, payload)
        elif header.op == Op.REQUEST and header.type == STREAM:
            self._connect_to_host(header)
        elif header.op != Op.RST:
            self._refuse(header)

    def _connect_to_host(self, header: Header) -> None:
        if len(self._connections) + len(self._arriving) >= MAX_CONNECTIONS:
            self._refuse(header)
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(f"{self._path}_{header.destination_port}")
        except OSError:
            sock.close()
            self._refuse(header)
            return
        connection = Connection(self, header.destination_port, header.source_port, sock)
        self.opened(connection)
        connection.accept(header)

    def _refuse(self, header: Header) -> None:
        self.send(
            Header(
                HOST_CID,
                self.guest_cid,
                header.destination_port,
                header.source_port,
                0,
                STREAM,
                Op.RST,
            )
        )

    # ---- the queues

    def work(self) -> None:
        """The guest has put something into a queue, or taken something out."""
        while True:
            self.receive()
            self.deliver_waiting()
            # A queue that was left alone because too much waited: now there may be room.
            if not self.queues[TX].has_next() or len(self._waiting) >= MAX_WAITING:
                return

    def stopped(self) -> None:
        """The driver is gone: so are its streams, but what it sent is still delivered."""
        self._waiting.clear()
        for connection in list(self._connections.values()):
            connection.guest_gone()


def _fill(chain: Chain, data: bytes) -> None:
    at = 0
    for piece in chain.writable:
        part = data[at : at + len(piece)]
        piece[: len(part)] = part
        at += len(part)
        if at == len(data):
            return
    raise QueueError("a buffer without room for a header")


def _cut(pieces: list[memoryview], skip: int, size: int) -> list[memoryview]:
    """`size` bytes of the pieces, `skip` bytes into them."""
    cut = []
    for piece in pieces:
        part = piece[skip : skip + size]
        skip = max(0, skip - len(piece))
        if part:
            cut.append(part)
            size -= len(part)
        if not size:
            break
    return cut


def _split(chain: Chain) -> tuple[Header, list[memoryview]]:
    """A packet of the guest: its header, and the pieces of its payload."""
    begin = bytearray()
    payload = []
    for piece in chain.readable:
        missing = HEADER.size - len(begin)
        begin += piece[:missing]
        if len(piece) > missing:
            payload.append(piece[missing:])
    if len(begin) < HEADER.size:
        raise QueueError("a packet shorter than its header")
    return Header.unpack(bytes(begin)), payload

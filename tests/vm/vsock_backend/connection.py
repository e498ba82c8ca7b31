"""One stream between a port of the host and a port of the guest.

    HANDSHAKE    a host's client is connected; `CONNECT PORT` is awaited
    REQUESTED    the guest was asked and has not answered
    UP           bytes go both ways
    CLOSING      the guest has closed; what it sent still goes to the host
    CLOSED       nothing is left

Nothing is read from the host's socket before the guest has both room for it (credit)
and a buffer to put it in, so towards the guest nothing is ever held here.  Towards the
host at most BUFFER_SIZE bytes are, since the guest is told so.
"""

from __future__ import annotations

import enum
import select
import socket
from typing import TYPE_CHECKING

from tests.vm.vsock_backend import poller
from tests.vm.vsock_backend.packets import HOST_CID, NO_RECEIVE, NO_SEND, STREAM, Header, Op

if TYPE_CHECKING:
    from tests.vm.vsock_backend.device import VsockDevice

#: What a guest may send of one stream before the host's reader has taken it.
BUFFER_SIZE = 256 * 1024

_WRAP = 0xFFFFFFFF
#: `CONNECT 4294967295\n`, with room for a CR.
_LONGEST_HANDSHAKE = 32


class State(enum.Enum):
    HANDSHAKE = "handshake"
    REQUESTED = "requested"
    UP = "up"
    CLOSING = "closing"
    CLOSED = "closed"


class Connection:
    def __init__(self, device: VsockDevice, host_port: int, guest_port: int, sock: socket.socket) -> None:
        self.device = device
        self.host_port = host_port
        self.guest_port = guest_port
        self.state = State.HANDSHAKE
        #: By when HANDSHAKE and REQUESTED must be over.
        self.deadline = 0.0
        self._socket = sock
        sock.setblocking(False)
        # Towards the guest.
        self._guest_room = 0
        self._guest_taken = 0
        self._sent = 0
        self._end_of_host = False
        self._host_gone = False
        self._guest_receives = True
        # Towards the host.
        self._pending = bytearray()
        self._taken = 0
        self._taken_told = 0
        self._guest_ended = False

    # ---- packets to the guest

    def header(self, op: Op, length: int = 0, flags: int = 0) -> Header:
        self._taken_told = self._taken
        return Header(
            HOST_CID,
            self.device.guest_cid,
            self.host_port,
            self.guest_port,
            length,
            STREAM,
            op,
            flags,
            BUFFER_SIZE,
            self._taken & _WRAP,
        )

    def _send(self, op: Op, flags: int = 0) -> None:
        self.device.send(self.header(op, 0, flags))

    def credit(self) -> int:
        """How many bytes the guest has room for."""
        in_flight = (self._sent - self._guest_taken) & _WRAP
        return max(0, self._guest_room - in_flight)

    # ---- life

    def accept(self, request: Header) -> None:
        """The guest connects to the host, whose socket is connected already."""
        self._guest_room, self._guest_taken = request.buffer_size, request.taken
        self.state = State.UP
        self._send(Op.RESPONSE)
        self.watch()

    def close(self) -> None:
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self.device.poller.forget(self._socket.fileno())
            self._socket.close()
            self._pending.clear()
            self.device.closed(self)

    def reset(self) -> None:
        self._send(Op.RST)
        self.close()

    def expire(self) -> None:
        """What should have come has not."""
        if self.state is State.REQUESTED:
            self.reset()
        else:
            self.close()

    def guest_gone(self) -> None:
        """There will be no more of the guest; what it sent still goes to the host."""
        self.state = State.CLOSING
        if self._pending:
            self.watch()
        else:
            self.close()

    @property
    def undelivered(self) -> int:
        """Bytes of the guest that the host's reader has yet to take."""
        return len(self._pending)

    def watch(self) -> None:
        """Asks the poller for what this connection can use at present, and no more."""
        if self.state is State.CLOSED:
            return
        mask = 0
        if self.state is State.HANDSHAKE:
            mask = poller.READ
        elif self._wants_to_read():
            if self.device.can_deliver():
                mask = poller.READ
            else:
                self.device.starve(self)
        if self._pending:
            mask |= poller.WRITE
        await_hangup = self.state is State.REQUESTED or (self._end_of_host and not self._host_gone)
        if mask or await_hangup:
            self.device.poller.watch(self._socket.fileno(), mask, self._ready)
        else:
            # Even a mask of 0 reports a hang-up, again and again: what the host wrote
            # before it hung up is to be read first, once there is room for it.
            self.device.poller.forget(self._socket.fileno())

    def _wants_to_read(self) -> bool:
        return self.state is State.UP and self._guest_receives and not self._end_of_host and self.credit() > 0

    # ---- the host's socket

    def _ready(self, events: int) -> None:
        if self.state is State.HANDSHAKE:
            self._shake_hands()
            return
        if self.state is State.REQUESTED:
            self.reset()  # only a hang-up is watched for: the client has gone
            return
        if events & (poller.WRITE | poller.HANGUP) and self._pending:
            self._flush()
        if events & (poller.READ | poller.HANGUP) and self._wants_to_read():
            self.device.deliver_from(self)
        elif events & poller.HANGUP and self._end_of_host and self.state is State.UP:
            # It had ended its sending before; now it is gone altogether.
            self._host_gone = True
            self._send(Op.SHUTDOWN, NO_SEND | NO_RECEIVE)
        self.watch()

    def _shake_hands(self) -> None:
        try:
            seen = self._socket.recv(_LONGEST_HANDSHAKE, socket.MSG_PEEK)
        except OSError:
            self.close()
            return
        line, newline, _ = seen.partition(b"\n")
        if not newline and 0 < len(seen) < _LONGEST_HANDSHAKE:
            return
        word, _, port = line.rstrip(b"\r").partition(b" ")
        if not newline or word != b"CONNECT" or not port.isdigit() or not 0 < int(port) <= _WRAP:
            self.close()
            return
        # The bytes behind the line stay in the socket: they are the guest's.
        self._socket.recv(len(line) + 1)
        self.guest_port = int(port)
        if not self.device.running:
            self.close()  # no driver yet: the client may try again
            return
        self.state = State.REQUESTED
        self.device.opened(self)
        self._send(Op.REQUEST)
        self.watch()

    def read_into(self, pieces: list[memoryview]) -> int | None:
        """Bytes of the host into a buffer of the guest; None where there are none now.

        0: the host has ended its sending.  The connection may be closed afterwards.
        """
        try:
            size, _, _, _ = self._socket.recvmsg_into(pieces)
        except BlockingIOError:
            return None
        except OSError:
            # The host closed without having read all: its reader is told by a reset,
            # and so is the guest.
            self.reset()
            return None
        if size:
            self._sent = (self._sent + size) & _WRAP
            return size
        self._end_of_host = True
        return 0

    def end_flags(self) -> int:
        """What the host has ended: its sending alone, or all."""
        check = select.poll()
        check.register(self._socket.fileno(), 0)
        self._host_gone = any(events & select.POLLHUP for _, events in check.poll(0))
        return NO_SEND | NO_RECEIVE if self._host_gone else NO_SEND

    def _flush(self) -> None:
        try:
            size = self._socket.send(self._pending)
        except BlockingIOError:
            return
        except OSError:
            self.reset()
            return
        del self._pending[:size]
        self._count_taken(size)
        if not self._pending:
            self._delivered_all()

    def _count_taken(self, size: int) -> None:
        self._taken += size
        # Told early enough for the guest never to run dry, and not for every packet; and not to one
        # that has closed, which would answer with a reset.
        if self.state is State.UP and self._taken - self._taken_told >= BUFFER_SIZE // 4:
            self._send(Op.CREDIT_UPDATE)

    def _delivered_all(self) -> None:
        if self.state is State.CLOSING:
            self.close()
        elif self._guest_ended:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.reset()

    # ---- packets of the guest

    def receive(self, header: Header, payload: list[memoryview]) -> None:
        self._guest_room = header.buffer_size
        self._guest_taken = header.taken
        match header.op:
            case Op.RESPONSE if self.state is State.REQUESTED:
                self.state = State.UP
                # The socket's buffer is empty, so a line of 14 bytes always fits.
                self._socket.send(b"OK %d\n" % self.host_port)
            case Op.RW if self.state is State.UP and not self._guest_ended:
                self._take(payload, header.length)
            case Op.SHUTDOWN if self.state is State.UP:
                self._shutdown(header.flags)
            case Op.CREDIT_REQUEST if self.state is State.UP:
                self._send(Op.CREDIT_UPDATE)
            case Op.CREDIT_UPDATE:
                pass
            case Op.RST if self._pending:
                self.state = State.CLOSING
            case Op.RST:
                self.close()
            case _ if self.state is not State.CLOSING:
                self.reset()
        self.watch()

    def _take(self, payload: list[memoryview], length: int) -> None:
        if len(self._pending) + length > BUFFER_SIZE:
            self.reset()  # more than it was allowed
            return
        left = length
        for piece in payload:
            self._pending += piece[:left]
            left -= min(left, len(piece))
        if left:
            self.reset()  # a length beyond its own buffer
            return
        self._flush()

    def _shutdown(self, flags: int) -> None:
        if flags & NO_RECEIVE:
            self._guest_receives = False
        if flags & NO_SEND:
            self._guest_ended = True
        if self._guest_ended and not self._guest_receives:
            # Both: the guest has closed, and waits for this answer.
            self._send(Op.RST)
            self.state = State.CLOSING
        if not self._pending:
            self._delivered_all()

"""One forward: a stream on one side, a socket on the other.

    input -> pending -> send(2)          socket -> recv(2) -> output, as far as the peer's credit goes

What the socket does not take is pending, within the stream's window; what the peer does not take
stays in the socket.  Each direction has its own end, and the forward ends with the second one.
"""

from __future__ import annotations

import socket
import struct
from asyncio import sleep

from arcbox_agent.agent.forwards.dial import system_error
from arcbox_agent.agent.serving.stream import PIECE, Stream
from arcbox_agent.errors import AgentFailedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.wire import Connected

#: Pieces that one forward sends before others get their turn.
PIECES_A_TURN = 4

#: SO_LINGER with no time: close resets the connection.
_RESET = struct.pack("ii", 1, 0)


class Relay(Stream):
    """A stream with one output, whose name is empty, and with input.

    `sock`: connected, does not block; closed by `close`.
    """

    __slots__ = ("_passed", "_reset", "_sock", "_watching_read", "_watching_write")

    def __init__(self, call: Call, sock: socket.socket, heartbeat_ms: int) -> None:
        self._sock = sock
        self._watching_read = False
        self._watching_write = False
        self._passed = False  # bytes went on that the peer has not been told of
        self._reset: OSError | None = None
        super().__init__(call, heartbeat_ms)

    async def run(self, first: Connected, window: int) -> None:
        """Send `first`, and pass on both ways, until both have ended or the peer leaves.

        AgentFailedError: the connection is broken; and what Stream.wait raises.
        """
        await self.send(first)
        del first
        output = self.open_output("", 0, window)
        await self.open_input()
        while not (output.over and self.closed) and not self.detached:
            if output.over or not self.credit(""):
                await self.wait()
                continue
            for _ in range(PIECES_A_TURN):
                size = min(self.credit(""), PIECE)
                if not size:
                    break
                data = self._receive(size)
                if data is None:
                    await self._readable()
                    break
                if not data:
                    if self._reset is not None:
                        raise broken(self._reset)
                    await self.end_output("")
                    break
                await self.send_output("", data)
                del data
            else:
                await sleep(0)

    def _receive(self, size: int) -> bytes | None:
        """What is in the socket; None: nothing yet; empty: no more comes."""
        try:
            return self._sock.recv(size)
        except BlockingIOError:
            return None
        except OSError as error:
            raise broken(error) from error

    async def _readable(self) -> None:
        """Until the socket may have something, or anything else has happened."""
        if not self._watching_read:
            self._watching_read = True
            self._loop.add_reader(self._sock.fileno(), self._has_come)
        await self.wait()

    def _has_come(self) -> None:
        # Not watched while nobody takes it: it would be reported again and again.
        self._watching_read = False
        self._loop.remove_reader(self._sock.fileno())
        self.wake()

    def pass_through(self, data: memoryview) -> int:
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._note_reset(error)
            return 0  # _pass_on finds out again
        self._passed = True
        return sent

    def _note_reset(self, error: OSError) -> None:
        # Only the first one who asks gets it: the next gets EPIPE.
        if isinstance(error, ConnectionResetError):
            self._reset = error

    def input_came(self) -> None:
        if not self._watching_write:
            self._pass_on()

    def _pass_on(self) -> None:
        """Write what is pending, and the end behind it."""
        sent = 0
        pending = self.pending
        try:
            with memoryview(pending) as view:
                while sent < len(view):
                    sent += self._sock.send(view[sent:])
        except BlockingIOError:
            pass
        except OSError as error:
            # Nobody reads there any more.  What was written there before may still be in the socket.
            self._note_reset(error)
            self.close_input()
            self._watch_write(False)
            self.wake()
            return
        self._watch_write(sent < len(pending))
        ends = self.ending and sent == len(pending)
        if ends:
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it is reset: the next recv tells
        if sent or ends or self._passed:
            self._passed = False
            self.accept(sent)
        if ends:
            self.wake()

    def _watch_write(self, wanted: bool) -> None:
        if wanted == self._watching_write:
            return
        self._watching_write = wanted
        if wanted:
            self._loop.add_writer(self._sock.fileno(), self._pass_on)
        else:
            self._loop.remove_writer(self._sock.fileno())

    def close(self) -> None:
        super().close()
        fileno = self._sock.fileno()
        if self._watching_read:
            self._loop.remove_reader(fileno)
        if self._watching_write:
            self._loop.remove_writer(fileno)
        over = bool(self.outputs) and self.outputs[""].over
        if not (self.closed and (over or self.detached)):
            # The other end must not take this for the end of what it gets.
            reset(self._sock)
        self._sock.close()


def reset(sock: socket.socket) -> None:
    """Make the close of a TCP connection a reset."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def broken(error: OSError) -> AgentFailedError:
    return AgentFailedError(system_error(error))

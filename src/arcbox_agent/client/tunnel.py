"""A connection into the guest as an asyncio transport.

    protocol <-- data_received ---- StreamOutput <-- agent        credit goes back as data is delivered
    protocol --- write -----------> StreamInput  --> agent        as far as the agent's credit goes

What the credit does not allow yet waits here, and above HIGH_WATER of it the protocol is told to
pause writing.  A protocol that pauses reading gets what is on its way later, and the agent sends
no more than the window: nothing lies unread in the connection to the agent.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from typing import TYPE_CHECKING

from arcbox_agent import wire
from arcbox_agent.client import calls
from arcbox_agent.client.calls import WINDOW
from arcbox_agent.errors import ConnectionLostError, FrameError, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from arcbox_agent.client.connection import Connection
    from arcbox_agent.client.pool import Lease
    from arcbox_agent.wire import Connected, Frame

#: The most bytes of one StreamInput.
PIECE = 64 << 10

#: Bytes that wait for credit above which a protocol is to pause, and below which it goes on.
HIGH_WATER, LOW_WATER = 64 << 10, 16 << 10

#: How many of the agent's signs of life may be missing.
MISSED = 3


class Tunnel(asyncio.Transport):
    """The stream of a ConnectRequest or AcceptRequest that was answered with `connected`.

    Its protocol's methods are called as those of any transport; `connection_lost` gets None after
    an orderly end, an OSError where the connection in the guest broke, and a ConnectionLostError
    where that to the agent did.
    """

    def __init__(self, lease: Lease, trace_id: str | None, connected: Connected, heartbeat: float) -> None:
        super().__init__({"peername": connected.remote, "sockname": connected.local})
        self._loop = asyncio.get_running_loop()
        self._lease: Lease | None = lease
        self._connection: Connection = lease.connection
        self._trace_id = trace_id
        self._protocol: asyncio.BaseProtocol = asyncio.Protocol()
        self._task: asyncio.Task[None] | None = None
        # Into the guest.
        self._buffer = bytearray()
        self._offset = 0  # of what comes next
        self._until = 0
        self._ending = False  # nothing is written any more
        self._end_sent = False
        self._closed_there = False  # nobody reads it any more, or its end was accepted
        self._dropped = False  # something that was written was not sent
        self._writing_paused = False
        self._high, self._low = HIGH_WATER, LOW_WATER
        # Out of the guest.
        self._cursor = 0  # of what comes next
        self._taken = 0  # by the protocol
        self._granted = WINDOW
        self._waiting: deque[bytes] = deque()  # while the protocol does not read
        self._over = False  # no more comes
        self._eof_due = False  # and the protocol has not been told so
        self._reading_paused = False
        self._closing = False  # by this end
        self._leaving = False  # the agent was told that this end does not want more
        self._interval = heartbeat
        self._heard = self._sent = self._loop.time()
        self._timer = self._loop.call_later(heartbeat / 2, self._tick)
        # At the end.
        self._error: BaseException | None = None
        self._finished = False  # the protocol was told

    def start(self, protocol: asyncio.BaseProtocol) -> None:
        """Begin to pass on what comes, to `protocol`."""
        self._protocol = protocol
        protocol.connection_made(self)
        self._task = self._loop.create_task(self._run())

    # ------------------------------------------------------ asyncio's transport

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return not self._reading_paused and not self.is_closing()

    def pause_reading(self) -> None:
        self._reading_paused = True

    def resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._loop.call_soon(self._deliver)

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._ending:
            raise RuntimeError("Cannot write after write_eof or close")
        if self._lease is None or self._closed_there:
            self._dropped = self._dropped or bool(data)
            return
        if not self._buffer:
            # Most often all of it may be sent: without a copy into the buffer.
            sent = 0
            view = memoryview(data)
            while sent < len(view) and self._offset < self._until:
                piece = view[sent : sent + min(PIECE, self._until - self._offset)]
                self._send(wire.StreamInput(offset=self._offset, data=bytes(piece)))
                self._offset += len(piece)
                sent += len(piece)
            data = view[sent:]
        self._buffer += data
        self._flush()
        if len(self._buffer) > self._high and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        if not self._ending:
            self._ending = True
            self._flush()

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_WATER if high is None else high
        self._low = self._high // 4 if low is None else low

    def close(self) -> None:
        """Send what was written, and its end; then leave.  What still comes is dropped."""
        if self._closing:
            return
        self._closing = True
        self._waiting.clear()
        self._eof_due = False
        self._ending = True
        if self._lease is None:
            self._loop.call_soon(self._deliver)
        self._flush()
        self._leave()

    def abort(self) -> None:
        """Leave at once: the other end gets a reset where it can get one."""
        self._closing = True
        self._end(None)
        self._loop.call_soon(self._deliver)

    # ------------------------------------------------------------ into the guest

    def _send(self, message: wire.Message) -> None:
        self._sent = self._loop.time()
        try:
            self._connection.send(wire.encode_message(message, self._trace_id), self._trace_id)
        except ConnectionLostError:
            pass  # _run is told too

    def _flush(self) -> None:
        """Send what may be sent."""
        if self._lease is None:
            return
        buffer = self._buffer
        while buffer and self._offset < self._until:
            size = min(len(buffer), PIECE, self._until - self._offset)
            data = bytes(memoryview(buffer)[:size])
            del buffer[:size]
            last = self._ending and not buffer
            self._send(wire.StreamInput(offset=self._offset, data=data, close=last))
            self._offset += size
            self._end_sent = last
        if self._ending and not buffer and not self._end_sent:
            self._end_sent = True
            self._send(wire.StreamInput(offset=self._offset, close=True))
        if self._writing_paused and len(buffer) <= self._low:
            self._writing_paused = False
            self._protocol.resume_writing()

    def _take_accepted(self, accepted: wire.StreamAccepted) -> None:
        self._until = max(self._until, accepted.until)
        if accepted.closed and not self._closed_there:
            self._closed_there = True
            self._dropped = self._dropped or bool(self._buffer) or accepted.offset < self._offset
            self._buffer.clear()
            self._end_sent = True
        self._flush()
        self._leave()

    def _leave(self) -> None:
        """Tell the agent that this end is closed, once the other one has got everything."""
        if self._closing and self._closed_there and not self._leaving and self._lease is not None:
            self._leaving = True
            self._send(wire.StreamControl(detach=True))

    # ---------------------------------------------------------- out of the guest

    async def _run(self) -> None:
        connection = self._connection
        error: BaseException | None = None
        over = False
        try:
            while not over and self._lease is not None:
                frame = connection.take()
                if frame is None:
                    await connection.more()
                    continue
                self._heard = self._loop.time()
                over = self._take(frame)
        except RequestError as refusal:
            error, over = broken(refusal), True  # a complete answer
        except asyncio.CancelledError:
            return  # by _end
        except Exception as failure:
            error = failure
        self._task = None
        lease = self._lease
        if over and lease is not None:
            self._lease = None
            lease.release()
            self._finish(error)
        else:
            self._end(error)

    def _take(self, frame: Frame) -> bool:
        """Whether it is the last one."""
        kind = frame.type
        if kind == wire.StreamOutput.TYPE:
            output = wire.StreamOutput.decode(frame.payload)
            if output.cursor != self._cursor:
                raise FrameError(f"output at {output.cursor}, where {self._cursor} comes next")
            self._cursor += len(output.data)
            if self._cursor > self._granted:
                raise FrameError(f"output up to {self._cursor}, where {self._granted} was allowed")
            if self._over:
                raise FrameError("output behind its end")
            if self._closing:
                self._grant(len(output.data))
            elif self._reading_paused or self._waiting:
                self._waiting.append(output.data)
            else:
                self._give(output.data)
        elif kind == wire.StreamAccepted.TYPE:
            self._take_accepted(wire.StreamAccepted.decode(frame.payload))
        elif kind == wire.StreamEnd.TYPE:
            self._over = self._eof_due = True
            self._deliver()
        elif kind == wire.StreamAlive.TYPE:
            pass
        else:
            calls.decode_reply(frame, wire.Empty)
            return True
        return False

    def _give(self, data: bytes) -> None:
        self._protocol.data_received(data)  # type: ignore[attr-defined]
        self._grant(len(data))

    def _grant(self, size: int) -> None:
        self._taken += size
        if self._granted - self._taken <= WINDOW // 2 and not self._over and self._lease is not None:
            self._granted = self._taken + WINDOW
            self._send(wire.StreamCredit(taken=self._taken, until=self._granted))

    def _deliver(self) -> None:
        """Give the protocol what has come, while it reads, and behind the last byte the end."""
        while self._waiting and not self._reading_paused:
            self._give(self._waiting.popleft())
        if self._eof_due and not self._waiting and not self._reading_paused and not self._closing:
            self._eof_due = False
            if not self._protocol.eof_received():  # type: ignore[attr-defined]
                self.close()
        if self._lease is None:
            self._finish_delivered()

    # ------------------------------------------------------------- heartbeat, end

    def _tick(self) -> None:
        if self._lease is None:
            return
        now = self._loop.time()
        if now - self._heard > MISSED * self._interval:
            self._end(ConnectionLostError(f"nothing was heard of the agent for {now - self._heard:.3g} s"))
            return
        if now - self._sent >= self._interval * 0.45:
            self._send(wire.StreamHeartbeat())
        self._timer = self._loop.call_later(self._interval / 2, self._tick)

    def _end(self, error: BaseException | None) -> None:
        """Give the stream up."""
        self._waiting.clear()
        self._eof_due = False
        self._closing = True
        lease, self._lease = self._lease, None
        if lease is None:
            return
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        lease.discard()
        self._finish(error)

    def _finish(self, error: BaseException | None) -> None:
        self._timer.cancel()
        self._buffer.clear()
        if error is None and self._dropped:
            error = BrokenPipeError(errno.EPIPE, "the other end did not read all that was written")
        self._error = error
        # In a moment, as asyncio's own transports do: who closes is not called back at once.
        self._loop.call_soon(self._deliver)

    def _finish_delivered(self) -> None:
        """The stream is over: the protocol is told, behind the last of what has come."""
        if self._waiting or self._eof_due or self._finished:
            return
        self._finished = True
        if self._writing_paused:
            self._writing_paused = False
            self._protocol.resume_writing()
        self._protocol.connection_lost(self._error)  # type: ignore[arg-type]


def broken(refusal: RequestError) -> Exception:
    """The OSError whose name an Error begins with, as `ECONNRESET: Connection reset by peer`; else the refusal."""
    name, _, text = refusal.message.partition(": ")
    number = getattr(errno, name, None) if name.startswith("E") and name.isupper() else None
    if number is None:
        return refusal
    error = OSError(number, f"{text} (in the guest)")
    error.__cause__ = refusal
    return error

"""One connection: bytes in, requests to their handlers, replies out in order.

    data_received -> FrameDecoder -> _advance -> a handler -> one write

What one read brought is answered with one write.  Plain pings, the most frequent
request by far, are answered in compiled code.  A handler's reply is written in place; a
coroutine that it returns instead runs as the connection's only task, and what arrives
meanwhile waits in `_waiting`, up to the bounds of the settings.

Three things stop the reading, and so, by the kernel's own flow control, the peer:
its requests wait in too great a number, it does not read its replies, or it has had
a turn and others are due.  Nothing of this touches another connection.

The end.  A peer that has shut down only its sending side still reads: it gets every
reply it is owed, streams included, before the connection is closed.  A peer that has
closed gets nothing more, and its running call is cancelled at once.  Both look the
same to a read; a send of no bytes tells them apart: it fails with EPIPE where the
peer can no longer read, on unix sockets and on vsock.
"""

from __future__ import annotations

from asyncio import CancelledError, Protocol, sleep
from collections import deque
from fcntl import ioctl
from os import SPLICE_F_MOVE, SPLICE_F_NONBLOCK, close, dup, splice
from socket import MSG_MORE
from sys import byteorder
from termios import FIONREAD
from types import CoroutineType

from arcbox_agent.agent.config import budget
from arcbox_agent.agent.config.access import NEEDS
from arcbox_agent.agent.observe.log import Labels, Logger, current_labels
from arcbox_agent.agent.serving.call import Call
from arcbox_agent.agent.serving.listeners import owner_of
from arcbox_agent.errors import (
    AgentFailedError,
    BadRequestError,
    ConnectionLostError,
    DecodeError,
    ForbiddenError,
    FrameError,
    RequestError,
)
from arcbox_agent.wire import FrameDecoder, encode_error, encode_message, message_class, serve_pings

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from asyncio import Future, Task, Transport
    from collections.abc import Coroutine
    from typing import Any

    from arcbox_agent.agent.config.access import Access
    from arcbox_agent.agent.serving.server import Server
    from arcbox_agent.wire import Frame, Message

log = Logger("connection")

#: Pings answered, and other requests answered in place, before other connections get
#: their turn: a few milliseconds either way, and more pings than one read brings.
PINGS_A_TURN = 32768
REQUESTS_A_TURN = 64

#: Replies are written when this many bytes have come together, and at the end of a turn.
WRITE_SIZE = 128 << 10

#: What is shorter is cheaper to copy than to refer to.
COPIED = 4 << 10

#: A connection's bytes in flight count towards max_queued_total from here on: the small
#: change of every connection is bounded by max_connections.
UNCOUNTED = 16 << 10

#: What a frame that waits costs besides its payload and its trace id: the objects that hold them.
FRAME_COST = 128

#: The longest text of an Error, in characters.
ERROR_TEXT = 8 << 10

#: How often it is tried to send where there is no descriptor left to wait with.
LOOK_AGAIN = 0.02

#: Shared by all connections on which nobody waits, and never changed.
_NO_WAITERS: list[Future[None]] = []


class Connection(Protocol):
    """The server's side of one connection.

    `refusal`: answers the first request with this error, whatever it is, and closes.
    """

    __slots__ = (
        "_aborted",
        "_blocked",
        "_broken",
        "_call",
        "_closing_since",
        "_decoder",
        "_drained",
        "_ended",
        "_frame_since",
        "_in_frame",
        "_labels",
        "_last_request",
        "_lost",
        "_paused",
        "_refusal",
        "_server",
        "_socket",
        "_task",
        "_transport",
        "_turn_over",
        "_v2",
        "_waiting",
        "_waiting_bytes",
        "allowed",
        "held",
        "peer",
    )

    def __init__(
        self,
        server: Server,
        sock: socket.socket,
        peer: str,
        allowed: frozenset[Access],
        refusal: RequestError | None = None,
    ) -> None:
        self._server = server
        self._socket = sock  # the transport closes it
        self.peer = peer
        self._labels = Labels(peer)  # of a request without a trace id
        self.allowed = allowed
        self._refusal = refusal
        self._decoder = FrameDecoder(server.max_frame_size)
        self._transport: Transport | None = None
        self._task: Task[None] | None = None
        self._call: Call | None = None  # of the task
        self._waiting: deque[Frame] | None = None  # taken off the decoder, not yet answered
        self._waiting_bytes = 0
        self._broken: FrameError | None = None  # what comes after `_waiting`
        self._drained: list[Future[None]] = _NO_WAITERS  # what senders wait for
        self._blocked = False  # the peer does not read: the transport holds unsent bytes
        self._paused = False  # we do not read
        self._turn_over = False  # others are due; call_soon brings the next turn
        self._ended = False  # the peer sends no more
        self._aborted = False  # the transport is as good as gone
        self._lost = False  # the transport is gone
        self._closing_since = 0.0
        self._frame_since = 0.0  # when the frame that is not whole yet began
        self._last_request = server.now()
        self._in_frame = False  # past the transport, of which only a part may be sent
        self._v2 = False  # the version of the last request: for an error about none
        self.held = 0  # counted towards max_queued_total

    # ------------------------------------------------- what the transport calls

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        self._transport = transport
        # pause_writing as soon as the kernel does not take all, resume_writing when it
        # has: then a sent buffer is never in use longer than `_blocked` says.
        transport.set_write_buffer_limits(high=0)
        if self._refusal is not None or self._server.idle_timeout:
            self._server.watch(self)

    def data_received(self, data: bytes) -> None:
        if self._closing_since:
            return
        server = self._server
        counters = server.counters
        counters["bytes_received"] += len(data)
        decoder = self._decoder
        decoder.feed(data)
        if self._task is not None or self._blocked or self._turn_over:
            self._hold()
            return
        if not (self._waiting or self._paused or self._refusal):
            # Nothing but whole pings, by far the most frequent read of all, from a peer that
            # reads: what _advance would do, without its questions.
            out = bytearray()
            try:
                pings = serve_pings(decoder, out, server.version, PINGS_A_TURN)
            except FrameError as error:
                self._break(error, out)
                return
            if pings:
                counters["requests"] += pings
                counters["bytes_sent"] += len(out)
                # uvloop sends bytes, and only them, without making a memoryview first.
                self._transport.write(bytes(out))  # type: ignore[union-attr]
                if self._blocked:
                    self._settle()
                    return
                if not (decoder.buffered or self._frame_since or self.held or server.idle_timeout):
                    return
                self._last_request = server.now()
        self._advance()

    def eof_received(self) -> bool:
        self._ended = True
        if self._closing_since:
            return True
        try:
            self._decoder.eof()
        except FrameError as error:
            self._broken = self._broken or error
        if self._task is None and not self._blocked and not self._turn_over:
            self._advance()
        elif self._peer_is_gone():
            self.abort()
        else:
            self._server.watch(self)
        # The transport stays open: the replies that are still owed must go out.
        return True

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self.count_held()
        if self._drained:
            for waiter in self._drained:
                if not waiter.done():
                    waiter.set_result(None)
            self._drained.clear()
        elif self._task is None and not self._turn_over and not self._closing_since:
            self._advance()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        if not self._closing_since:
            self._closing_since = self._server.now()
        self._cancel_task()
        self._waiting = None
        # What a call started may outlive the connection, and its context refers to it: not to
        # the frame that never became whole.
        self._decoder = FrameDecoder(self._server.max_frame_size)
        self._server.forget(self)

    # ------------------------------------------------------- requests to replies

    def _advance(self) -> None:
        """Answer what has arrived, until it is used up or something must wait."""
        server = self._server
        counters = server.counters
        out = bytearray()
        turn = REQUESTS_A_TURN
        try:
            while not self._blocked:
                if not self._waiting and self._refusal is None:
                    pings = serve_pings(self._decoder, out, server.version, PINGS_A_TURN)
                    if pings:
                        counters["requests"] += pings
                        self._last_request = server.now()
                        if pings == PINGS_A_TURN:
                            turn = 0
                if not turn:
                    self._turn_over = True
                    server.loop.call_soon(self._next_turn)
                    break
                frame = self._next_frame()
                if frame is None:
                    break
                turn -= 1
                reply = self._answer(frame)
                if reply is None:
                    break
                out += reply
                if self._refusal is not None:
                    self._close(out)
                    return
                if len(out) >= WRITE_SIZE:
                    self._write(out)
                    out = bytearray()
        except FrameError as error:
            self._break(error, out)
            return
        if out:
            self._write(out)
        self._settle()

    def _break(self, error: FrameError, out: bytearray) -> None:
        """The stream is broken: `out`, what came before that, is the last but for saying so."""
        # What was found while an earlier request ran says more than that the decoder failed then.
        error = self._broken or error
        self._server.counters["frames_broken"] += 1
        self._tell("broken frame, connection closed", error=error)
        self._close(out + encode_error(400, f"invalid frame: {error}", "" if self._v2 else None))

    def _next_turn(self) -> None:
        self._turn_over = False
        if self._task is None and not self._blocked and not self._closing_since:
            self._advance()

    def _next_frame(self) -> Frame | None:
        if self._waiting:
            frame = self._waiting.popleft()
            self._waiting_bytes -= _cost(frame)
            return frame
        if self._broken is not None:
            raise self._broken
        return self._decoder.next_frame()

    def _answer(self, frame: Frame) -> bytes | None:
        """The reply, or None where a task will give it."""
        server = self._server
        trace_id = frame.trace_id
        self._v2 = trace_id is not None
        self._last_request = server.now()
        server.counters["requests"] += 1
        if self._refusal is not None:
            return self._error(self._refusal, trace_id)
        call = Call(self, trace_id)
        token = current_labels.set(Labels(self.peer, trace_id) if trace_id else self._labels)
        try:
            route = server.routes.get(frame.type)
            if route is None:
                raise BadRequestError(_unroutable(frame.type))
            if route.access not in self.allowed:
                server.counters["requests_refused_mode"] += 1
                raise ForbiddenError(
                    f"this listener does not allow {NEEDS[route.access]}: its mode refuses {_name(frame.type)}"
                )
            request = route.request.decode(frame.payload) if route.request is not None else None
            reply = route.handler(request, call)
            if type(reply) is not CoroutineType:
                return self._encode(reply, trace_id)
            call.held = len(frame.payload)
            self._call = call
            self._task = server.loop.create_task(self._run(reply, call))
            server.running.add(self)
            if server.stopping:
                server.loop.call_soon(self._end_open_ended)
            return None
        except Exception as error:
            return self._error(error, trace_id)
        finally:
            current_labels.reset(token)

    async def _run(self, handling: Coroutine[Any, Any, Message | None], call: Call) -> None:
        """Serve one request that takes time: by `handling`, which alone holds the request, while it needs it."""
        try:
            reply = await handling
            out = self._encode(reply, call.trace_id) if reply is not None else b""
        except CancelledError:
            # Its client is gone, or the agent stops and can wait no longer.
            if self._lost or not self._server.stopping:
                self.abort()
            else:
                self._close(self._error(RequestError("the agent is stopping", 500), call.trace_id))
            return
        except ConnectionLostError:
            return  # said by a send: connection_lost is on its way, or was here
        except Exception as error:
            out = self._error(error, call.trace_id)
        finally:
            self._task = self._call = None
            # Idleness begins now, and a half frame behind the request has not been waited for.
            self._last_request = self._server.now()
            self._server.running.discard(self)
            self._server.task_ended()
        current_labels.set(None)
        if self._lost or self._closing_since:
            return
        if out:
            self._write(out)
        if self._blocked:
            self._settle()
        elif not self._turn_over:
            self._advance()

    def _encode(self, reply: Message, trace_id: str | None) -> bytes:
        out = encode_message(reply, trace_id)
        # The peer's limit is its own affair, but it is hardly above ours.
        if len(out) - 4 > self._server.max_frame_size:
            raise AgentFailedError(
                f"the reply is {len(out) - 4} bytes long, more than max_frame_size, {self._server.max_frame_size}: "
                "ask for less, or for a stream"
            )
        return out

    def _error(self, error: Exception, trace_id: str | None) -> bytes:
        """The Error frame for what a handler, or the way to it, raised."""
        counters = self._server.counters
        counters["requests_failed"] += 1
        if isinstance(error, RequestError):
            code, text = error.code, error.message
        elif isinstance(error, DecodeError):
            code, text = 400, f"invalid request: failed to decode Protobuf message: {error}"
        else:
            counters["handler_failures"] += 1
            log.exception("request failed", error)
            code, text = 500, f"internal error: {error!r}; the agent's log has the trace"
        if len(text) > ERROR_TEXT:
            # It repeats what the peer sent, which may be as long as a frame.
            text = f"{text[:ERROR_TEXT]}..."
        log.debug("request refused", code=code, reason=text)
        return encode_error(code, text, trace_id)

    # -------------------------------------------------------- waiting and bounds

    def _hold(self) -> None:
        """Something must finish first: keep what has arrived, up to the bounds."""
        server = self._server
        waiting = self._waiting
        if waiting is None:
            waiting = self._waiting = deque()
        try:
            while len(waiting) < server.max_pipelined and self._waiting_bytes < server.max_queued_bytes:
                frame = self._decoder.next_frame()
                if frame is None:
                    self._note_partial_frame(bool(waiting))
                    break
                waiting.append(frame)
                self._waiting_bytes += _cost(frame)
            else:
                if not self._paused:
                    server.counters["bound_pipelined"] += 1
                self._pause()
        except FrameError as error:
            # Its turn comes after the frames before it.
            self._broken = error
            self._pause()
        self.count_held()

    def _settle(self) -> None:
        """Decide, after a turn, whether to read on, to wait or to close."""
        self.count_held()
        if self._closing_since:
            return
        busy = self._task is not None or self._turn_over
        if self._blocked:
            if not self._paused:
                self._server.counters["bound_slow_reader"] += 1
            self._pause()
        elif self._ended and not busy:
            self._close(b"")
        elif self._server.stopping and not busy:
            self._close(b"")
        elif self._turn_over:
            self._pause()
        elif self._paused and not self._ended and not self._waiting and self._broken is None:
            self._paused = False
            if self._frame_since:
                # We did not read: its peer could not go on with it.
                self._frame_since = self._server.now()
            self._transport.resume_reading()  # type: ignore[union-attr]
        if not busy:
            self._note_partial_frame(False)

    def _note_partial_frame(self, progress: bool) -> None:
        """Remember since when a frame has been half there."""
        if not self._decoder.buffered:
            self._frame_since = 0.0
        elif not self._frame_since or progress or self._last_request > self._frame_since:
            self._frame_since = self._server.now()
            self._server.watch(self)

    def _pause(self) -> None:
        if not self._paused and not self._ended and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
            self._server.watch(self)

    def count_held(self) -> None:
        """Tell the server what this connection holds in memory, and so what all hold."""
        if self._lost or self._aborted:
            return  # it counts no more, though its call is told only in a moment
        held = self._decoder.buffered + self._waiting_bytes
        if self._call is not None:
            held += self._call.held
        if self._blocked and self._transport is not None:
            held += self._transport.get_write_buffer_size()
        if held <= UNCOUNTED:
            held = 0
        if held != self.held:
            self._server.hold(self, held)

    def queued_bytes(self) -> int:
        """Replies that the peer has not taken yet."""
        if self._transport is None or self._lost or not self._blocked:
            return 0
        return self._transport.get_write_buffer_size()

    def check(self, now: float) -> bool:
        """Called now and then for a connection that is watched; whether to go on watching."""
        server = self._server
        if self._lost:
            return False
        if self._closing_since:
            if now - self._closing_since > budget.CONNECTION_CLOSED:
                self.abort()
                return False
            return True
        if self._refusal is not None and now - self._last_request > budget.CONNECTION_CLOSED:
            self.abort()
            return False
        if (self._ended or self._paused) and self._peer_is_gone():
            self.abort()
            return False
        busy = self._task is not None or self._turn_over or self._blocked
        if self._frame_since and not busy and server.frame_timeout:
            if now - self._frame_since > server.frame_timeout:
                server.counters["bound_frame_timeout"] += 1
                self._tell("frame not whole in time, connection closed")
                self._close_with(400, f"a frame was not whole after {server.frame_timeout:g} s (frame_timeout)")
                return True
        if server.idle_timeout and not busy and now - self._last_request > server.idle_timeout:
            server.counters["bound_idle_timeout"] += 1
            self._close(b"")
            return True
        return bool(self._frame_since or self._ended or self._paused or self._refusal or server.idle_timeout)

    def _peer_is_gone(self) -> bool:
        try:
            self._socket.send(b"")
        except BlockingIOError:
            return False
        except OSError:
            return True
        return False

    # ------------------------------------------------------------ sending, ending

    def _write(self, data: bytes | bytearray) -> None:
        self._server.counters["bytes_sent"] += len(data)
        # Small replies as bytes: uvloop makes a memoryview of anything else.
        self._transport.write(bytes(data) if len(data) < COPIED else data)  # type: ignore[union-attr]

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send; returns when the kernel has all of it."""
        if self._lost or self._closing_since:
            raise ConnectionLostError("the client is gone")
        server = self._server
        server.counters["bytes_sent"] += len(data)
        self._transport.write(data)  # type: ignore[union-attr]
        await self._drain()

    async def _drain(self) -> None:
        """Until the kernel has all that was written."""
        if not self._blocked:
            return
        self.count_held()
        waiter = self._server.loop.create_future()
        if self._drained is _NO_WAITERS:
            self._drained = []
        self._drained.append(waiter)
        try:
            await waiter
        except CancelledError:
            # The transport still refers to the caller's buffer.
            self.abort()
            raise
        if self._lost:
            raise ConnectionLostError("the client is gone")

    async def send_from_pipe(self, head: bytes, pipe: int, size: int) -> None:
        """Send `head` and `size` bytes that lie ready in `pipe`, past the transport; returns when the kernel has all.

        Only the connection's one task sends, so nothing can come between the pieces.
        """
        await self._drain()
        if self._lost or self._closing_since:
            raise ConnectionLostError("the client is gone")
        self._server.counters["bytes_sent"] += len(head) + size
        rest = memoryview(head)
        self._in_frame = True
        try:
            while rest:
                try:
                    rest = rest[self._socket.send(rest, MSG_MORE) :]
                except BlockingIOError:
                    await self._writable()
            while size:
                try:
                    moved = splice(pipe, self._socket.fileno(), size, flags=SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
                except BlockingIOError:
                    if _readable_bytes(pipe) < size:
                        raise self._robbed() from None
                    await self._writable()
                    continue
                if not moved:
                    raise self._robbed()
                size -= moved
        except CancelledError:
            self.abort()
            raise
        except OSError as error:
            self.abort()
            raise ConnectionLostError("the client is gone") from error
        self._in_frame = False  # else nothing more is sent

    def _robbed(self) -> ConnectionLostError:
        """Bytes of a frame that has begun are gone: whoever writes into a pipe can read from it too, by /proc."""
        self._tell("a command took back what it had written, connection closed")
        self.abort()
        return ConnectionLostError("the rest of a frame is gone")

    async def _writable(self) -> None:
        """Until the socket takes more.  On a duplicate: the transport's own is the transport's to watch."""
        loop = self._server.loop
        ready = loop.create_future()

        def tell() -> None:
            if not ready.done():
                ready.set_result(None)

        try:
            duplicate = dup(self._socket.fileno())
        except OSError:
            if self._socket.fileno() < 0:
                raise
            # No descriptor is left: look again in a moment, until there is one.
            await sleep(LOOK_AGAIN)
            return
        loop.add_writer(duplicate, tell)
        try:
            await ready
        finally:
            loop.remove_writer(duplicate)
            close(duplicate)

    def _close_with(self, code: int, message: str) -> None:
        self._close(encode_error(code, message, "" if self._v2 else None))

    def _close(self, last: bytes | bytearray) -> None:
        """Close when what is queued and `last` have gone out, or after a while."""
        if self._closing_since or self._transport is None:
            return
        if last:
            self._write(last)
        self._closing_since = self._server.now()
        self._transport.close()
        if self._blocked:
            self._server.watch(self)

    def abort(self) -> None:
        if self._transport is not None and not self._lost:
            self._closing_since = self._closing_since or self._server.now()
            self._aborted = True
            self._transport.abort()
        self._cancel_task()

    def _tell(self, what: str, **values: object) -> None:
        """Log why a connection is closed.  A peer can bring that about as often as it connects."""
        who = owner_of(self.peer)
        self._server.closed_log.log(log.warning, what, "also_closed", f"{what} {who}", peer=self.peer, **values)

    def _cancel_task(self) -> None:
        # In a moment: a task that is cancelled before its first step never takes it, and so
        # nothing of what `_run` does at its end.  That step was asked for before this one.
        if self._task is not None:
            self._server.loop.call_soon(self._task.cancel)

    def stop(self) -> None:
        """The agent stops: nothing more is read; what has arrived is still answered."""
        if self._task is None and not self._blocked and not self._turn_over and not self._waiting:
            self._close(b"")
            return
        self._pause()
        self._server.loop.call_soon(self._end_open_ended)

    def _end_open_ended(self) -> None:
        # Called when the first step of the task is done: with it the handler says so.
        if self._call is not None and self._call.open_ended:
            self._cancel_task()

    def cancel(self) -> None:
        """The agent can wait no longer."""
        if self._task is not None:
            self._waiting = None
            self._cancel_task()
        else:
            self.abort()

    def refuse_for_memory(self, held: int) -> None:
        """This connection holds more than any other, and the agent needs it back."""
        self._tell("connection closed: max_queued_total reached", held=held)
        if not self._in_frame:
            self._close_with(429, "the agent's bound on bytes in flight was reached (max_queued_total)")
        self.abort()


def _readable_bytes(pipe: int) -> int:
    return int.from_bytes(ioctl(pipe, FIONREAD, bytes(4)), byteorder)


def _cost(frame: Frame) -> int:
    """The memory that a frame takes while it waits."""
    return len(frame.payload) + len(frame.trace_id or "") + FRAME_COST


def _name(type: int) -> str:
    known = message_class(type)
    return known.__name__ if known is not None else f"0x{type:08X}"


def _unroutable(type: int) -> str:
    known = message_class(type)
    if known is None:
        return f"invalid request: unknown message type: 0x{type:08X}"
    if known.__name__.endswith("Request"):
        return f"invalid request: this agent does not serve {known.__name__}"
    return f"invalid request: unexpected message type: {known.__name__}"

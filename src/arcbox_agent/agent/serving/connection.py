"""One connection: bytes in, requests to their handlers, replies out in order.

    data_received -> FrameDecoder -> _advance -> Dispatch -> one write

What one read brought is answered with one write.  Plain pings, the most frequent
request by far, are answered in compiled code.  A handler's reply is written in place; a
coroutine that it returns instead runs as the connection's only task, and what arrives
meanwhile waits in the inbox, up to the bounds of the settings.

What state a connection is in, and what it does with data that arrives then, is a table:
states.py.

Three things stop the reading, and so, by the kernel's own flow control, the peer (this is
backpressure): the inbox is full, the peer does not read its replies, or it has had a turn
and others are due.  Nothing of this touches another connection.

The end.  A peer that has shut down only its sending side still reads: it gets every
reply it is owed, streams included, before the connection is closed.  A peer that has
closed gets nothing more, and its running call is cancelled at once.  Both look the
same to a read; a send of no bytes tells them apart: it fails with EPIPE where the
peer can no longer read, on unix sockets and on vsock.
"""

from __future__ import annotations

from asyncio import CancelledError, Protocol

from arcbox_agent.agent.config import budget
from arcbox_agent.agent.config.access import is_restricted
from arcbox_agent.agent.observe.log import Logger, current_labels
from arcbox_agent.agent.observe.rate import OncePerMinute
from arcbox_agent.agent.serving.call import Call
from arcbox_agent.agent.serving.inbox import NOTHING_WAITS, Inbox
from arcbox_agent.agent.serving.listeners import lose, owner_of
from arcbox_agent.agent.serving.states import NEXT, Event, State
from arcbox_agent.errors import ConnectionLostError, FrameError, RequestError
from arcbox_agent.wire import FrameDecoder, encode_error, serve_pings

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from asyncio import AbstractEventLoop, Task, Transport
    from collections.abc import Callable

    from arcbox_agent.agent.config.access import Access
    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.serving.dispatch import Dispatch, Handling
    from arcbox_agent.agent.serving.ledger import Ledger
    from arcbox_agent.agent.serving.outbox import Outbox
    from arcbox_agent.agent.serving.watch import Watch
    from arcbox_agent.wire import Frame

log = Logger("connection")

#: Pings answered, and other requests answered in place, before other connections get
#: their turn: a few milliseconds either way, and more pings than one read brings.
PINGS_A_TURN = 32768
REQUESTS_A_TURN = 64

#: Replies are written when this many bytes have come together, and at the end of a turn.
WRITE_SIZE = 128 << 10

#: Fewer bytes than this are charged as none, but to peers that may only look: those of every
#: connection are bounded by max_connections.
UNCOUNTED = 16 << 10

#: The longest frame of a peer that may only look: all that it can ask for is short.
RESTRICTED_FRAME = 1 << 20

# Found faster as names of the module than as those of their classes, for each read and request.
_READING, _REFUSING, _ANSWERING = State.READING, State.REFUSING, State.ANSWERING
_DRAINING, _CLOSING, _ABORTED = State.DRAINING, State.CLOSING, State.ABORTED


class Shared:
    """What all connections of one server have in common.

    `forget`: called with a connection that is lost; `task_ended`: called when a task has ended.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        settings: Settings,
        counters: dict[str, int],
        version: bytes,
        dispatch: Dispatch,
        ledger: Ledger,
        watch: Watch,
        forget: Callable[[Connection], None],
        task_ended: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.now = loop.time
        self.settings = settings
        self.counters = counters
        self.version = version
        self.dispatch = dispatch
        self.ledger = ledger
        self.watch = watch
        self.forget = forget
        self.task_ended = task_ended
        self.idle_timeout = settings.idle_timeout
        self.stopping = False
        self.running: set[Connection] = set()  # those whose task runs
        self.closed_log = OncePerMinute()  # of connections that did what they must not


class Connection(Protocol):
    """The server's side of one connection.

    `refusal`: answers the first request with this error, whatever it is, and closes.
    """

    __slots__ = (
        "_allowed",
        "_call",
        "_closing_since",
        "_decoder",
        "_frame_since",
        "_inbox",
        "_last_request",
        "_outbox",
        "_peer",
        "_refusal",
        "_shared",
        "_socket",
        "_state",
        "_task",
        "_transport",
        "_v2",
        "charged",
        "owner",
        "restricted",
    )

    def __init__(
        self,
        shared: Shared,
        sock: socket.socket,
        outbox: Outbox,
        peer: str,
        allowed: frozenset[Access],
        refusal: RequestError | None = None,
    ) -> None:
        self._shared = shared
        self._socket = sock  # the transport closes it
        self._peer = peer
        self._allowed = allowed
        self._refusal = refusal
        self._state = _READING if refusal is None else _REFUSING
        self.owner = owner_of(peer)
        self.restricted = is_restricted(allowed)
        self._decoder = self._new_decoder()
        self._inbox = NOTHING_WAITS  # until _own_inbox
        self._outbox = outbox
        outbox.owner = self
        self._transport: Transport | None = None
        self._task: Task[None] | None = None
        self._call: Call | None = None  # of the task
        self._closing_since = 0.0
        self._frame_since = 0.0  # when the frame that is not whole yet began
        self._last_request = shared.now()
        self._v2 = False  # the version of the last request: for an error about none
        self.charged = 0  # by the ledger

    def _new_decoder(self) -> FrameDecoder:
        limit = self._shared.settings.max_frame_size
        return FrameDecoder(min(limit, RESTRICTED_FRAME) if self.restricted else limit)

    # ------------------------------------------------- what the transport calls

    async def join(self) -> None:
        """Make the accepted socket's transport, which calls the rest."""
        try:
            await self._shared.loop.connect_accepted_socket(lambda: self, self._socket)
        except OSError as error:
            lose(self._socket, self, error)

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        self._transport = self._outbox.transport = transport
        # pause_writing as soon as the kernel does not take all, resume_writing when it
        # has: then a sent buffer is never in use longer than the outbox is blocked.
        transport.set_write_buffer_limits(high=0)
        if self._refusal is not None or self._shared.idle_timeout:
            self._shared.watch.add(self)

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state >= _CLOSING:
            return
        shared = self._shared
        counters = shared.counters
        counters["bytes_received"] += len(data)
        decoder = self._decoder
        decoder.feed(data)
        if state is not _READING:
            if state is _REFUSING:
                self._refuse()
            else:
                self._wait()
            return
        inbox = self._inbox
        if not (inbox.frames or inbox.paused):
            # Nothing but whole pings, by far the most frequent read of all, from a peer that
            # reads: what _advance would do, without its questions.
            out = bytearray()
            try:
                pings = serve_pings(decoder, out, shared.version, PINGS_A_TURN)
            except FrameError as error:
                self._break(error, out)
                return
            if pings:
                counters["requests"] += pings
                counters["bytes_sent"] += len(out)
                # uvloop sends bytes, and only them, without making a memoryview first.
                self._transport.write(bytes(out))  # type: ignore[union-attr]
                if self._outbox.blocked:
                    self._settle()
                    return
                if not (decoder.buffered or self._frame_since or self.charged or shared.idle_timeout):
                    return
                self._last_request = shared.now()
            self._advance(pings == PINGS_A_TURN)
        else:
            self._advance()

    def eof_received(self) -> bool:
        state = self._state
        inbox = self._own_inbox()
        if state < _CLOSING:
            try:
                self._decoder.eof()
            except FrameError as error:
                inbox.break_off(error)
            inbox.end()
            if state is _READING:
                self._advance()
            elif state is _REFUSING:
                self._refuse()
            elif self._peer_is_gone():
                self.abort()
            else:
                self._shared.watch.add(self)
        else:
            inbox.ended = True
        # The transport stays open: the replies that are still owed must go out.
        return True

    def pause_writing(self) -> None:
        self._outbox.blocked = True

    def resume_writing(self) -> None:
        call_waited = self._outbox.resume()
        self.count()
        if not call_waited and self._state is _DRAINING:
            self._go_on()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._closing_since:
            self._closing_since = self._shared.now()
        self._to(Event.LOSS)
        self._outbox.lose()
        self._cancel_task()
        self._inbox.clear()
        # What a call started may outlive the connection, and its context refers to it: not to
        # the frame that never became whole.
        self._decoder = self._new_decoder()
        self._shared.forget(self)

    # ------------------------------------------------------- requests to replies

    def _to(self, event: Event) -> None:
        state = self._state = NEXT[self._state][event]
        if state >= _CLOSING:
            self._outbox.closed = True

    def _go_on(self) -> None:
        """What was waited for is over: answer what has arrived meanwhile."""
        self._state = NEXT[self._state][Event.GO_ON]
        if self._state is not _READING:
            return
        if self._outbox.blocked:
            self._settle()
        else:
            self._advance()

    def _advance(self, pings_first: bool = True) -> None:
        """Answer what has arrived, until it is used up or something must wait.

        `pings_first`: plain pings may come next; not where the caller has just looked.
        """
        shared = self._shared
        counters = shared.counters
        inbox = self._inbox
        decoder = self._decoder
        outbox = self._outbox
        out = bytearray()
        turn = REQUESTS_A_TURN
        try:
            while not outbox.blocked:
                if pings_first and not inbox.frames:
                    pings = serve_pings(decoder, out, shared.version, PINGS_A_TURN)
                    if pings:
                        counters["requests"] += pings
                        self._last_request = shared.now()
                        if pings == PINGS_A_TURN:
                            turn = 0
                pings_first = True
                if not turn:
                    self._to(Event.TURN_OVER)
                    shared.loop.call_soon(self._go_on)
                    break
                if inbox.frames or inbox.broken is not None:
                    frame = inbox.take()
                else:
                    frame = decoder.next_frame()
                if frame is None:
                    break
                turn -= 1
                if inbox.inputs is not None and frame.type in inbox.inputs.types:
                    continue  # too late: the call that it belongs to has ended
                reply = self._answer(frame)
                if reply is None:
                    break
                out += reply
                if len(out) >= WRITE_SIZE:
                    outbox.write(out)
                    out = bytearray()
        except FrameError as error:
            self._break(error, out)
            return
        if out:
            outbox.write(out)
        self._settle()

    def _answer(self, frame: Frame) -> bytes | None:
        """The reply, or None where a task will give it."""
        shared = self._shared
        trace_id = frame.trace_id
        self._v2 = trace_id is not None
        self._last_request = shared.now()
        shared.counters["requests"] += 1
        call = Call(self._outbox, self._peer, self._allowed, trace_id, self.count)
        token = current_labels.set((self._peer, trace_id))
        try:
            reply = shared.dispatch.answer(frame, call)
            if type(reply) is bytes:
                return reply
            inputs = shared.dispatch.routes[frame.type].inputs
            if inputs:
                call.inputs = self._own_inbox().open_inputs(inputs, shared.loop, self._input_taken)
            self._call = call
            self._to(Event.CALL)
            self._task = shared.loop.create_task(self._run(reply, call))  # type: ignore[arg-type]
            shared.running.add(self)
            if shared.stopping:
                shared.loop.call_soon(self._end_open_ended)
            return None
        finally:
            current_labels.reset(token)

    async def _run(self, handling: Handling, call: Call) -> None:
        """Await the handler and send its reply.

        Only the coroutine refers to the request, so it is freed as soon as the handler drops it.
        """
        shared = self._shared
        out = b""
        try:
            reply = await handling
            if reply is not None:
                out = shared.dispatch.encode(reply, call.trace_id)
        except CancelledError:
            # Its client is gone, or the agent stops and can wait no longer.
            if self._state is _ANSWERING and shared.stopping:
                self._close(shared.dispatch.error(RequestError("the agent is stopping", 500), call.trace_id))
            else:
                self.abort()
            return
        except ConnectionLostError:
            return  # said by a send: connection_lost is on its way, or was here
        except Exception as error:
            out = shared.dispatch.error(error, call.trace_id)
        finally:
            self._task = self._call = None
            if call.inputs is not None:
                call.inputs.close()
            # Idleness begins now, and a half frame behind the request has not been waited for.
            self._last_request = shared.now()
            shared.running.discard(self)
            shared.task_ended()
        current_labels.set(None)
        if self._state is not _ANSWERING:
            return
        if out:
            self._outbox.write(out)
        self._go_on()

    def _break(self, error: FrameError, out: bytearray) -> None:
        """The stream is broken: `out`, what came before that, is the last but for saying so."""
        # What was found while an earlier request ran says more than that the decoder failed then.
        error = self._inbox.broken or error
        self._shared.counters["frames_broken"] += 1
        self.close_for("broken frame, connection closed", error=error)
        self._close(out + encode_error(400, f"invalid frame: {error}", "" if self._v2 else None))

    def _refuse(self) -> None:
        """Answer the first request with the refusal, and close."""
        inbox = self._inbox
        try:
            if inbox.broken is not None:
                raise inbox.broken
            frame = self._decoder.next_frame()
        except FrameError as error:
            self._break(error, bytearray())
            return
        if frame is not None:
            self._v2 = frame.trace_id is not None
            self._shared.counters["requests"] += 1
            self._close(self._shared.dispatch.error(self._refusal, frame.trace_id))  # type: ignore[arg-type]
            return
        self.count()
        if self._state is not _REFUSING:
            return
        if inbox.ended or self._shared.stopping:
            self._close(b"")
        else:
            self._note_partial_frame(False)

    # -------------------------------------------------------- waiting and bounds

    def _own_inbox(self) -> Inbox:
        """The inbox, made when something is to be put into it or noted there."""
        inbox = self._inbox
        if inbox is NOTHING_WAITS:
            settings = self._shared.settings
            inbox = self._inbox = Inbox(settings.max_pipelined, settings.max_queued_bytes)
        return inbox

    def _wait(self) -> None:
        """Something must finish first: keep what has arrived, up to the bounds."""
        inbox = self._own_inbox()
        if inbox.fill(self._decoder):
            self._note_partial_frame(bool(inbox.frames))
        else:
            if not inbox.paused and inbox.broken is None:
                self._shared.counters["bound_pipelined"] += 1
            self._pause()
        self.count()

    def _input_taken(self) -> None:
        """The duplex call took a message: there may be room for more."""
        if self._inbox.paused or self._inbox.ended:
            self._read_inputs()
        else:
            self.count()

    def _read_inputs(self) -> None:
        """Take what has arrived for the duplex call, and read on where there is room."""
        if self._state is not _ANSWERING:
            return
        self._wait()
        if self._state is _ANSWERING and not self._shared.stopping and not self._inbox.is_full():
            self._resume()

    def _settle(self) -> None:
        """Decide, after a turn, whether to read on, to wait or to close."""
        self.count()
        state = self._state
        if state >= _CLOSING:
            return
        inbox = self._inbox
        if self._outbox.blocked:
            if state is _READING:
                self._to(Event.UNSENT)
            if not inbox.paused:
                self._shared.counters["bound_slow_reader"] += 1
            self._pause()
        elif state is _READING:
            if inbox.ended or self._shared.stopping:
                self._close(b"")
            elif inbox.paused and not inbox.frames and inbox.broken is None:
                self._resume()
        elif state is not _ANSWERING:
            self._pause()
        elif inbox.inputs is not None and inbox.inputs.open:
            self._read_inputs()
        elif inbox.paused and not inbox.frames and inbox.broken is None:
            self._resume()
        if state is _READING:
            self._note_partial_frame(False)

    def _note_partial_frame(self, progress: bool) -> None:
        """Remember since when a frame has been half there."""
        if not self._decoder.buffered:
            self._frame_since = 0.0
        elif not self._frame_since or progress or self._last_request > self._frame_since:
            self._frame_since = self._shared.now()
            self._shared.watch.add(self)

    def _pause(self) -> None:
        inbox = self._own_inbox()
        if not inbox.paused and not inbox.ended and self._transport is not None:
            inbox.paused = True
            self._transport.pause_reading()
            self._shared.watch.add(self)

    def _resume(self) -> None:
        inbox = self._inbox
        if inbox.ended or not inbox.paused:
            return
        inbox.paused = False
        if self._frame_since:
            # We did not read: its peer could not go on with it.
            self._frame_since = self._shared.now()
        self._transport.resume_reading()  # type: ignore[union-attr]

    def count(self) -> None:
        """Charge to this connection what it keeps in memory."""
        if self._state >= _ABORTED:
            return  # already released: the task is cancelled in the loop's next iteration
        size = self._decoder.held + self._inbox.size
        if self._call is not None:
            size += self._call.charged
        if self._outbox.blocked:
            size += self._outbox.unsent()
        if size <= UNCOUNTED and not self.restricted:
            size = 0
        if size != self.charged:
            self._shared.ledger.charge(self, size)

    def unsent(self) -> int:
        """Bytes of replies that the peer has not taken yet."""
        return self._outbox.unsent()

    def check(self, now: float) -> bool:
        """Called now and then for a connection that is watched; whether to go on watching."""
        shared = self._shared
        state = self._state
        inbox = self._inbox
        if state >= _CLOSING:
            if state is _CLOSING and now - self._closing_since > budget.CONNECTION_CLOSED:
                self.abort()
            return self._state is _CLOSING
        if state is _REFUSING and now - self._last_request > budget.CONNECTION_CLOSED:
            # It asks for nothing, so which version it speaks is not known.
            self._close(shared.dispatch.error(self._refusal, None))  # type: ignore[arg-type]
            return self._state is _CLOSING
        if (inbox.ended or inbox.paused) and self._peer_is_gone():
            self.abort()
            return False
        if state <= _REFUSING:
            timeout = shared.settings.frame_timeout
            if self._frame_since and timeout and now - self._frame_since > timeout:
                shared.counters["bound_frame_timeout"] += 1
                self.close_for("frame not whole in time, connection closed")
                self._close_with(400, f"a frame was not whole after {timeout:g} s (frame_timeout)")
                return True
            if shared.idle_timeout and now - self._last_request > shared.idle_timeout:
                shared.counters["bound_idle_timeout"] += 1
                self._close(b"")
                return True
        return bool(self._frame_since or inbox.ended or inbox.paused or state is _REFUSING or shared.idle_timeout)

    def _peer_is_gone(self) -> bool:
        try:
            self._socket.send(b"")
        except BlockingIOError:
            return False
        except OSError:
            return True
        return False

    # --------------------------------------------------------------------- ending

    def _close_with(self, code: int, message: str) -> None:
        self._close(encode_error(code, message, "" if self._v2 else None))

    def _close(self, last: bytes | bytearray) -> None:
        """Close when what is queued and `last` have gone out, or after a while."""
        if self._state >= _CLOSING or self._transport is None:
            return
        if last:
            self._outbox.write(last)
        self._closing_since = self._shared.now()
        self._to(Event.CLOSE)
        self._transport.close()
        if self._outbox.blocked:
            self._shared.watch.add(self)

    def abort(self) -> None:
        """Close at once: what is queued is lost, and the call that runs is cancelled."""
        if self._transport is not None and self._state is not State.LOST:
            self._closing_since = self._closing_since or self._shared.now()
            self._to(Event.ABORT)
            self._transport.abort()
        self._cancel_task()

    def close_for(self, reason: str, **values: object) -> None:
        """Log why the connection is closed.  A peer can bring that about as often as it connects."""
        peer = self._peer
        key = f"{reason} {self.owner}"
        self._shared.closed_log.log(log.warning, reason, "also_closed", key, peer=peer, **values)

    def _cancel_task(self) -> None:
        # In a moment: a task that is cancelled before its first step never takes it, and so
        # nothing of what `_run` does at its end.  That step was asked for before this one.
        if self._task is not None:
            self._shared.loop.call_soon(self._task.cancel)

    def stop(self) -> None:
        """The agent stops: nothing more is read; what has arrived is still answered."""
        if self._state <= _REFUSING and not self._inbox.frames:
            self._close(b"")
        elif self._state < _CLOSING:
            self._pause()
            self._shared.loop.call_soon(self._end_open_ended)

    def _end_open_ended(self) -> None:
        # Called when the first step of the task is done: with it the handler says so.
        if self._call is not None and self._call.open_ended:
            self._cancel_task()

    def cancel(self) -> None:
        """The agent can wait no longer."""
        if self._task is not None:
            self._inbox.clear()
            self._cancel_task()
        else:
            self.abort()

    def evict(self, charged: int, of_peer: int) -> None:
        """This connection keeps the most of all of the peer that keeps the most, and the agent needs it back."""
        self._shared.counters["bound_queued_total"] += 1
        self.close_for("connection closed: max_queued_total reached", held=charged, held_by_peer=of_peer)
        if not self._outbox.in_frame:
            self._close_with(429, "the agent's bound on bytes in flight was reached (max_queued_total)")
        self.abort()

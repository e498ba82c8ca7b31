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

What ends a connection, and how, is in ending.py.
"""

from __future__ import annotations

from asyncio import CancelledError

from arcbox_agent.agent.observe.log import current_labels
from arcbox_agent.agent.serving.call import Call
from arcbox_agent.agent.serving.ending import Ending
from arcbox_agent.agent.serving.inbox import NOTHING_WAITS, Inbox
from arcbox_agent.agent.serving.listeners import lose
from arcbox_agent.agent.serving.states import NEXT, Event, State
from arcbox_agent.errors import ConnectionLostError, FrameError, RequestError
from arcbox_agent.wire import FrameDecoder, serve_pings

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from asyncio import Task, Transport

    from arcbox_agent.agent.config.access import Access
    from arcbox_agent.agent.serving.call import Handling
    from arcbox_agent.agent.serving.outbox import Outbox
    from arcbox_agent.agent.serving.shared import Shared
    from arcbox_agent.wire import Frame

#: Pings answered, and other requests answered in place, before other connections get
#: their turn: a few milliseconds either way, and more pings than one read brings.
PINGS_A_TURN = 32768
REQUESTS_A_TURN = 64

#: Replies are written when this many bytes have come together, and at the end of a turn.
WRITE_SIZE = 128 << 10

#: Fewer bytes than this are charged as none, but to peers that may only look: those of every
#: connection are bounded by max_connections.
UNCOUNTED = 16 << 10

# Found faster as names of the module than as those of their classes, for each read and request.
_READING, _REFUSING, _ANSWERING = State.READING, State.REFUSING, State.ANSWERING
_DRAINING, _CLOSING, _ABORTED = State.DRAINING, State.CLOSING, State.ABORTED


class Connection(Ending):
    """The server's side of one connection.

    `owner`: whose process `peer` is.  `restricted`: it may only look.  `refusal`: answers the
    first request with this error, whatever it is, and closes.
    """

    __slots__ = ("_allowed",)

    def __init__(
        self,
        shared: Shared,
        sock: socket.socket,
        outbox: Outbox,
        peer: str,
        owner: str,
        allowed: frozenset[Access],
        restricted: bool,
        refusal: RequestError | None = None,
    ) -> None:
        self._shared = shared
        self._socket = sock  # the transport closes it
        self._peer = peer
        self._allowed = allowed
        self._refusal = refusal
        self._state = _READING if refusal is None else _REFUSING
        self.owner = owner
        self.restricted = restricted
        self._decoder = FrameDecoder(shared.longest_frame[restricted])
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

    # ------------------------------------------------------- requests to replies

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
            self._state = NEXT[self._state][Event.CALL]
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

"""How a connection ends: what closes it, what it still sends, what is cancelled.

A peer that has shut down only its sending side still reads: it gets every reply it is owed,
streams included, before the connection is closed.  A peer that has closed gets nothing more,
and its running call is cancelled at once.  Both look the same to a read; a send of no bytes
tells them apart: it fails with EPIPE where the peer can no longer read, on unix sockets and on
vsock.
"""

from __future__ import annotations

from asyncio import Protocol

from arcbox_agent.agent.config import budget
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.serving.states import NEXT, Event, State
from arcbox_agent.errors import FrameError
from arcbox_agent.wire import FrameDecoder, encode_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from asyncio import Task, Transport

    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.agent.serving.inbox import Inbox
    from arcbox_agent.agent.serving.outbox import Outbox
    from arcbox_agent.agent.serving.shared import Shared
    from arcbox_agent.errors import RequestError

log = Logger("connection")

_REFUSING, _CLOSING = State.REFUSING, State.CLOSING


class Ending(Protocol):
    """The part of a Connection that ends it, which sets all of these."""

    __slots__ = (
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

    if TYPE_CHECKING:
        _shared: Shared
        _socket: socket.socket  # the transport closes it
        _transport: Transport | None
        _state: State
        _decoder: FrameDecoder
        _inbox: Inbox
        _outbox: Outbox
        _task: Task[None] | None
        _call: Call | None  # of the task
        _peer: str
        _v2: bool  # the version of the last request: for an error about none
        _closing_since: float
        _frame_since: float  # when the frame that is not whole yet began
        _last_request: float
        owner: str
        restricted: bool
        _refusal: RequestError | None  # what the first request is answered with
        charged: int  # by the ledger

        def count(self) -> None:
            """Charge to this connection what it keeps in memory."""

        def unsent(self) -> int:
            """Bytes of replies that the peer has not taken yet."""

        def _pause(self) -> None:
            """Read no more for now."""

        def _note_partial_frame(self, progress: bool) -> None:
            """Remember since when a frame has been half there."""

    def _to(self, event: Event) -> None:
        state = self._state = NEXT[self._state][event]
        if state >= _CLOSING:
            self._outbox.closed = True

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
            # It asks for nothing, so which version it speaks is not known: it would misread the other one.
            self.abort()
            return False
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

    def _break(self, error: FrameError, out: bytearray) -> None:
        """The stream is broken: `out`, what came before that, is the last but for saying so."""
        # What was found while an earlier request ran says more than that the decoder failed then.
        error = self._inbox.broken or error
        self._shared.counters["frames_broken"] += 1
        self.close_for("broken frame, connection closed", error=error)
        self._close(out + encode_error(400, f"invalid frame: {error}", "" if self._v2 else None))

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

    def connection_lost(self, error: Exception | None) -> None:
        if not self._closing_since:
            self._closing_since = self._shared.now()
        self._to(Event.LOSS)
        self._outbox.lose()
        self._cancel_task()
        self._inbox.clear()
        # What a call started may outlive the connection, and its context refers to it: not to
        # the frame that never became whole.
        self._decoder = FrameDecoder(self._shared.longest_frame[self.restricted])
        self._shared.forget(self)

"""One stream's account: credit and cursors of its outputs, offsets of its input, and signs of life.

    messages of the peer -> _read (a callback of the loop) -> input_came, control
    output -> send_output (the call's task) -> Outbox

The peer's messages are taken in a callback, not by the task: so credit, input and heartbeats go on
while the task waits for the peer to read what it sent.  The task is the only one that sends
output; what the callback has to tell (StreamAccepted, StreamAlive) is a whole frame, and goes
between two of the task's, or waits for the task while the kernel does not take more.
"""

from __future__ import annotations

from asyncio import get_running_loop

from arcbox_agent.errors import BadRequestError, ConflictError, RequestError
from arcbox_agent.wire import (
    StreamAccepted,
    StreamAlive,
    StreamControl,
    StreamCredit,
    StreamEnd,
    StreamGap,
    StreamHeartbeat,
    StreamInput,
    StreamOutput,
    encode_message,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future, TimerHandle

    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.wire import Message

#: The most bytes of one StreamOutput, and of one StreamInput.
PIECE = 64 << 10

#: Bytes that may be under way where the peer does not say how many.
WINDOW = 256 << 10

#: Milliseconds: where the peer does not say, and the least.
HEARTBEAT_MS = 10_000
LEAST_HEARTBEAT_MS = 20

#: So many heartbeats may be missed.
MISSED = 3

#: The types of Route.inputs of each call that is a stream.
INPUTS = (StreamInput, StreamCredit, StreamHeartbeat, StreamControl)


def check_heartbeat(heartbeat_ms: int) -> None:
    """BadRequestError: it is too short.  For a call that does something before it has its Stream."""
    if 0 < heartbeat_ms < LEAST_HEARTBEAT_MS:
        raise BadRequestError(f"heartbeat_ms is {heartbeat_ms}: give {LEAST_HEARTBEAT_MS} or more, or 0")


class Output:
    """One output: `cursor` of the next byte to send, `until` which the peer allows, `taken` by its reader; `over`."""

    __slots__ = ("cursor", "over", "taken", "until")

    def __init__(self, cursor: int, window: int) -> None:
        self.cursor = self.taken = cursor
        self.until = cursor + window
        self.over = False


class Beat:
    """One timer for all streams of one heartbeat: a timer each would cost as much as the rest of an idle one."""

    __slots__ = ("_interval", "_loop", "_timer", "streams")

    def __init__(self, loop: AbstractEventLoop, interval: float) -> None:
        self._loop = loop
        self._interval = interval
        self.streams: set[Stream] = set()
        self._timer: TimerHandle = loop.call_later(interval / 2, self._look)

    @staticmethod
    def of(loop: AbstractEventLoop, interval: float) -> Beat:
        """The one of that heartbeat, in seconds."""
        found = _beats.get((loop, interval))
        if found is None:
            found = _beats[loop, interval] = Beat(loop, interval)
        return found

    def leave(self, stream: Stream) -> None:
        self.streams.discard(stream)
        if not self.streams:
            self._timer.cancel()
            _beats.pop((self._loop, self._interval), None)

    def _look(self) -> None:
        now = self._loop.time()
        for stream in list(self.streams):
            stream.check(now)
        # None has left meanwhile: what a check brings about comes later.
        self._timer = self._loop.call_later(self._interval / 2, self._look)


#: Those that have streams.
_beats: dict[tuple[AbstractEventLoop, float], Beat] = {}


class Stream:
    """A stream on the call `call`, until `close`.  Made by the call's task, before it waits for anything.

    `heartbeat_ms`: of the request; 0: HEARTBEAT_MS.

    Input that has come and was not accepted is `pending`; `offset` is that of its first byte, and
    `ending` says that the input ends behind it.  Whoever hands it on calls `accept`.  `detached`:
    the peer has left the stream, by StreamControl or by ending its side of the connection.

    A subclass may override `input_came` and `control`, which are called on the loop and must not
    block.  What they raise ends the stream: `wait` and what sends raise it.
    """

    __slots__ = (
        "_beat",
        "_call",
        "_failure",
        "_heard",
        "_interval",
        "_loop",
        "_reading",
        "_sent",
        "_until",
        "_untold",
        "_waiter",
        "_woken",
        "closed",
        "detached",
        "ending",
        "offset",
        "outputs",
        "pending",
    )

    def __init__(self, call: Call, heartbeat_ms: int = 0) -> None:
        check_heartbeat(heartbeat_ms)
        if call.inputs is None:
            raise RuntimeError("the route of this call has no inputs")
        loop = self._loop = get_running_loop()
        self._call = call
        self._failure: Exception | None = None
        self._interval = (heartbeat_ms or HEARTBEAT_MS) / 1000
        self._heard = self._sent = loop.time()
        self._waiter: Future[None] | None = None
        self._woken = False
        self._reading = False  # _read has been asked for
        self._untold = False  # what was accepted has not been told yet
        self._until = -1  # the offset of input that was allowed; below 0: none yet
        self.outputs: dict[str, Output] = {}
        self.pending = bytearray()
        self.offset = 0
        self.ending = False  # no more input comes
        self.closed = True  # and none is taken, until open_input
        self.detached = False
        self._beat = Beat.of(loop, self._interval)
        self._beat.streams.add(self)
        call.inputs.notify = self._notified
        self._notified()

    # ------------------------------------------------------------------ the task

    def open_output(self, name: str, cursor: int = 0, window: int = 0) -> Output:
        """An output that the peer wants, from `cursor` on.  `window`: of the request; 0: WINDOW."""
        output = self.outputs[name] = Output(cursor, window or WINDOW)
        return output

    async def open_input(self, offset: int = 0, closed: bool = False) -> None:
        """Tell that input is taken, from `offset` on; `closed`: nobody reads it any more."""
        self.offset = offset
        self.closed = closed
        self._until = offset + WINDOW
        await self._send(StreamAccepted(offset=offset, until=self._until, closed=closed))

    async def send(self, message: Message) -> None:
        """Send any message of the stream."""
        await self._send(message)

    async def send_output(self, name: str, data: bytes) -> None:
        """Send what comes next of an output: PIECE bytes at most, and no more than `credit` allows."""
        output = self.outputs[name]
        cursor = output.cursor
        output.cursor = cursor + len(data)
        await self._send(StreamOutput(stream=name, cursor=cursor, data=data))

    async def send_gap(self, name: str, size: int) -> None:
        """Tell that the next `size` bytes of an output are lost.  They need no credit."""
        output = self.outputs[name]
        cursor = output.cursor
        output.cursor = cursor + size
        output.until = max(output.until, output.cursor)
        await self._send(StreamGap(stream=name, cursor=cursor, bytes=size))

    async def end_output(self, name: str) -> None:
        """Tell that no more comes of an output."""
        output = self.outputs[name]
        output.over = True
        await self._send(StreamEnd(stream=name, cursor=output.cursor))

    def credit(self, name: str) -> int:
        """How many bytes of that output may be sent now."""
        output = self.outputs[name]
        return max(0, output.until - output.cursor)

    async def wait(self) -> None:
        """Until `wake`: by new credit, by input, by whatever the owner waits for.  Raises what ended the stream."""
        while not self._woken:
            if self._failure is not None:
                raise self._failure
            if self._untold:
                # The kernel did not take it at once.
                self._untold = False
                await self._send(self._accepted())
                continue
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._woken = False
        if self._failure is not None:
            raise self._failure

    def wake(self) -> None:
        """Let `wait` return, now or when it is called next."""
        self._woken = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """End the stream: the task gets `error` from `wait`, or from what it sends next."""
        if self._failure is None:
            self._failure = error
            self.wake()

    def close(self) -> None:
        """The stream is over, for whatever reason."""
        self._beat.leave(self)
        if self._call.inputs is not None:
            self._call.inputs.notify = None
        self._reading = True  # what was asked for does nothing any more
        self._charge(-len(self.pending))
        self.pending.clear()

    async def _send(self, message: Message) -> None:
        if self._failure is not None:
            raise self._failure
        if self._untold:
            self._untold = False
            await self._call.send(self._accepted())
        self._sent = self._loop.time()
        await self._call.send(message)

    # --------------------------------------------------------------------- input

    def input_came(self) -> None:
        """`pending` has grown, or `ending` is new: see `accept`."""
        self.wake()

    def pass_through(self, data: memoryview) -> int:
        """Hand on at once what has come while nothing was pending: how much of it; `accept` is still to be called."""
        return 0

    def control(self, message: StreamControl) -> None:
        """Any StreamControl that does not detach."""
        raise BadRequestError("this stream has neither a terminal nor a command")

    def accept(self, size: int) -> None:
        """So many bytes of `pending` have reached their reader, and with the last one the end: tell the peer."""
        if size:
            del self.pending[:size]
            self.offset += size
            self._charge(-size)
        if self.ending and not self.pending:
            self.closed = True
        self._tell_accepted()

    def close_input(self) -> None:
        """Nobody reads the input any more: what is pending, and what comes, is dropped."""
        self._charge(-len(self.pending))
        self.pending.clear()
        self.closed = True
        self._tell_accepted()

    def _charge(self, size: int) -> None:
        if size:
            self._call.charge(size)

    def _accepted(self) -> StreamAccepted:
        self._until = max(self._until, self.offset + WINDOW)
        return StreamAccepted(offset=self.offset, until=self._until, closed=self.closed)

    def _tell_accepted(self) -> None:
        if not self._write(self._accepted()):
            self._untold = True
            self.wake()

    def _write(self, message: Message) -> bool:
        """Send at once, between two frames of the task; False: the kernel takes no more now."""
        outbox = self._call.outbox
        if outbox.closed:
            return True
        if outbox.blocked or outbox.in_frame:
            return False
        self._sent = self._loop.time()
        outbox.write(encode_message(message, self._call.trace_id))
        return True

    # ------------------------------------------------------ messages of the peer

    def _notified(self) -> None:
        self._heard = self._loop.time()
        if not self._reading:
            self._reading = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        inputs = self._call.inputs
        if inputs is None or inputs.notify is None:
            return  # closed meanwhile
        self._reading = False
        before = self.offset, len(self.pending), self.ending
        try:
            while self._failure is None:
                message = inputs.take()
                if message is None:
                    break
                self._take(message)
            if before != (self.offset, len(self.pending), self.ending):
                self._charge(len(self.pending) - before[1])
                self.input_came()
            if inputs.over and not self.detached:
                self.detached = True
                self.wake()
        except Exception as error:
            self.fail(error)

    def _take(self, message: Message) -> None:
        if type(message) is StreamCredit:
            self._take_credit(message)
        elif type(message) is StreamInput:
            self._take_input(message)
        elif type(message) is StreamControl:
            if message.detach:
                self.detached = True
                self.wake()
            else:
                self.control(message)

    def _take_credit(self, credit: StreamCredit) -> None:
        output = self.outputs.get(credit.stream)
        if output is None:
            raise BadRequestError(f"credit for an output that this stream does not have: {credit.stream!r}")
        output.taken = max(output.taken, min(credit.taken, output.cursor))
        if credit.until > output.until:
            output.until = credit.until
            self.wake()

    def _take_input(self, message: StreamInput) -> None:
        if self._until < 0:
            raise BadRequestError("this stream takes no input")
        if self.closed:
            return
        data = message.data
        have = self.offset + len(self.pending)
        if message.offset > have:
            raise ConflictError(f"the input from {have} to {message.offset} is missing")
        end = message.offset + len(data)
        if end > self._until:
            raise BadRequestError(f"input up to {end}, where it was allowed up to {self._until}")
        if end > have:
            if self.ending:
                raise ConflictError(f"input behind its end, which is at {have}")
            new = memoryview(data)[have - message.offset :]
            if not self.pending:
                passed = self.pass_through(new)
                self.offset += passed
                new = new[passed:]
            self.pending += new
        if message.close:
            if end < have:
                raise ConflictError(f"the input cannot end at {end}: {have} bytes of it have come")
            self.ending = True

    # ------------------------------------------------------------- signs of life

    def check(self, now: float) -> None:
        """Called twice a heartbeat: give a sign of life where none was given, and miss the peer's."""
        if now - self._heard > MISSED * self._interval:
            self.fail(RequestError(f"nothing was heard of the client for {now - self._heard:.3g} s", 408))
            if self._call.outbox.blocked:
                # It does not read either: the task waits in a send, and no error would go out.
                self._call.outbox.abort()
            return
        # The margin is for a timer that comes a little early.
        if now - self._sent >= self._interval * 0.45:
            self._write(StreamAlive())

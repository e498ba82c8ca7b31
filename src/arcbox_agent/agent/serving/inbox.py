"""What has arrived on a connection and cannot be answered yet, and its bounds.

Frames wait in the order in which they came.  While a duplex call runs, those of its input
types go to the call instead, past the requests that wait.  Both together are bounded; at
the bound the connection is not read (backpressure).
"""

from __future__ import annotations

from collections import deque

from arcbox_agent.errors import FrameError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Callable, Mapping

    from arcbox_agent.wire import Frame, FrameDecoder, Message

#: What a frame that waits costs besides its payload and its trace id: the objects that hold them.
FRAME_COST = 128


class Inbox:
    """One connection's frames between the decoder and their answer.

    `ended`: the peer sends no more.  `paused`: the connection is not read.  `broken`: what is
    wrong with the stream, once all frames before that have been taken.
    """

    __slots__ = ("_max_bytes", "_max_frames", "broken", "ended", "frames", "inputs", "paused", "size")

    def __init__(self, max_frames: int, max_bytes: int) -> None:
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self.frames: deque[Frame] | None = None  # requests that wait; made when the first one does
        self.inputs: Inputs | None = None  # of the duplex call that runs, or was the last to run
        self.size = 0  # bytes of all that waits
        self.broken: FrameError | None = None
        self.ended = False
        self.paused = False

    def fill(self, decoder: FrameDecoder) -> bool:
        """Take frames off the decoder, up to the bounds; whether there is room for more.

        A broken stream has none.
        """
        frames = self.frames
        inputs = self.inputs
        try:
            while self.size < self._max_bytes:
                waiting = (len(frames) if frames is not None else 0) + (len(inputs) if inputs is not None else 0)
                if waiting >= self._max_frames:
                    return False
                frame = decoder.next_frame()
                if frame is None:
                    return True
                self.size += cost(frame)
                if inputs is not None and frame.type in inputs.types:
                    inputs.put(frame)
                else:
                    if frames is None:
                        frames = self.frames = deque()
                    frames.append(frame)
        except FrameError as error:
            # Its turn comes after the frames before it.
            self.break_off(error)
        return False

    def is_full(self) -> bool:
        """Whether what waits is at a bound, or no more will come."""
        waiting = len(self.frames or ()) + (len(self.inputs) if self.inputs is not None else 0)
        return self.size >= self._max_bytes or waiting >= self._max_frames or self.broken is not None

    def take(self) -> Frame | None:
        """The next request that waits; None: none does.  FrameError: the stream is broken here."""
        if self.frames:
            frame = self.frames.popleft()
            self.size -= cost(frame)
            return frame
        if self.broken is not None:
            raise self.broken
        return None

    def open_inputs(
        self, types: Mapping[int, type[Message]], loop: AbstractEventLoop, taken: Callable[[], None]
    ) -> Inputs:
        """A duplex call begins, whose input `types` are.  `taken`: told when it took one."""
        inputs = self.inputs = Inputs(self, types, loop, taken)
        waiting, self.frames = self.frames, None
        if waiting:
            # What arrived with the request itself.
            self.frames = deque()
            for frame in waiting:
                if frame.type in types:
                    inputs.put(frame)
                else:
                    self.frames.append(frame)
        if self.ended or self.broken is not None:
            inputs.end(self.broken)
        return inputs

    def break_off(self, error: FrameError) -> None:
        """The stream is broken behind what has been taken."""
        self.broken = self.broken or error
        if self.inputs is not None:
            self.inputs.end(self.broken)

    def end(self) -> None:
        """The peer sends no more."""
        self.ended = True
        if self.inputs is not None:
            self.inputs.end(self.broken)

    def clear(self) -> None:
        """Nothing that waits is of use any more."""
        self.frames = self.inputs = None
        self.size = 0


#: The inbox of every connection on which nothing has had to wait yet; never changed.
NOTHING_WAITS = Inbox(0, 0)


class Inputs:
    """The input messages of one duplex call.

    `notify`: called when one has come, or the peer's end, in place of waking who receives.  It must not take any.
    """

    __slots__ = ("_error", "_frames", "_inbox", "_loop", "_over", "_taken", "_waiter", "notify", "open", "types")

    def __init__(
        self, inbox: Inbox, types: Mapping[int, type[Message]], loop: AbstractEventLoop, taken: Callable[[], None]
    ) -> None:
        self.types = types
        self._inbox = inbox
        self._loop = loop
        self._taken = taken
        self._frames: deque[Frame] | None = None  # made when one comes: an idle stream has none
        self._waiter: Future[None] | None = None
        self._over = False
        self.open = True  # the call runs
        self.notify: Callable[[], None] | None = None
        self._error: FrameError | None = None

    def __len__(self) -> int:
        return len(self._frames) if self._frames is not None else 0

    def put(self, frame: Frame) -> None:
        if not self.open:
            self._inbox.size -= cost(frame)  # too late: the call has ended
            return
        if self._frames is None:
            self._frames = deque()
        self._frames.append(frame)
        self._wake()

    def end(self, error: FrameError | None) -> None:
        """No more will come: the peer has ended its side, or broken the stream."""
        self._over, self._error = True, error
        self._wake()

    def _wake(self) -> None:
        if self.notify is not None:
            self.notify()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def over(self) -> bool:
        """The peer has ended its side, and all that came before that was taken."""
        return self._over and not self._frames and self._error is None

    async def receive(self) -> Message | None:
        """The next one; None when the peer has ended its side.

        DecodeError: it cannot be decoded.  FrameError: the stream broke behind the last one.
        """
        while (message := self.take()) is None:
            if self._over:
                return None
            self._waiter = self._loop.create_future()
            await self._waiter
        return message

    def take(self) -> Message | None:
        """The next one, if it has come.  Raises as `receive` does."""
        if not self._frames:
            if self._error is not None:
                raise self._error
            return None
        frame = self._frames.popleft()
        if not self._frames:
            self._frames = None
        self._inbox.size -= cost(frame)
        self._taken()
        return self.types[frame.type].decode(frame.payload)

    def close(self) -> None:
        """The call has ended: what it did not take is dropped.  `types` still tells what comes too late."""
        self.open = False
        self.notify = None
        for frame in self._frames or ():
            self._inbox.size -= cost(frame)
        self._frames = None


def cost(frame: Frame) -> int:
    """The memory that a frame takes while it waits, in bytes."""
    return len(frame.payload) + len(frame.trace_id or "") + FRAME_COST

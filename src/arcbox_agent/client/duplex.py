"""One duplex call: a request, then messages both ways until one side ends it.

    async with await client.duplex(request, heartbeat=10.0) as call:
        call.send(StreamInput(...))
        message = await call.receive()

It has a connection to itself.  docs/protocol.md has the order of the messages.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from arcbox_agent import wire
from arcbox_agent.errors import ConnectionLostError, FrameError, RequestError

if TYPE_CHECKING:
    from types import TracebackType

    from arcbox_agent.client.connection import Connection
    from arcbox_agent.client.pool import Lease

#: Seconds between two signs of life, where the request names none; the agent takes no less than the second.
HEARTBEAT = 10.0
LEAST_HEARTBEAT = 0.02

#: So many heartbeats of the agent may be missed.
MISSED = 3

#: What an agent sends in a stream, by the type of its frame.
_REPLIES: dict[int, type[wire.Message]] = {
    cls.TYPE: cls
    for cls in (
        wire.Empty,
        wire.Execution,
        wire.Connected,
        wire.Listening,
        wire.Incoming,
        wire.StreamOutput,
        wire.StreamGap,
        wire.StreamAccepted,
        wire.StreamEnd,
        wire.StreamAlive,
    )
    if cls.TYPE is not None
}


class DuplexCall:
    """A call whose request was sent on `lease`.

    `heartbeat`: seconds; an agent that is silent for three times as long is taken for lost.
    """

    def __init__(self, lease: Lease, heartbeat: float) -> None:
        self._lease: Lease | None = lease
        self._connection: Connection = lease.connection
        self._interval = heartbeat
        self._loop = asyncio.get_running_loop()
        self._heard = self._said = self._looked = self._loop.time()
        self._timer = self._loop.call_later(heartbeat / 2, self._tick)

    @property
    def over(self) -> bool:
        return self._lease is None

    async def receive(self) -> wire.Message:
        """The agent's next message that is more than a sign of life.

        Raises RequestError for an Error, which ends the call; ConnectionLostError, also where the agent has
        been silent for too long; FrameError for a frame that belongs to no stream.
        """
        if self._lease is None:
            raise ConnectionLostError("the call is over")
        while True:
            try:
                frame = self._connection.take()
            except RequestError:
                self.finish()
                raise
            if frame is None:
                await self._connection.more()
                self._heard = self._loop.time()
                continue
            reply_class = _REPLIES.get(frame.type)
            if reply_class is None:
                raise FrameError(f"a frame of type {frame.type:#06x} in a stream")
            if reply_class is not wire.StreamAlive:
                return reply_class.decode(frame.payload)

    def send(self, message: wire.Message) -> None:
        """Send one of the client's messages.  It does nothing if the connection is lost: `receive` tells that."""
        if self._lease is not None:
            self._said = self._loop.time()
            self._connection.add(message)

    def finish(self) -> None:
        """The last reply has come: another call may use the connection."""
        self._end(reusable=True)

    def leave(self) -> None:
        """Close the connection, unless the call is over.  The agent takes it for a client that is lost."""
        self._end(reusable=False)

    async def __aenter__(self) -> DuplexCall:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def _end(self, *, reusable: bool) -> None:
        self._timer.cancel()
        lease, self._lease = self._lease, None
        if lease is not None:
            (lease.release if reusable else lease.discard)()

    def _tick(self) -> None:
        now = self._loop.time()
        if now - self._looked > self._interval:
            # The loop stood still, so nobody could have heard.
            self._heard = now
        self._looked = now
        silence = now - self._heard
        if silence > MISSED * self._interval:
            self._connection.abort(f"nothing was heard of the agent for {silence:.3g} s")
            return
        if now - self._said >= self._interval * 0.45:  # a timer may come a little early
            self.send(wire.StreamHeartbeat())
        self._timer = self._loop.call_later(self._interval / 2, self._tick)

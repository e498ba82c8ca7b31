"""How a call goes over the client's connections, and what is known of the agent there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from arcbox_agent import wire
from arcbox_agent.client import calls
from arcbox_agent.client.calls import AgentKind
from arcbox_agent.client.duplex import HEARTBEAT, LEAST_HEARTBEAT, DuplexCall
from arcbox_agent.client.pool import Lease, Pool
from arcbox_agent.client.stream import ReplyStream
from arcbox_agent.errors import (
    BadRequestError,
    CallTimeoutError,
    ConnectionLostError,
    FrameTooLargeError,
    RequestError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from arcbox_agent.client.connection import Connection

M = TypeVar("M", bound=wire.Message)
T = TypeVar("T")


class _Request(NamedTuple):
    """A message, encoded as a frame of `version`."""

    message: wire.Message
    version: Literal[1, 2]
    frame: bytes
    trace_id: str | None


class Caller:
    """Sends requests and reads replies; the classes in api/ make typed methods of it."""

    def __init__(
        self,
        dial: Callable[[Literal[1, 2]], Awaitable[Connection]],
        *,
        timeout: float | None,
        versions: tuple[Literal[1, 2], ...],
        trace_id: Callable[[], str],
        max_connections: int,
        max_streams: int,
        max_tunnels: int,
        output_limit: int,
        max_frame_size: int,
    ) -> None:
        self._dial = dial
        self._pool = Pool(self._open, max_calls=max_connections, max_streams=max_streams, max_tunnels=max_tunnels)
        self._timeout = timeout
        self._versions = versions
        self._trace_id = trace_id
        self._output_limit = output_limit
        self._max_frame_size = max_frame_size
        #: The kind of the agent that answered last.
        self._agent = AgentKind(versions[0], frozenset(("ping",)))

    async def call(
        self,
        request: wire.Message,
        reply_class: type[M],
        *,
        timeout: float | None = None,
        long: bool = False,
        repeatable: bool = False,
    ) -> M:
        """Send any request that has one reply, and return that reply.

        `long`: the agent may take its time, so the call uses one of the connections for
        streams, and short calls need not wait behind it.  `repeatable`: the request may
        be sent again when a connection that had been idle turns out to be closed.
        """
        seconds = self._timeout if timeout is None else timeout
        return await self._call(request, reply_class, seconds=seconds, long=long, repeatable=repeatable)

    async def duplex(
        self, request: wire.Message, *, heartbeat: float = HEARTBEAT, timeout: float | None = None
    ) -> DuplexCall:
        """Send a request that opens a stream, on a connection that the stream has to itself.

        `heartbeat`: seconds, which the request's `heartbeat_ms` is set to.  `timeout`: to get the connection in.
        Raises UnsupportedError for an agent that has no streams.
        """
        if not LEAST_HEARTBEAT <= heartbeat <= 3600:
            raise ValueError(f"a heartbeat is {LEAST_HEARTBEAT} s to an hour, not {heartbeat}")
        request.heartbeat_ms = calls.whole("heartbeat_ms", heartbeat * 1000)  # type: ignore[attr-defined]
        sent = self._request(request, self._agent.version)
        name = type(request).__name__.removesuffix("Request")
        seconds = self._timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(seconds):
                lease = await self._pool.lease(stream=True)
        except TimeoutError:
            raise CallTimeoutError(name, seconds or 0.0) from None
        try:
            self._send(sent, lease.connection)
        except UnsupportedError:
            lease.release()
            raise
        except BaseException:
            lease.discard()
            raise
        return DuplexCall(lease, heartbeat)

    def knows(self, request_class: type[wire.Message]) -> bool:
        """Whether the agent has this call, judged by its answer to the first ping."""
        return self._agent.knows(request_class)

    def knows_field(self, request_class: type[wire.Message], field: str) -> bool:
        """Whether the agent heeds this field of a request, judged as by `knows`."""
        return self._agent.knows_field(request_class, field)

    @property
    def closed(self) -> bool:
        """Whether the client was closed."""
        return self._pool.closed

    # --------------------------------------------------------------- private

    async def _reach(self, *, timeout: float | None) -> None:
        """Open a connection and wait for the agent's first answer; only `connect` calls this."""
        try:
            async with asyncio.timeout(timeout):
                lease = await self._pool.lease(stream=False)
        except TimeoutError:
            raise CallTimeoutError("Ping", timeout or 0.0) from None
        lease.release()

    def _added_to(self, seconds: float) -> float | None:
        return None if self._timeout is None else seconds + self._timeout

    async def _open(self) -> Connection:
        """A connection to an agent of known kind.

        While one connection is alive, a new one leads to the same agent.  When none is, the
        agent may have been replaced, so a ping asks for its kind again.
        """
        living = self._pool.living()
        if living is not None and living.agent is not None:
            connection = await self._dial(living.agent.version)
            self._pool.adopt(connection)
            if living.is_alive():
                connection.agent = living.agent
                return connection
            self._pool.drop(connection)
        *before, last = self._versions
        for version in before:
            try:
                return await self._meet(version)
            except BadRequestError:
                pass  # A V1-only agent parses the trace id as payload and answers 400: try V1.
        return await self._meet(last)

    async def _meet(self, version: Literal[1, 2]) -> Connection:
        """A connection whose agent has answered a ping, and so shown its kind."""
        sent = self._request(wire.PingRequest(detail=True), version)
        connection = await self._dial(version)
        self._pool.adopt(connection)
        try:
            connection.send(sent.frame, sent.trace_id)
            reply = calls.decode_reply(await connection.receive(), wire.PingResponse)
        except BaseException:
            self._pool.drop(connection)
            raise
        connection.agent = self._agent = AgentKind(version, frozenset(reply.features))
        return connection

    def _request(self, message: wire.Message, version: Literal[1, 2]) -> _Request:
        trace_id = self._trace_id() if version == 2 else None
        frame = wire.encode_message(message, trace_id)
        if len(frame) > self._max_frame_size:
            raise FrameTooLargeError(len(frame), self._max_frame_size)
        return _Request(message, version, frame, trace_id)

    def _send(self, request: _Request, connection: Connection) -> None:
        """Send the request in the agent's version.  Raises UnsupportedError if the agent is too old for it."""
        agent = connection.agent
        assert agent is not None
        calls.check_is_known(request.message, agent)
        if request.version != agent.version:
            request = self._request(request.message, agent.version)
        connection.send(request.frame, request.trace_id)

    async def _call(
        self, message: wire.Message, reply_class: type[M], *, seconds: float | None, long: bool, repeatable: bool
    ) -> M:
        request = self._request(message, self._agent.version)
        bounded = seconds is not None
        try:
            async with asyncio.timeout(seconds):
                reply = await self._exchange(request, reply_class, long=long, fresh=False, bounded=bounded)
                if reply is None and repeatable:
                    reply = await self._exchange(request, reply_class, long=long, fresh=True, bounded=bounded)
        except TimeoutError:
            name = type(message).__name__.removesuffix("Request")
            # A call without a time-out of its own still waits for a connection only as long as
            # the client's time-out allows.
            waited = self._timeout if seconds is None else seconds
            raise CallTimeoutError(name, waited or 0.0) from None
        if reply is None:
            raise ConnectionLostError("the agent closed the connection, perhaps after it had read the request")
        return reply

    async def _lease(self, *, stream: bool, fresh: bool = False, tunnel: bool = False) -> Lease:
        """A connection for a call whose wait for the reply is unbounded; the wait for the connection is not."""
        async with asyncio.timeout(self._timeout):
            return await self._pool.lease(stream=stream, fresh=fresh, tunnel=tunnel)

    async def _exchange(
        self, request: _Request, reply_class: type[M], *, long: bool, fresh: bool, bounded: bool
    ) -> M | None:
        """The reply; None if a connection that had been idle turned out to be lost.

        `bounded`: whether the caller's time-out is already running.
        """
        lease = await (self._pool.lease if bounded else self._lease)(stream=long, fresh=fresh)
        connection = lease.connection
        try:
            self._send(request, connection)
            reply = calls.decode_reply(await connection.receive(), reply_class)
        except (RequestError, UnsupportedError):
            # A refusal is a complete answer, and an unsupported request was never sent:
            # the connection stays usable.
            lease.release()
            raise
        except ConnectionLostError:
            lease.discard()
            if lease.reused and not self._pool.closed:
                return None
            raise
        except BaseException:
            # After a time-out, a cancellation or a broken reply, more frames of this call
            # may arrive: no later call may use the connection.
            lease.discard()
            raise
        lease.release()
        return reply

    def _stream(
        self,
        message: wire.Message,
        replies: calls.Replies[T],
        *,
        first_timeout: float | None,
        next_timeout: float | None,
        kind: type[ReplyStream[T]] = ReplyStream,
    ) -> ReplyStream[T]:
        request = self._request(message, self._agent.version)

        async def start() -> Lease:
            try:
                lease = await self._lease(stream=True)
            except TimeoutError:
                raise CallTimeoutError(replies.call, self._timeout or 0.0) from None
            try:
                self._send(request, lease.connection)
            except UnsupportedError:
                lease.release()
                raise
            except BaseException:
                lease.discard()
                raise
            return lease

        return kind(replies, start, first_timeout=first_timeout, next_timeout=next_timeout)

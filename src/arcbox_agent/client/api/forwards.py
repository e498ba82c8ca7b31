"""Calls that connect this host with addresses in the guest."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from arcbox_agent import wire
from arcbox_agent.client import calls
from arcbox_agent.client.caller import Caller
from arcbox_agent.client.endpoint import Endpoint
from arcbox_agent.client.forwarding import BackForward, Forward
from arcbox_agent.client.keywords import expands
from arcbox_agent.client.tunnel import Tunnel
from arcbox_agent.errors import CallTimeoutError, ConnectionLostError, RequestError, UnsupportedError

if TYPE_CHECKING:
    from typing import Unpack

    from arcbox_agent.client.endpoint import EndpointLike
    from arcbox_agent.client.keywords import ConnectOptions, ForwardOptions
    from arcbox_agent.client.pool import Lease

M = TypeVar("M", bound=wire.Message)

#: Bytes that the reader of `open_connection` keeps before it stops the sender.
READER_LIMIT = 64 << 10


class ForwardCalls(Caller):
    @expands(calls.connect_request)
    async def open_connection(
        self, host: str = "", port: int = 0, *, path: str = "", **options: Unpack[ConnectOptions]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to an address in the guest, as `asyncio.open_connection` does on this host.

        `host`: a name or an address, as the guest knows them; empty: the guest itself.  `path`:
        a unix socket in its place.  `container`: the container whose network and files are meant.
        `timeout`: seconds to connect in.  `heartbeat`: seconds of silence after which each side
        gives a sign of life; a side that misses three is given up.
        Raises RequestError: its text has the errno's name, as `ECONNREFUSED`.
        """
        tunnel = await self._connect(host, port, path=path, **options)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(READER_LIMIT, loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        tunnel.start(protocol)
        return reader, asyncio.StreamWriter(tunnel, protocol, reader, loop)

    @expands(calls.forward_options)
    def forward(self, local: EndpointLike, remote: EndpointLike, **options: Unpack[ForwardOptions]) -> Forward:
        """Listen on this host, and connect what connects there to `remote` in the guest.

        Each is a port, `host:port` or the path of a unix socket.  `async with` the result, or await
        it; its `address` is where it listens, with the port that was chosen for 0.  `on_error`: called
        with what kept a connection from being forwarded; it was reset.  The others: see open_connection.
        """
        there = Endpoint.of(remote)
        given = calls.forward_options(**options)
        request = calls.connect_request(
            there, container=given.container, timeout=given.timeout, heartbeat=given.heartbeat
        )

        async def open_tunnel() -> Tunnel:
            return await self._open_tunnel(request, given.timeout, given.heartbeat)

        return Forward(Endpoint.of(local), open_tunnel, given.on_error)

    @expands(calls.forward_options)
    def forward_back(self, remote: EndpointLike, local: EndpointLike, **options: Unpack[ForwardOptions]) -> BackForward:
        """Listen at `remote` in the guest, and connect what connects there to `local`, as this host reaches it.

        As `forward`, the other way round; its `wait()` raises what ended the listener in the guest.
        """
        there = Endpoint.of(remote)
        given = calls.forward_options(**options)
        milliseconds = calls.milliseconds("ListenRequest.heartbeat_ms", given.heartbeat)
        request = wire.ListenRequest(
            host=there.host, port=there.port, path=there.path, container_id=given.container, heartbeat_ms=milliseconds
        )

        async def open_listener() -> tuple[Lease, str | None, str]:
            lease, trace_id, listening = await self._begin(request, wire.Listening, None)
            return lease, trace_id, listening.address

        async def open_tunnel(id: str) -> Tunnel:
            accept = wire.AcceptRequest(id=id, window=calls.WINDOW, heartbeat_ms=milliseconds)
            return await self._open_tunnel(accept, 0.0, given.heartbeat)

        return BackForward(Endpoint.of(local), open_listener, open_tunnel, given.heartbeat, given.on_error)

    # --------------------------------------------------------------- private

    async def _connect(
        self, host: str = "", port: int = 0, *, path: str = "", **options: Unpack[ConnectOptions]
    ) -> Tunnel:
        request = calls.connect_request(Endpoint(host, port, path), **options)
        return await self._open_tunnel(request, request.timeout_ms / 1000, request.heartbeat_ms / 1000)

    async def _open_tunnel(self, request: wire.Message, seconds: float, heartbeat: float) -> Tunnel:
        """`seconds`: that the agent may take."""
        lease, trace_id, connected = await self._begin(request, wire.Connected, self._added_to(seconds))
        return Tunnel(lease, trace_id, connected, heartbeat)

    async def _begin(
        self, message: wire.Message, reply_class: type[M], seconds: float | None
    ) -> tuple[Lease, str | None, M]:
        """Send a request whose stream follows; its connection, its trace id and its first reply."""
        try:
            async with asyncio.timeout(self._timeout if seconds is None else seconds):
                begun = await self._begin_on(message, reply_class, fresh=False)
                if begun is None:
                    begun = await self._begin_on(message, reply_class, fresh=True)
        except TimeoutError:
            name = type(message).__name__.removesuffix("Request")
            raise CallTimeoutError(name, seconds or self._timeout or 0.0) from None
        assert begun is not None
        return begun

    async def _begin_on(
        self, message: wire.Message, reply_class: type[M], *, fresh: bool
    ) -> tuple[Lease, str | None, M] | None:
        """None: a connection that had been idle turned out to be lost."""
        lease = await self._pool.lease(stream=True, fresh=fresh, tunnel=True)
        connection = lease.connection
        try:
            assert connection.agent is not None
            request = self._request(message, connection.agent.version)
            self._send(request, connection)
            return lease, request.trace_id, calls.decode_reply(await connection.receive(), reply_class)
        except (RequestError, UnsupportedError):
            lease.release()
            raise
        except ConnectionLostError:
            lease.discard()
            if lease.reused and not fresh and not self._pool.closed:
                return None
            raise
        except BaseException:
            lease.discard()
            raise

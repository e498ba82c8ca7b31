"""Forwards of a whole listener: each connection to it becomes one on the other side.

Forward      listens on this host, connects in the guest
BackForward  listens in the guest, connects from this host
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, Self

from arcbox_agent import wire
from arcbox_agent.client import calls
from arcbox_agent.client.endpoint import Endpoint
from arcbox_agent.client.tunnel import MISSED
from arcbox_agent.errors import ArcboxError, ConnectionLostError

if TYPE_CHECKING:
    from types import TracebackType

    from arcbox_agent.client.pool import Lease
    from arcbox_agent.client.tunnel import Tunnel
    from arcbox_agent.wire import Frame

    #: Opens a connection in the guest; `Tunnel.start` is still to be called.
    OpenTunnel = Callable[[], Awaitable[Tunnel]]

#: Connections in the kernel's queue of a listener of this host.
BACKLOG = 1024

#: SO_LINGER with no time: close resets the connection.
_RESET = struct.pack("ii", 1, 0)


class End(asyncio.Protocol):
    """One of the two ends of a forwarded connection: what it gets goes to `other`."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: End | None = None
        self._early = bytearray()  # what came before the other end was there
        self._ended = False  # no more comes from here
        self.gone = False

    def join(self, other: End) -> None:
        self.other, other.other = other, self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        to = self._to()
        if to is not None:
            to.write(data)
        elif self.other is None or not self.other.gone:
            self._early += data

    def eof_received(self) -> bool:
        self._ended = True
        to = self._to()
        if to is not None:
            to.write_eof()
        return True

    def catch_up(self) -> None:
        """The other end is there: it gets what came before."""
        to = self._to()
        if to is None:
            return
        if self._early:
            to.write(bytes(self._early))
            self._early.clear()
        if self._ended:
            to.write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        to = self._to()
        if to is None:
            return
        if exc is None or (self._ended and to.get_extra_info("socket") is None):
            # What was sent before still goes into the guest, though nobody here reads the answer.
            to.close()
        else:
            reset(to)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def _to(self) -> asyncio.Transport | None:
        return None if self.other is None or self.other.gone else self.other.transport


def reset(transport: asyncio.Transport) -> None:
    """Close at once, so that the other end does not take it for the end of what it gets."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except OSError:
            pass  # it is closed already
    transport.abort()


class Forwarding:
    """What both kinds have in common: opened, awaited or entered it runs, until `aclose`."""

    #: Where it listens.
    address: Endpoint

    def __init__(self, on_error: Callable[[Exception], object] | None) -> None:
        self._on_error = on_error
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends: set[End] = set()
        self._over: asyncio.Future[None]

    async def open(self) -> None:
        """Begin to listen.  OSError, RequestError: it is not possible there."""
        raise NotImplementedError

    async def wait(self) -> None:
        """Until `aclose`.  Raises what ended the listener."""
        await asyncio.shield(self._over)

    async def aclose(self) -> None:
        """Close the listener, and every connection that came by it."""
        if not self._over.done():
            self._over.set_result(None)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for end in list(self._ends):
            if end.transport is not None and not end.gone:
                reset(end.transport)
        self._ends.clear()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def connections(self) -> int:
        """Connections that are forwarded now."""
        self._ends = {end for end in self._ends if not end.gone}
        return len(self._ends)

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _failed(self, error: Exception) -> None:
        if self._on_error is not None:
            self._on_error(error)

    def _join(self, local: End, tunnel: Tunnel) -> None:
        there = End()
        there.join(local)
        if len(self._ends) > 2 * BACKLOG:
            self._ends = {end for end in self._ends if not end.gone}
        self._ends.add(local)
        tunnel.start(there)
        local.catch_up()
        if local.gone:
            reset(tunnel)


class _Accepted(End):
    """A connection to this host's listener, which waits until it has its other end."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self._forward = forward

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # In a moment: uvloop begins to read when this has returned.
        asyncio.get_running_loop().call_soon(self._pause)
        self._forward._begin(self._forward._forward(self))

    def _pause(self) -> None:
        if self.transport is not None and not self.gone and self.other is None:
            self.transport.pause_reading()


class Forward(Forwarding):
    """A listener of this host whose connections go to an address in the guest.

    `address`: where it listens, with the port that was chosen for 0.
    """

    def __init__(
        self, local: Endpoint, open_tunnel: OpenTunnel, on_error: Callable[[Exception], object] | None
    ) -> None:
        super().__init__(on_error)
        self.address = local
        self._open_tunnel = open_tunnel
        self._server: asyncio.Server | None = None
        self._inode: tuple[int, int] | None = None

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        local = self.address
        if local.path:
            sock = _listen_unix(local.path)
            found = os.stat(local.path)
            self._inode = found.st_dev, found.st_ino
            self._server = await loop.create_unix_server(lambda: _Accepted(self), sock=sock, backlog=BACKLOG)
        else:
            self._server = await loop.create_server(
                lambda: _Accepted(self), local.host, local.port, backlog=BACKLOG, reuse_address=True
            )
            self.address = Endpoint(local.host, self._server.sockets[0].getsockname()[1], "")

    async def aclose(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
            if self._inode is not None:
                _remove(self.address.path, self._inode)
        await super().aclose()

    async def _forward(self, local: End) -> None:
        try:
            tunnel = await self._open_tunnel()
        except (ArcboxError, OSError) as error:
            if local.transport is not None:
                reset(local.transport)
            self._failed(error)
            return
        except asyncio.CancelledError:
            if local.transport is not None:
                reset(local.transport)
            raise
        self._join(local, tunnel)
        if not local.gone and local.transport is not None:
            local.transport.resume_reading()


class BackForward(Forwarding):
    """A listener in the guest whose connections go to an address that this host reaches.

    `address`: where it listens in the guest, with the port that was chosen for 0.
    """

    def __init__(
        self,
        local: Endpoint,
        open_listener: Callable[[], Awaitable[tuple[Lease, str | None, str]]],
        open_tunnel: Callable[[str], Awaitable[Tunnel]],
        heartbeat: float,
        on_error: Callable[[Exception], object] | None,
    ) -> None:
        super().__init__(on_error)
        self._local = local
        self._open_listener = open_listener
        self._open_tunnel = open_tunnel
        self._heartbeat = heartbeat
        self._lease: Lease | None = None
        self._trace_id: str | None = None
        self._heard = 0.0

    async def open(self) -> None:
        self._over = asyncio.get_running_loop().create_future()
        self._lease, self._trace_id, address = await self._open_listener()
        self.address = Endpoint.of(address)
        self._begin(self._listen())

    async def aclose(self) -> None:
        await super().aclose()
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.discard()

    async def _listen(self) -> None:
        assert self._lease is not None
        loop = asyncio.get_running_loop()
        connection = self._lease.connection
        self._heard = loop.time()
        timer = loop.call_later(self._heartbeat / 2, self._tick)
        try:
            while True:
                frame = connection.take()
                if frame is None:
                    await connection.more()
                    continue
                self._heard = loop.time()
                self._take(frame)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            lease, self._lease = self._lease, None
            lease.discard()
            if not self._over.done():
                self._over.set_exception(error)
                self._over.exception()  # not everybody waits
            self._failed(error)
        finally:
            timer.cancel()

    def _take(self, frame: Frame) -> None:
        if frame.type == wire.StreamAlive.TYPE:
            return
        incoming = calls.decode_reply(frame, wire.Incoming)
        self._begin(self._pick_up(incoming.id))

    def _tick(self) -> None:
        lease = self._lease
        if lease is None:
            return
        loop = asyncio.get_running_loop()
        if loop.time() - self._heard > MISSED * self._heartbeat:
            lease.connection.abort(f"nothing was heard of the agent for {loop.time() - self._heard:.3g} s")
            return
        try:
            lease.connection.send(wire.encode_message(wire.StreamHeartbeat(), self._trace_id), self._trace_id)
        except ConnectionLostError:
            return  # _listen is told too
        loop.call_later(self._heartbeat / 2, self._tick)

    async def _pick_up(self, id: str) -> None:
        loop = asyncio.get_running_loop()
        local = End()
        connected: asyncio.Transport | None = None
        try:
            # This host's side first: who is refused there is not kept waiting in the guest.
            if self._local.path:
                connected, _ = await loop.create_unix_connection(lambda: local, self._local.path)
            else:
                connected, _ = await loop.create_connection(lambda: local, self._local.host, self._local.port)
            connected.pause_reading()
            tunnel = await self._open_tunnel(id)
        except (ArcboxError, OSError) as error:
            if connected is not None:
                reset(connected)
            else:
                await self._refuse(id)
            self._failed(error)
            return
        except asyncio.CancelledError:
            if connected is not None:
                reset(connected)
            raise
        self._join(local, tunnel)
        if not local.gone:
            connected.resume_reading()

    async def _refuse(self, id: str) -> None:
        """Nobody is there on this host: the one in the guest gets a reset at once."""
        try:
            tunnel = await self._open_tunnel(id)
        except ArcboxError:
            return
        tunnel.start(asyncio.Protocol())
        tunnel.abort()


def _listen_unix(path: str) -> socket.socket:
    """A listener at `path`, for this user alone; in the place of a socket on which nobody listens any more."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        os.fchmod(sock.fileno(), 0o600)
        try:
            sock.bind(path)
        except OSError:
            if not _is_left_behind(path):
                raise
            os.unlink(path)
            sock.bind(path)
        os.chmod(path, 0o600)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_left_behind(path: str) -> bool:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _remove(path: str, inode: tuple[int, int]) -> None:
    try:
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) == inode:
            os.unlink(path)
    except OSError:
        pass  # somebody removed it

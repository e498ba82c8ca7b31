"""A connected socket, from an address in the guest or in a container.

Nothing here blocks the loop: names are looked up and files are opened in a thread, sockets do
not block, and the whole has one time-out.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket

from arcbox_agent.agent.forwards.place import check_path
from arcbox_agent.errors import AgentFailedError, BadRequestError
from arcbox_agent.readiness import until_writable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.forwards.place import Place
    from arcbox_agent.agent.processes.lanes import Lanes

#: Seconds to connect in, where the request does not say.
TIMEOUT = 10.0

LOCALHOST = "127.0.0.1"

#: The longest name that DNS can have.
MAX_HOST = 253

#: Seconds from one try to the next while the backlog of a unix socket is full.
FIRST_PAUSE, LAST_PAUSE = 0.005, 0.1

_CONNECTING = {errno.EINPROGRESS, errno.EINTR, errno.EALREADY}


class Address:
    """TCP at `host` and `port`, or with a `path` the unix socket there.  BadRequestError: it can be no address."""

    __slots__ = ("host", "path", "port")

    def __init__(self, host: str, port: int, path: str, any_port: bool = False) -> None:
        if path:
            if host or port:
                raise BadRequestError("give host and port, or path")
            check_path(path)
        elif not (port or any_port):
            raise BadRequestError("neither port nor path is given")
        elif port > 65535:
            raise BadRequestError(f"port {port} is above 65535")
        elif len(host) > MAX_HOST or not host.isascii() or not host.isprintable() or " " in host:
            raise BadRequestError("the host is neither a name nor an address")
        self.host = "" if path else host or LOCALHOST
        self.port = port
        self.path = path

    def __str__(self) -> str:
        return self.path or name_of((self.host, self.port))


def name_of(address: object) -> str:
    """What getsockname and getpeername give, as text: `host:port`, `[host]:port`, or the path."""
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return os.fsdecode(address) if isinstance(address, bytes) else str(address)


def system_error(error: OSError) -> str:
    """`ECONNREFUSED: Connection refused`; of a name that is not found, `EAI_NONAME: ...`."""
    number = error.errno or 0
    if isinstance(error, socket.gaierror):
        names = (name for name in dir(socket) if name.startswith("EAI_") and getattr(socket, name) == number)
        return f"{next(names, number)}: {error.strerror}"
    return f"{errno.errorcode.get(number, number)}: {os.strerror(number)}"


async def dial(lanes: Lanes, place: Place, address: Address, seconds: float) -> socket.socket:
    """A connected socket that does not block.  AgentFailedError: why there is none; BadRequestError; BusyError."""
    try:
        async with asyncio.timeout(seconds):
            if address.path:
                return await dial_unix(lanes, place, address.path)
            return await dial_tcp(lanes, address.host, address.port)
    except TimeoutError:
        reason = f"ETIMEDOUT: it was not connected after {seconds:g} s"
    except OSError as error:
        reason = system_error(error)
    raise AgentFailedError(f"connect to {address} failed: {reason}")


async def dial_unix(lanes: Lanes, place: Place, path: str) -> socket.socket:
    """Connect to a unix socket.  OSError."""
    file = await in_lane(lanes, place, path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    pause = FIRST_PAUSE
    try:
        # By the descriptor: a path longer than an address of a socket works too.
        while code := sock.connect_ex(f"/proc/self/fd/{file}"):
            if code != errno.EAGAIN:
                raise OSError(code, os.strerror(code))
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(file)
    return sock


async def in_lane(lanes: Lanes, place: Place, path: str) -> int:
    def late(file: int | None, error: BaseException | None) -> None:
        if file is not None:
            os.close(file)

    return await lanes.spawn.submit(place.key, place.open_socket_file, path, late=late)


async def dial_tcp(lanes: Lanes, host: str, port: int) -> socket.socket:
    """Connect to the first address of `host` that accepts.  OSError: of the last one."""
    last: OSError = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for family, address in await look_up(lanes, host, port):
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            last = error
            continue
        try:
            code = sock.connect_ex(address)
            if code in _CONNECTING:
                await until_writable(sock.fileno())
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code and sock.getsockname() == sock.getpeername():
                # Nobody listens, and the port was the one that the kernel chose for this end.
                code = errno.ECONNREFUSED
            if not code:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
            last = OSError(code, os.strerror(code))
        except OSError as error:
            last = error
        except BaseException:
            sock.close()
            raise
        sock.close()
    raise last


async def look_up(lanes: Lanes, host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
    """The family and the address of each socket that `host` and `port` name.  OSError."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return [(family, (host, port))]
    found = await lanes.spawn.submit(None, _resolve, host, port)
    return [(family, address) for family, *_, address in found]  # type: ignore[misc]


def _resolve(host: str, port: int) -> list[tuple[int, int, int, str, object]]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # type: ignore[return-value]

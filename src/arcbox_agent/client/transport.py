"""From an address to a connected socket that any event loop takes.

uvloop can neither connect an AF_VSOCK socket nor use a connected one.  So the socket is
connected here and its descriptor wrapped as AF_UNIX, which both loops treat as a plain
stream.  The unix sockets of hypervisors expect `CONNECT PORT\\n` and answer `OK n\\n`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat

from arcbox_agent.address import HybridVsockAddress, UnixAddress, VsockAddress
from arcbox_agent.errors import ConnectError
from arcbox_agent.readiness import until_writable

Address = VsockAddress | UnixAddress | HybridVsockAddress

#: `OK 4294967295\n`, with room to spare.  A longer answer is not a hypervisor's.
MAX_HANDSHAKE_REPLY = 64

_HINTS = {
    errno.ENOENT: "there is no such socket: is the agent, or the VM, running?",
    errno.ECONNREFUSED: "nobody listens there: is the agent running?",
    errno.ECONNRESET: "nobody listens on that port of the guest: is the agent running?",
    errno.ENODEV: "no guest has that cid, or vsock is not set up: is the VM running, and vhost_vsock loaded?",
    errno.EHOSTUNREACH: "no guest has that cid: is the VM running?",
    errno.ENETUNREACH: "no guest has that cid: is the VM running?",
    errno.ETIMEDOUT: "the guest did not answer: is the VM running?",
    errno.EACCES: "permission denied: run as a user who may open the socket",
    errno.EPERM: "permission denied: run as a user who may open the socket",
    errno.ENOTSOCK: "that file is not a socket",
    errno.EAFNOSUPPORT: "this host has no AF_VSOCK: use the hypervisor's socket (firecracker:///path:PORT) or unix://",
}

#: Errors that do not go away while a guest boots.
_LASTING = {errno.EACCES, errno.EPERM, errno.ENOTSOCK, errno.EAFNOSUPPORT}


def is_lasting(error: ConnectError) -> bool:
    """Whether it is useless to try again later."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in _LASTING


async def open_socket(address: Address) -> socket.socket:
    """Open a non-blocking socket that is connected to the agent.  Raises ConnectError.

    There is no time-out in here; cancelling it closes the socket.
    """
    try:
        if isinstance(address, VsockAddress):
            return await _open_vsock(address)
        if isinstance(address, HybridVsockAddress):
            return await _open_hybrid(address)
        return await _open_unix(address.path)
    except OSError as error:
        reason = _HINTS.get(error.errno or 0) or error.strerror or str(error)
        raise ConnectError(str(address), reason) from error


async def _open_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await _connect(sock, path)
    except ConnectionRefusedError:
        sock.close()
        # Linux gives the same error for a file that is no socket.
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK)) from None
        raise
    except BaseException:
        sock.close()
        raise
    return sock


async def _open_vsock(address: VsockAddress) -> socket.socket:
    family = getattr(socket, "AF_VSOCK", None)
    if family is None:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await _connect(sock, (address.cid, address.port))
    except BaseException:
        sock.close()
        raise
    wrapped = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=sock.detach())
    wrapped.setblocking(False)
    return wrapped


async def _open_hybrid(address: HybridVsockAddress) -> socket.socket:
    sock = await _open_unix(address.path)
    try:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, b"CONNECT %d\n" % address.port)
        reply = b""
        # A byte at a time: what follows the line comes from the agent.
        while not reply.endswith(b"\n"):
            byte = await loop.sock_recv(sock, 1)
            if not byte:
                # Firecracker and Cloud Hypervisor do this when the guest refuses.
                raise ConnectError(
                    str(address),
                    f"the hypervisor closed the connection: does the agent listen on vsock port {address.port}?",
                )
            reply += byte
            if len(reply) > MAX_HANDSHAKE_REPLY:
                break
        if not _is_ok(reply):
            raise ConnectError(
                str(address), f"the socket answered {reply!r} and not `OK`: is it a hypervisor's vsock socket?"
            )
    except BaseException:
        sock.close()
        raise
    return sock


def _is_ok(reply: bytes) -> bool:
    word, _, number = reply.removesuffix(b"\n").partition(b" ")
    return reply.endswith(b"\n") and word == b"OK" and number.isdigit()


async def _connect(sock: socket.socket, target: str | tuple[int, int]) -> None:
    pause = 0.001
    while True:
        code = sock.connect_ex(target)
        if code in (0, errno.EISCONN):
            return
        if code == errno.EAGAIN and sock.family == socket.AF_UNIX:
            # The listener's backlog is full, and no event reports when it has room again:
            # the socket is writable at once, as if it were connected.
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.1)
            continue
        if code in (errno.EINPROGRESS, errno.EINTR, errno.EALREADY):
            await until_writable(sock.fileno())
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0:
                return
        raise OSError(code, os.strerror(code))

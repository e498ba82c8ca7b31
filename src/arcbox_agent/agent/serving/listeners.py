"""Accepts connections, and checks who connects.

The accept loop is the agent's own.  asyncio gives up a listener whose accept fails, or
spins on it.  Here a full descriptor table (EMFILE, ENFILE) or a kernel without memory
makes accepting slower for as long as it lasts, and is logged once a minute.

uvloop does not know AF_VSOCK and takes such a socket for a TCP one.  Its code for unix
sockets fits any stream, so an accepted vsock descriptor is wrapped as AF_UNIX before
uvloop sees it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from arcbox_agent.agent.config.access import MODES, is_restricted
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.observe.rate import OncePerMinute
from arcbox_agent.agent.serving.refused_peers import RefusedPeers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Protocol, Task, TimerHandle
    from collections.abc import Callable, Coroutine
    from typing import Any

    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.metrics import Metrics

    #: Takes an accepted socket, its peer and whose process that is, in words, and its listener.  It gives
    #: the coroutine that makes the socket's transport; None: it has closed the socket.
    Accept = Callable[[socket.socket, str, str, "Listener"], Coroutine[Any, Any, None] | None]

log = Logger("listener")

#: Connections taken at one wake-up, before those that exist get their turn.
ACCEPTS_A_TURN = 64

#: How long accepting rests after it failed: doubled each time, up to the second.
BACK_OFF = (0.05, 1.0)

#: VMADDR_CID_HOST: the one that owns the machine.
HOST_CID = 2

_UCRED = struct.Struct("3i")  # pid, uid, gid


class Listener:
    """One listening socket, its accept loop, and whom it lets in.

    `allowed`: what its mode grants.  `restricted`: its peers may only look, and so hold little.
    """

    __slots__ = (
        "_accept",
        "_allowed_cids",
        "_allowed_uids",
        "_back_off",
        "_error_log",
        "_inode",
        "_joining",
        "_loop",
        "_metrics",
        "_path",
        "_paused",
        "_refused",
        "_sock",
        "_timer",
        "address",
        "allowed",
        "connections",
        "mode",
        "restricted",
    )

    def __init__(self, sock: socket.socket, address: str, mode: str, path: str = "") -> None:
        self._sock = sock
        self._path = path  # to be removed at the end; "": not ours to remove
        self._inode = _inode(path) if path else (0, 0)
        self.address = address
        self.mode = mode
        self.allowed = MODES[mode]
        self.restricted = is_restricted(self.allowed)
        self.connections = 0
        self._back_off = 0.0
        self._timer: TimerHandle | None = None
        self._joining: set[Task[None]] = set()
        self._error_log = OncePerMinute()
        self._paused = False

    def start(
        self,
        loop: AbstractEventLoop,
        settings: Settings,
        metrics: Metrics,
        accept: Accept,
    ) -> None:
        """Begin to accept; `accept` takes each socket whose peer may talk."""
        self._loop = loop
        self._metrics = metrics
        self._accept = accept
        self._allowed_cids = frozenset({HOST_CID, *settings.allow_cid})
        self._allowed_uids = frozenset({0, os.geteuid(), *settings.allow_uid})
        self._refused = RefusedPeers(loop, self.address)
        self._sock.setblocking(False)
        loop.add_reader(self._sock.fileno(), self._readable)

    def _readable(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            if self._paused:
                return
            try:
                sock, address = self._sock.accept()
            except BlockingIOError:
                return
            except (ConnectionAbortedError, InterruptedError):
                # One peer went away while it waited; the others are still in the backlog.
                continue
            except OSError as error:
                self._rest(error)
                return
            self._back_off = 0.0
            try:
                peer, owner = self._peer(sock, address)
            except OSError as error:
                log.debug("peer gone before it was known", listener=self.address, error=error)
                sock.close()
                continue
            if not peer:
                sock.close()
                continue
            if sock.family == socket.AF_VSOCK:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=sock.detach())
            sock.setblocking(False)
            joining = self._accept(sock, peer, owner, self)
            if joining is not None:
                task = self._loop.create_task(joining)
                self._joining.add(task)
                task.add_done_callback(self._joining.discard)

    def _rest(self, error: OSError) -> None:
        """Accepting failed: leave the peers in the backlog for a while."""
        self._metrics.add("accept_errors")
        shortest, longest = BACK_OFF
        self._back_off = min(max(self._back_off * 2, shortest), longest)
        self._error_log.log(
            log.error,
            "cannot accept connections, trying again",
            "also_failed",
            listener=self.address,
            error=error,
            advice=_ADVICE.get(error.errno or 0, "see the error"),
        )
        self._loop.remove_reader(self._sock.fileno())
        self._timer = self._loop.call_later(self._back_off, self._rested)

    def _rested(self) -> None:
        self._timer = None
        if not self._paused:
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def pause(self) -> None:
        """Leave the peers in the backlog until `resume`."""
        if not self._paused and self._sock.fileno() >= 0:
            self._paused = True
            if self._timer is None:
                self._loop.remove_reader(self._sock.fileno())

    def resume(self) -> None:
        if self._paused and self._sock.fileno() >= 0:
            self._paused = False
            if self._timer is None:
                self._loop.add_reader(self._sock.fileno(), self._readable)

    def _peer(self, sock: socket.socket, address: object) -> tuple[str, str]:
        """Who connected, and whose process that is, of which there can be any number; empty where they may not talk."""
        if sock.family == socket.AF_VSOCK:
            number = address[0] if isinstance(address, tuple) else -1
            peer = owner = f"cid {number}"
            kind, setting = "cid", "allow_cid"
            allowed = number in self._allowed_cids
        else:
            pid, number, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            owner = f"uid {number}"
            peer = f"{owner} pid {pid}"
            kind, setting = "uid", "allow_uid"
            allowed = number in self._allowed_uids
        if allowed:
            return peer, owner
        self._metrics.add("connections_refused_peer")
        self._refused.tell(peer, kind, number, setting)
        return "", ""

    def abandon(self) -> None:
        """Close the socket of a listener that was never started."""
        self._sock.close()

    async def close(self) -> None:
        """Accept no more; returns when all that were accepted have their transport, and live on."""
        if self._sock.fileno() < 0:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif not self._paused:
            self._loop.remove_reader(self._sock.fileno())
        self._refused.close()
        if self._path:
            _remove_if_ours(self._path, self._inode)
        self._sock.close()
        for task in list(self._joining):
            await task


def lose(sock: socket.socket, protocol: Protocol, error: OSError) -> None:
    """The peer was gone before its socket had a transport: `protocol` gets connection_lost alone."""
    log.debug("connection lost while it was accepted", error=error)
    sock.close()
    protocol.connection_lost(error)


_ADVICE = {
    errno.EMFILE: "raise the agent's limit on open files (LimitNOFILE=)",
    errno.ENFILE: "raise the guest's limit on open files (fs.file-max)",
    errno.ENOBUFS: "the guest is short of memory",
    errno.ENOMEM: "the guest is short of memory",
}


def _inode(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _remove_if_ours(path: str, inode: tuple[int, int]) -> None:
    """Remove the socket's file, unless somebody has put another one in its place."""
    try:
        if _inode(path) == inode:
            os.unlink(path)
    except OSError:
        pass  # it is gone already

"""A listener in the guest, or among the files of a container, as a stream that tells each connection."""

from __future__ import annotations

import errno
import os
import socket
import stat

from arcbox_agent.agent.forwards.dial import LOCALHOST, look_up, name_of, system_error
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.serving.stream import Stream
from arcbox_agent.errors import AgentFailedError
from arcbox_agent.wire import Incoming, Listening

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import TimerHandle

    from arcbox_agent.agent.forwards.dial import Address
    from arcbox_agent.agent.forwards.forwards import Forwards
    from arcbox_agent.agent.forwards.place import Place
    from arcbox_agent.agent.processes.lanes import Lanes
    from arcbox_agent.agent.serving.call import Call

log = Logger("forwards")

#: Connections in the kernel's queue, and those of one listener that wait to be picked up.
BACKLOG = 128
MOST_WAITING = 64

#: Seconds until the next try where there is no descriptor for a connection.
REST = 0.1

#: Of the socket's file.
MODE = 0o600


class SocketFile:
    """The file of a unix listener: `name` in the open `directory`, as long as it is that inode."""

    __slots__ = ("_directory", "_inode", "_name")

    def __init__(self, directory: int, name: str, inode: tuple[int, int]) -> None:
        self._directory = directory
        self._name = name
        self._inode = inode

    def remove(self) -> None:
        """For a thread."""
        try:
            found = os.lstat(self._name, dir_fd=self._directory)
            if (found.st_dev, found.st_ino) == self._inode:
                os.unlink(self._name, dir_fd=self._directory)
        except OSError:
            pass  # somebody removed it
        finally:
            os.close(self._directory)


def listen_unix(place: Place, path: str, mode: int) -> tuple[socket.socket, SocketFile]:
    """A listener at `path`, and its file.  OSError.  For a thread."""
    directory, name = place.open_directory_of(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # By the descriptor, which no link can lead elsewhere.
        own = f"/proc/self/fd/{directory}/{name}"
        os.fchmod(sock.fileno(), mode & 0o600)  # until it has its mode
        try:
            sock.bind(own)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_left_behind(directory, name, own):
                raise
            os.unlink(name, dir_fd=directory)
            sock.bind(own)
        file = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            found = os.fstat(file)
            if stat.S_ISSOCK(found.st_mode):
                os.chmod(f"/proc/self/fd/{file}", mode)
        finally:
            os.close(file)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        os.close(directory)
        raise
    return sock, SocketFile(directory, name, (found.st_dev, found.st_ino))


def _is_left_behind(directory: int, name: str, own: str) -> bool:
    """Whether the file is a socket on which nobody listens any more."""
    if not stat.S_ISSOCK(os.lstat(name, dir_fd=directory).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(own) == errno.ECONNREFUSED


async def open_listener(
    lanes: Lanes, place: Place, address: Address, mode: int
) -> tuple[socket.socket, SocketFile | None]:
    """A listener that does not block.  AgentFailedError: why there is none."""
    try:
        if address.path:

            def late(opened: tuple[socket.socket, SocketFile] | None, error: BaseException | None) -> None:
                if opened is not None:
                    opened[0].close()
                    opened[1].remove()

            return await lanes.spawn.submit(place.key, listen_unix, place, address.path, mode or MODE, late=late)
        return await _listen_tcp(lanes, address), None
    except OSError as error:
        raise AgentFailedError(f"listen on {address} failed: {system_error(error)}") from error


async def _listen_tcp(lanes: Lanes, address: Address) -> socket.socket:
    family, where = (await look_up(lanes, address.host or LOCALHOST, address.port))[0]
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


class Listener(Stream):
    """Accepts on `sock` until the peer leaves; `close` closes it, and those that nobody has picked up."""

    __slots__ = ("_forwards", "_kept", "_new", "_sock", "_timer_of_rest", "_watching")

    def __init__(self, call: Call, sock: socket.socket, forwards: Forwards, heartbeat_ms: int) -> None:
        self._sock = sock
        self._forwards = forwards
        self._kept: set[str] = set()  # those that wait to be picked up
        self._new: list[Incoming] = []  # those of them that were not told yet
        self._watching = False
        self._timer_of_rest: TimerHandle | None = None
        super().__init__(call, heartbeat_ms)

    async def run(self, address: str) -> None:
        """Tell each connection, until the peer leaves.  Raises what Stream.wait raises."""
        await self.send(Listening(address=address))
        self._watch()
        while not self.detached:
            await self.wait()
            while self._new:
                await self.send(self._new.pop(0))

    def _watch(self) -> None:
        self._timer_of_rest = None
        if not self._watching:
            self._watching = True
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self._sock.fileno())

    def _readable(self) -> None:
        while len(self._kept) < MOST_WAITING:
            try:
                sock, remote = self._sock.accept()
            except BlockingIOError:
                return
            except (ConnectionAbortedError, InterruptedError):
                continue
            except OSError as error:
                # No descriptor is left: the others wait in the kernel's queue.
                log.warning("a forward's listener cannot accept", reason=error)
                self._unwatch()
                self._timer_of_rest = self._loop.call_later(REST, self._watch)
                return
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            id = self._forwards.keep(sock, self._left)
            self._kept.add(id)
            self._new.append(Incoming(id=id, remote=name_of(remote) if sock.family != socket.AF_UNIX else ""))
            self.wake()
        self._unwatch()

    def _left(self, id: str) -> None:
        """That connection was picked up, or dropped: there is room for another."""
        self._kept.discard(id)
        if not self._watching and self._timer_of_rest is None and self._sock.fileno() >= 0:
            self._watch()

    def close(self) -> None:
        super().close()
        self._unwatch()
        if self._timer_of_rest is not None:
            self._timer_of_rest.cancel()
        self._sock.close()
        for id in list(self._kept):
            self._forwards.drop(id)

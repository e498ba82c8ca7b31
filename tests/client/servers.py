"""Servers that do what the real agent never does.

A server is a function that is given one accepted connection; it runs in a thread,
on a unix socket.  Frames are put together here from docs/protocol.md alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from tools.pace import patience

PATIENCE = patience(30.0)

#: What a server does with one accepted connection.
Serve = Callable[[socket.socket], object]

PING, PONG = 0x0001, 0x1001
EMPTY, ERROR = 0x0000, 0xFFFF


class Request(NamedTuple):
    type: int
    trace: bytes
    payload: bytes


#: The frames that answer a request.
Replies = Callable[[Request], Iterable[bytes]]


def frame(type: int, payload: bytes = b"", trace: bytes | None = b"") -> bytes:
    """A V2 frame; with `trace=None` a V1 frame."""
    if trace is None:
        return struct.pack(">II", 4 + len(payload), type) + payload
    return struct.pack(">IIH", 6 + len(trace) + len(payload), type, len(trace)) + trace + payload


def error(code: int, message: bytes, trace: bytes | None = b"") -> bytes:
    return frame(ERROR, struct.pack(">iI", code, len(message)) + message, trace)


def receive(connection: socket.socket, count: int) -> bytes:
    """Just `count` bytes; EOFError where the client closes before."""
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def read_request(connection: socket.socket) -> Request:
    """The next V2 request."""
    (length,) = struct.unpack(">I", receive(connection, 4))
    body = receive(connection, length)
    type, trace_length = struct.unpack_from(">IH", body)
    return Request(type, body[6 : 6 + trace_length], body[6 + trace_length :])


def text(field: int, value: bytes) -> bytes:
    """A string or bytes field of under 128 bytes, in protobuf."""
    assert len(value) < 128
    return bytes([field << 3 | 2, len(value)]) + value


#: PingRequest.detail, and the PingResponse.features that it asks for: without them the
#: client takes an agent for an old one.
DETAIL = b"\xa0\x06\x01"
FEATURES = b"\xa2\x06\x04ping"


def pong(request: Request) -> bytes:
    assert request.type == PING, request
    return frame(PONG, text(1, b"pong") + (FEATURES if DETAIL in request.payload else b""), request.trace)


def answer_pings(connection: socket.socket) -> None:
    """An agent that knows one call, until the client closes."""
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            connection.sendall(pong(read_request(connection)))


def closed_by_client(connection: socket.socket) -> bool:
    """Waits until the client has closed the connection; False where it sends more."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


class Server:
    """Runs `serve(connection)` for each connection; the n-th may have a function of its own."""

    def __init__(self, path: str, *serve: Serve) -> None:
        self.path = path
        self.address = f"unix://{path}"
        self.accepted = 0
        self.errors: list[BaseException] = []
        self._serve = serve
        self._threads: list[threading.Thread] = []
        self._connections: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(128)
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if not self._serve:
                connection.close()
                return
            connection.settimeout(PATIENCE)
            serve = self._serve[min(self.accepted, len(self._serve) - 1)]
            self.accepted += 1
            self._connections.append(connection)
            thread = threading.Thread(target=self._run, args=(serve, connection))
            self._threads.append(thread)
            thread.start()

    def _run(self, serve: Serve, connection: socket.socket) -> None:
        try:
            with connection:
                serve(connection)
        except BaseException as error:
            self.errors.append(error)

    def close(self) -> None:
        # close() alone leaves a thread in accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        os.unlink(self.path)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the client keeps a connection open"
        if self.errors:
            raise self.errors[0]


@contextlib.contextmanager
def server(*serve: Serve) -> Iterator[Server]:
    """A server; at its end every connection must have been closed, and nothing have failed."""
    directory = tempfile.mkdtemp(prefix="arcbox-")
    running = Server(os.path.join(directory, "s"), *serve)
    try:
        yield running
        running.close()
        running.join()
    finally:
        with contextlib.suppress(OSError):
            running.close()
        shutil.rmtree(directory)

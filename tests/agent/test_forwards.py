"""Forwards: ConnectRequest, ListenRequest and AcceptRequest, by a peer that speaks bytes, with real sockets."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent.wire import (
    Connected,
    ConnectRequest,
    Empty,
    Error,
    ListenRequest,
    Message,
    PingRequest,
    PingResponse,
    StreamAccepted,
    StreamAlive,
    StreamEnd,
    StreamInput,
    StreamOutput,
)
from tests.agent.peer import Peer
from tests.conftest import RunningAgent

WINDOW = 256 << 10


class Server:
    """A listener in the guest, TCP or at a path."""

    def __init__(self, path: str = "") -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self.listener.bind(path or ("127.0.0.1", 0))
        self.listener.listen(1024)
        self.listener.settimeout(30)

    def request(self, **values: Any) -> ConnectRequest:
        if self.path:
            return ConnectRequest(path=self.path, **values)
        return ConnectRequest(port=self.listener.getsockname()[1], **values)

    def accept(self) -> socket.socket:
        sock, _ = self.listener.accept()
        sock.settimeout(30)
        return sock

    def close(self) -> None:
        self.listener.close()


@pytest.fixture(params=["tcp", "unix"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    server = Server(str(tmp_path / "server") if request.param == "unix" else "")
    yield server
    server.close()


@pytest.fixture
def tcp() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def opened(peer: Peer, server: Server, **values: Any) -> socket.socket:
    """A forward of `peer` to `server`; the server's end of it."""
    peer.send(server.request(**values))
    reply = peer.reply()
    assert isinstance(reply, Connected), reply
    assert peer.reply() == StreamAccepted(until=WINDOW)
    return server.accept()


def until(peer: Peer, last: type[Message]) -> list[Message]:
    """The messages up to the first of type `last`; Alive is none."""
    found: list[Message] = []
    while not found or type(found[-1]) is not last:
        reply = peer.reply()
        if type(reply) is not StreamAlive:
            found.append(reply)
    return found


def accepted(peer: Peer, offset: int) -> StreamAccepted:
    """The StreamAccepted that comes to `offset`."""
    while True:
        reply = peer.reply()
        if isinstance(reply, StreamAccepted) and reply.offset >= offset:
            return reply


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def usable(peer: Peer) -> None:
    """The call is over, and the connection answers the next one."""
    assert isinstance(peer.ask(PingRequest()), PingResponse)


def test_bytes_go_both_ways_and_each_direction_has_its_end(agent: RunningAgent, server: Server) -> None:
    with Peer(agent.socket_path) as peer, opened(peer, server) as end:
        peer.send(StreamInput(data=b"question"))
        assert end.recv(100) == b"question"
        assert peer.reply() == StreamAccepted(offset=8, until=WINDOW + 8)
        peer.send(StreamInput(offset=8, close=True))
        assert end.recv(100) == b""
        assert peer.reply() == StreamAccepted(offset=8, until=WINDOW + 8, closed=True)
        end.sendall(b"answer")
        assert peer.reply() == StreamOutput(data=b"answer")
        end.sendall(b"s")
        assert peer.reply() == StreamOutput(cursor=6, data=b"s")
        end.shutdown(socket.SHUT_WR)
        assert peer.reply() == StreamEnd(cursor=7)
        assert peer.reply() == Empty()
        usable(peer)


def test_the_output_may_end_first(agent: RunningAgent, server: Server) -> None:
    with Peer(agent.socket_path) as peer, opened(peer, server) as end:
        end.sendall(b"all")
        end.shutdown(socket.SHUT_WR)
        assert until(peer, StreamEnd) == [StreamOutput(data=b"all"), StreamEnd(cursor=3)]
        peer.send(StreamInput(data=b"late"))
        assert end.recv(100) == b"late"
        assert accepted(peer, 4) == StreamAccepted(offset=4, until=WINDOW + 4)
        peer.send(StreamInput(offset=4, close=True))
        assert end.recv(100) == b""
        assert until(peer, Empty)[-2:] == [StreamAccepted(offset=4, until=WINDOW + 4, closed=True), Empty()]
        usable(peer)


def test_where_nobody_listens_the_refusal_has_the_errno(agent: RunningAgent, tmp_path: Path) -> None:
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    (tmp_path / "file").write_text("no socket")
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "stale"))
    stale.close()
    with Peer(agent.socket_path) as peer:
        for request, text in (
            (ConnectRequest(port=port), f"127.0.0.1:{port} failed: ECONNREFUSED: Connection refused"),
            (ConnectRequest(path=f"{tmp_path}/stale"), f"{tmp_path}/stale failed: ECONNREFUSED: Connection refused"),
            (ConnectRequest(path=f"{tmp_path}/none"), f"{tmp_path}/none failed: ENOENT: No such file or directory"),
            (
                ConnectRequest(path=f"{tmp_path}/file"),
                f"{tmp_path}/file failed: ENOTSOCK: Socket operation on non-socket",
            ),
        ):
            assert peer.ask(request) == Error(code=500, message=f"connect to {text}")
        reply = peer.ask(ConnectRequest(host="no-such-host.invalid", port=1))
        assert isinstance(reply, Error)
        assert reply.message.startswith("connect to no-such-host.invalid:1 failed: EAI_")
        usable(peer)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (ConnectRequest(), "neither port nor path is given"),
        (ConnectRequest(port=70000), "port 70000 is above 65535"),
        (ConnectRequest(port=1, path="/x"), "give host and port, or path"),
        (ConnectRequest(path="x"), "the path 'x' does not begin with /"),
        (ConnectRequest(host="a b", port=1), "the host is neither a name nor an address"),
        (ConnectRequest(path="/x", heartbeat_ms=1), "heartbeat_ms is 1: give 20 or more, or 0"),
        (ListenRequest(mode=0o4777), "mode 4777 is more than permissions: give 0777 or less"),
    ],
)
def test_a_request_that_cannot_be_is_refused(agent: RunningAgent, request_: Message, text: str) -> None:
    with Peer(agent.socket_path) as peer:
        assert peer.ask(request_) == Error(code=400, message=text)
        usable(peer)

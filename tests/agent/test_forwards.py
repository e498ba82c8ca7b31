"""Forwards: ConnectRequest, ListenRequest and AcceptRequest, by a peer that speaks bytes, with real sockets."""

from __future__ import annotations

import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent.wire import (
    AcceptRequest,
    Connected,
    ConnectRequest,
    CreateContainerRequest,
    CreateContainerResponse,
    Empty,
    Error,
    Incoming,
    Listening,
    ListenRequest,
    Message,
    PingRequest,
    PingResponse,
    RemoveContainerRequest,
    StartContainerRequest,
    StreamAccepted,
    StreamAlive,
    StreamControl,
    StreamCredit,
    StreamEnd,
    StreamHeartbeat,
    StreamInput,
    StreamOutput,
)
from tests.agent.peer import Peer, eventually, info
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


def test_bytes_that_came_before_a_refused_connection_are_dropped(agent: RunningAgent, tmp_path: Path) -> None:
    with Peer(agent.socket_path) as peer:
        peer.send(ConnectRequest(path=f"{tmp_path}/none"), StreamHeartbeat(), StreamCredit(until=WINDOW))
        assert isinstance(peer.reply(), Error)
        usable(peer)


def test_a_reset_is_told_with_its_name(agent: RunningAgent, tcp: Server) -> None:
    with Peer(agent.socket_path) as peer:
        end = opened(peer, tcp)
        reset(end)
        assert peer.reply() == Error(code=500, message="ECONNRESET: Connection reset by peer")
        usable(peer)


def test_who_reads_no_more_is_told_and_its_last_words_still_come(agent: RunningAgent, tmp_path: Path) -> None:
    server = Server(str(tmp_path / "server"))
    with Peer(agent.socket_path) as peer, opened(peer, server) as end:
        end.sendall(b"last words")
        assert peer.reply() == StreamOutput(data=b"last words")
        end.shutdown(socket.SHUT_RD)
        peer.send(StreamInput(data=b"too late"))
        assert peer.reply() == StreamAccepted(until=WINDOW, closed=True)
        # What comes further is dropped without a word.
        peer.send(StreamInput(offset=8, data=b"later", close=True))
        end.sendall(b".")
        assert peer.reply() == StreamOutput(cursor=10, data=b".")
        end.shutdown(socket.SHUT_WR)
        assert [peer.reply(), peer.reply()] == [StreamEnd(cursor=11), Empty()]
        usable(peer)
    server.close()


def test_a_client_that_is_gone_is_a_reset_and_one_that_leaves_in_order_is_none(
    agent: RunningAgent, tcp: Server
) -> None:
    peer = Peer(agent.socket_path)
    with opened(peer, tcp) as end:
        peer.send(StreamInput(data=b"half"))
        assert end.recv(10) == b"half"
        peer.close()
        with pytest.raises(ConnectionResetError):
            end.recv(10)
    with Peer(agent.socket_path) as peer, opened(peer, tcp) as end:
        peer.send(StreamInput(data=b"whole", close=True))
        while not accepted(peer, 5).closed:
            pass
        peer.send(StreamControl(detach=True))
        assert until(peer, Empty)
        assert end.recv(10) == b"whole"
        assert end.recv(10) == b""
        usable(peer)


def test_a_client_that_ends_its_side_of_the_connection_leaves_the_stream(agent: RunningAgent, tcp: Server) -> None:
    with Peer(agent.socket_path) as peer, opened(peer, tcp) as end:
        peer.socket.shutdown(socket.SHUT_WR)
        assert until(peer, Empty) == [Empty()]
        assert peer.is_closed_by_the_agent()
        with pytest.raises(ConnectionResetError):
            end.recv(10)


@pytest.mark.parametrize(
    ("messages", "code", "text"),
    [
        ([StreamInput(offset=1, data=b"a")], 409, "the input from 0 to 1 is missing"),
        ([StreamInput(data=bytes(WINDOW + 1))], 400, f"input up to {WINDOW + 1}, where it was allowed up to {WINDOW}"),
        (
            [StreamInput(data=b"a", close=True), StreamInput(offset=1, data=b"b")],
            409,
            "input behind its end, which is at 1",
        ),
        ([StreamInput(data=b"ab"), StreamInput(close=True)], 409, "the input cannot end at 0: 2 bytes of it have come"),
        ([StreamInput(offset=WINDOW, data=b"x" * 10)], 409, f"the input from 0 to {WINDOW} is missing"),
        ([StreamCredit(stream="x", until=1)], 400, "credit for an output that this stream does not have: 'x'"),
        ([StreamControl(signal="TERM")], 400, "this stream has neither a terminal nor a command"),
    ],
)
def test_what_breaks_the_rules_ends_the_stream(
    agent: RunningAgent, tcp: Server, messages: list[Message], code: int, text: str
) -> None:
    with Peer(agent.socket_path) as peer, opened(peer, tcp) as end:
        peer.send(*messages)
        last = until(peer, Error)[-1]
        assert last == Error(code=code, message=text)
        with pytest.raises(ConnectionResetError):
            while end.recv(100000):
                pass
        usable(peer)


def test_a_repeated_part_of_the_input_is_passed_over(agent: RunningAgent, server: Server) -> None:
    with Peer(agent.socket_path) as peer, opened(peer, server) as end:
        for offset, data in ((0, b"abc"), (0, b"abcd"), (2, b"cd"), (3, b"defg"), (7, b"")):
            peer.send(StreamInput(offset=offset, data=data))
        peer.send(StreamInput(offset=7, close=True), StreamInput(offset=7, close=True))
        received = b""
        while data := end.recv(100):
            received += data
        assert received == b"abcdefg"
        end.close()
        assert until(peer, Empty)[-1] == Empty()
        usable(peer)


def test_input_that_nobody_reads_stays_within_the_window(agent: RunningAgent, server: Server) -> None:
    """A server that reads nothing: the client's credit ends, and the agent still serves credit and heartbeats."""
    with Peer(agent.socket_path) as peer, opened(peer, server, heartbeat_ms=1000) as end:
        sent, allowed = 0, WINDOW
        peer.socket.settimeout(1.5)
        with pytest.raises(TimeoutError):
            while True:
                while sent < allowed:
                    size = min(65536, allowed - sent)
                    peer.send(StreamInput(offset=sent, data=pattern(sent, size)))
                    sent += size
                reply = peer.reply()
                peer.send(StreamHeartbeat())
                if isinstance(reply, StreamAccepted):
                    allowed = reply.until
                assert sent < 64 << 20, "the agent takes without end"
                if isinstance(reply, StreamAlive) and sent == allowed:
                    raise TimeoutError
        assert info(agent).pid
        # The other direction goes on meanwhile.
        end.sendall(b"out")
        assert StreamOutput(data=b"out") in until(peer, StreamOutput)
        received = 0
        while received < sent:
            peer.send(StreamHeartbeat())
            data = end.recv(1 << 20)
            assert data == pattern(received, len(data))
            received += len(data)
        peer.socket.settimeout(60)
        assert accepted(peer, sent).until == sent + WINDOW


def pattern(offset: int, size: int) -> bytes:
    """Bytes that tell where in the stream they are."""
    first = offset // 8
    words = b"".join(i.to_bytes(8, "big") for i in range(first, first + size // 8 + 2))
    return words[offset % 8 : offset % 8 + size]


def test_output_goes_as_far_as_the_credit_and_no_further(agent: RunningAgent, server: Server) -> None:
    with Peer(agent.socket_path) as peer:
        with opened(peer, server, window=100_000) as end:
            end.sendall(pattern(0, 150_000))
            got = bytearray()
            while len(got) < 100_000:
                for message in until(peer, StreamOutput):
                    assert isinstance(message, StreamOutput)
                    assert message.cursor == len(got)
                    got += message.data
            peer.socket.settimeout(0.3)
            with pytest.raises(TimeoutError):
                peer.reply()
            peer.socket.settimeout(60)
            peer.send(StreamCredit(taken=10, until=50))  # less than before: ignored
            peer.send(StreamCredit(taken=100_000, until=100_001))
            assert until(peer, StreamOutput) == [StreamOutput(cursor=100_000, data=pattern(100_000, 1))]
            end.close()
            # The end comes behind the last byte, so not before there is credit for it.
            peer.send(StreamCredit(taken=100_001, until=1 << 40))
            messages = until(peer, StreamEnd)
            data = b"".join(each.data for each in messages if isinstance(each, StreamOutput))
            assert data == pattern(100_001, 49_999)
            assert messages[-1] == StreamEnd(cursor=150_000)


def test_a_client_that_does_not_read_costs_little_memory(agent: RunningAgent, tcp: Server) -> None:
    def resident() -> int:
        return int(Path(f"/proc/{agent.process.pid}/statm").read_text().split()[1]) * 4096

    with Peer(agent.socket_path) as first:
        usable(first)
        before = resident()
    peers, ends = [], []
    for _ in range(20):
        peers.append(Peer(agent.socket_path))
        ends.append(opened(peers[-1], tcp, window=1 << 40))
    piece = b"x" * (1 << 20)
    for end in ends:
        end.setblocking(False)
        for _ in range(64):
            try:
                end.send(piece)
            except BlockingIOError:
                time.sleep(0.001)
    with Peer(agent.socket_path) as last:
        usable(last)
    assert resident() - before < 20 * (256 << 10)
    for peer, end in zip(peers, ends, strict=True):
        peer.close()
        end.close()


def test_a_silent_client_is_given_up_and_one_that_gives_signs_of_life_is_not(agent: RunningAgent, tcp: Server) -> None:
    with Peer(agent.socket_path) as peer, opened(peer, tcp, heartbeat_ms=100) as end:
        began = time.monotonic()
        alive = 0
        while time.monotonic() - began < 1:
            peer.send(StreamHeartbeat())
            assert peer.reply() == StreamAlive()
            alive += 1
        assert alive >= 10
        silent = time.monotonic()
        last = until(peer, Error)[-1]
        assert 0.2 < time.monotonic() - silent < 5
        assert isinstance(last, Error)
        assert (last.code, last.message.startswith("nothing was heard of the client")) == (408, True)
        with pytest.raises(ConnectionResetError):
            end.recv(1)
        usable(peer)


def test_a_silent_client_that_does_not_read_either_loses_its_connection(agent: RunningAgent, tcp: Server) -> None:
    with Peer(agent.socket_path) as peer, opened(peer, tcp, heartbeat_ms=100, window=1 << 40) as end:
        with pytest.raises(ConnectionError):
            while True:
                end.send(b"x" * (1 << 20))
        assert peer.is_closed_by_the_agent()


def test_sixty_four_mebibytes_go_both_ways_at_once(agent: RunningAgent, server: Server) -> None:
    size = 64 << 20
    block = pattern(0, 1 << 20)

    def echo(end: socket.socket) -> None:
        while data := end.recv(1 << 18):
            end.sendall(data)
        end.shutdown(socket.SHUT_WR)

    with Peer(agent.socket_path) as peer, opened(peer, server) as end:
        thread = threading.Thread(target=echo, args=(end,))
        thread.start()
        sent, allowed, got, granted = 0, WINDOW, 0, WINDOW
        ended = False
        while not ended:
            while sent < min(size, allowed):
                n = min(65536, size - sent, allowed - sent, (1 << 20) - sent % (1 << 20))
                at = sent % (1 << 20)
                peer.send(StreamInput(offset=sent, data=block[at : at + n], close=sent + n == size))
                sent += n
            reply = peer.reply()
            if isinstance(reply, StreamOutput):
                at, n = got % (1 << 20), len(reply.data)
                assert reply.cursor == got
                assert reply.data == (block + block)[at : at + n]
                got += n
                if granted - got <= WINDOW // 2:
                    granted = got + WINDOW
                    peer.send(StreamCredit(taken=got, until=granted))
            elif isinstance(reply, StreamAccepted):
                allowed = reply.until
            else:
                assert isinstance(reply, (StreamEnd, Empty, StreamAlive)), reply
                ended = isinstance(reply, Empty)
        assert got == size
        thread.join()


def test_a_listener_tells_each_connection_and_each_is_picked_up_once(agent: RunningAgent, tmp_path: Path) -> None:
    with Peer(agent.socket_path) as peer:
        listening = peer.ask(ListenRequest())
        assert isinstance(listening, Listening)
        host, _, port = listening.address.rpartition(":")
        with socket.create_connection((host, int(port))) as client:
            client.settimeout(30)
            incoming = peer.reply()
            assert isinstance(incoming, Incoming)
            assert incoming.remote == "{}:{}".format(*client.getsockname())
            with Peer(agent.socket_path) as stream:
                connected = stream.ask(AcceptRequest(id=incoming.id))
                assert connected == Connected(local=listening.address, remote=incoming.remote)
                assert stream.reply() == StreamAccepted(until=WINDOW)
                client.sendall(b"from the guest")
                assert stream.reply() == StreamOutput(data=b"from the guest")
                stream.send(StreamInput(data=b"from the host", close=True))
                assert client.recv(100) == b"from the host"
                assert client.recv(100) == b""
                client.close()
                assert until(stream, Empty)[-1] == Empty()
                again = stream.ask(AcceptRequest(id=incoming.id))
                assert isinstance(again, Error)
                assert (again.code, again.message.startswith("connection not found")) == (404, True)
        peer.send(StreamControl(detach=True))
        assert until(peer, Empty) == [Empty()]
        usable(peer)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)))


def test_what_nobody_picked_up_is_closed_with_its_listener(agent: RunningAgent, tmp_path: Path) -> None:
    path = tmp_path / "listener"
    peer = Peer(agent.socket_path)
    assert peer.ask(ListenRequest(path=str(path), mode=0o640)) == Listening(address=str(path))
    assert path.stat().st_mode & 0o7777 == 0o640
    with Peer(agent.socket_path) as other:
        taken = other.ask(ListenRequest(path=str(path)))
        assert taken == Error(code=500, message=f"listen on {path} failed: EADDRINUSE: Address already in use")
    clients = []
    for _ in range(100):  # more than wait at a time
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(30)
        client.connect(str(path))
        clients.append(client)
    told = [peer.reply() for _ in range(64)]
    assert len({each.id for each in told if isinstance(each, Incoming)}) == 64
    peer.socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        peer.reply()
    peer.close()
    for client in clients:
        try:
            assert client.recv(1) == b""
        except ConnectionResetError:
            pass  # it was still in the kernel's queue
        client.close()
    eventually(lambda: not path.exists(), "the listener's file is removed")


def test_a_file_that_a_killed_agent_left_is_replaced_and_any_other_is_not(agent: RunningAgent, tmp_path: Path) -> None:
    path = tmp_path / "listener"
    with Peer(agent.socket_path) as peer:
        assert isinstance(peer.ask(ListenRequest(path=str(path))), Listening)
        agent.kill()
    assert path.exists()
    agent.restart()
    with Peer(agent.socket_path) as peer:
        assert isinstance(peer.ask(ListenRequest(path=str(path))), Listening)
        (tmp_path / "file").write_text("mine")
        with Peer(agent.socket_path) as other:
            assert isinstance(other.ask(ListenRequest(path=f"{tmp_path}/file")), Error)
        assert (tmp_path / "file").read_text() == "mine"


def test_max_forwards_bounds_streams_and_listeners_together(start_agent: Any, tcp: Server) -> None:
    agent = start_agent(max_forwards="2")
    with Peer(agent.socket_path) as first, Peer(agent.socket_path) as second, Peer(agent.socket_path) as third:
        end = opened(first, tcp)
        assert isinstance(second.ask(ListenRequest()), Listening)
        refused = third.ask(tcp.request())
        assert isinstance(refused, Error)
        assert (refused.code, "max_forwards = 2" in refused.message) == (429, True)
        end.close()
        first.send(StreamInput(close=True))
        assert until(first, Empty)
        opened(third, tcp).close()
    assert info(agent).counters["bound_forwards"] == 1


def test_a_listener_that_may_not_run_commands_may_not_forward(start_agent: Any, tcp: Server, tmp_path: Path) -> None:
    start_agent(listen=[f"unix:{tmp_path}/other?mode=no-exec"])
    with Peer(tmp_path / "other") as peer:
        for request in (tcp.request(), ListenRequest(), AcceptRequest(id="x")):
            reply = peer.ask(request)
            assert isinstance(reply, Error)
            assert reply.code == 403


def test_forwards_end_when_the_agent_stops(agent: RunningAgent, tcp: Server) -> None:
    with Peer(agent.socket_path) as peer, Peer(agent.socket_path) as other, opened(peer, tcp) as end:
        assert isinstance(other.ask(ListenRequest()), Listening)
        began = time.monotonic()
        agent.stop()
        assert time.monotonic() - began < 8
        with pytest.raises(ConnectionResetError):
            end.recv(1)


def test_a_path_of_a_container_is_looked_up_in_its_root(agent: RunningAgent, tmp_path: Path) -> None:
    """Links of a container lead nowhere out of it, and nothing of the guest is reached by its paths."""
    root = tmp_path / "root"
    for name in ("bin", "run", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    outside = Server(str(tmp_path / "outside"))
    inside = Server(str(root / "run" / "inside"))
    (root / "run" / "absolute").symlink_to("/run/inside")
    (root / "run" / "out").symlink_to(outside.path)
    (root / "run" / "up").symlink_to("../../../../../../.." + outside.path)
    with Peer(agent.socket_path) as peer:
        created = peer.ask(
            CreateContainerRequest(cmd=["/bin/busybox", "sleep", "1000"], rootfs=str(root), name="boxed")
        )
        assert isinstance(created, CreateContainerResponse), created
        refused = peer.ask(ConnectRequest(path="/run/inside", container_id="boxed"))
        assert isinstance(refused, Error)
        assert "container is not running" in refused.message
        assert peer.ask(StartContainerRequest(id=created.id)) == Empty()
        for path in ("/run/inside", "/run/absolute", "/run/../../../run/inside"):
            with Peer(agent.socket_path) as stream:
                assert isinstance(stream.ask(ConnectRequest(path=path, container_id="boxed")), Connected)
                inside.accept().close()
        for path in ("/run/out", "/run/up", outside.path, "/proc/self/root" + outside.path):
            reply = peer.ask(ConnectRequest(path=path, container_id="boxed"))
            assert isinstance(reply, Error)
            assert "ENOENT" in reply.message, path
        listening = peer.ask(ListenRequest(path="/tmp/made", container_id="boxed"))
        assert isinstance(listening, Listening)
        assert (root / "tmp" / "made").is_socket()
        peer.send(StreamControl(detach=True))
        assert until(peer, Empty) == [Empty()]
        assert not (root / "tmp" / "made").exists()
        for path in ("/run/out", "/none/x"):
            reply = peer.ask(ListenRequest(path=path, container_id="boxed"))
            assert isinstance(reply, Error), path
        assert peer.ask(RemoveContainerRequest(id=created.id, force=True)) == Empty()
    inside.close()
    outside.close()

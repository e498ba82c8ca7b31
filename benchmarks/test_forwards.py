"""Forwards: bytes, connections and memory, beside socat on the same way.

    ours   TCP -> arcboxctl forward -> the agent's unix socket -> agent -> TCP
    socat  TCP -> socat             -> a unix socket           -> socat -> TCP

The bytes are compared as they arrive.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from benchmarks.conftest import Compare
from tools.stress.agent import AgentProcess, memory

MIB = 1 << 20
#: What is sent, again and again: no two positions of it look alike.
BLOCK = b"".join(i.to_bytes(8, "big") for i in range(MIB // 8))


class Server:
    """Behind the forward: sends as many blocks as the first byte asks for, or sends the byte back."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.port: int = self.listener.getsockname()[1]
        self.accepted = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._answer, args=(sock,), daemon=True).start()

    def _answer(self, sock: socket.socket) -> None:
        # A connection that is given up is no fault of this server.
        with sock, suppress(ConnectionError):
            asked = sock.recv(1)
            if asked in (b"", b"\0"):
                sock.sendall(asked)
            elif asked == b"\xff":
                self._take(sock)
            else:
                for _ in range(asked[0]):
                    sock.sendall(BLOCK)

    def _take(self, sock: socket.socket) -> None:
        """Takes blocks to the end of the stream, and answers how many were right."""
        room = bytearray(MIB)
        right = 0
        while filled(sock, room):
            right += room == BLOCK
        sock.sendall(right.to_bytes(4, "big"))


def filled(sock: socket.socket, room: bytearray) -> bool:
    """Whether all of `room` was read."""
    view = memoryview(room)
    at = 0
    while at < len(room):
        n = sock.recv_into(view[at:])
        if not n:
            return False
        at += n
    return True


def download(port: int, blocks: int) -> None:
    room = bytearray(MIB)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(bytes([blocks]))
        for _ in range(blocks):
            assert filled(sock, room)
            assert room == BLOCK
        assert sock.recv(1) == b""


def upload(port: int, blocks: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"\xff")
        for _ in range(blocks):
            sock.sendall(BLOCK)
        sock.shutdown(socket.SHUT_WR)
        answer = bytearray(4)
        assert filled(sock, answer)
        assert int.from_bytes(answer, "big") == blocks


def connect_once(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"\0")
        assert sock.recv(1) == b"\0"
        assert sock.recv(1) == b""


class Ways:
    """The ports of both ways to one server."""

    def __init__(self, ours: int, socat: int) -> None:
        self.ours = ours
        self.socat = socat


@contextmanager
def process(*command: str, **options: int) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, **options) as running:  # type: ignore[call-overload]
        try:
            yield running
        finally:
            running.terminate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def until_it_answers(look: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            look()
            return
        except (OSError, AssertionError):
            assert time.monotonic() < deadline
            time.sleep(0.02)


@contextmanager
def forwarded(directory: Path, server: Server) -> Iterator[tuple[AgentProcess, int]]:
    """An agent, and the port of this host that leads through it."""
    agent = AgentProcess(directory)
    agent.start()
    try:
        agent.wait_until_it_answers()
        with process(
            sys.executable, "-m", "arcbox_agent.cli", "-H", agent.address,
            "forward", "-L", f"0:127.0.0.1:{server.port}",
            stdout=subprocess.PIPE,
        ) as ctl:  # fmt: skip
            assert ctl.stdout is not None
            with ctl.stdout:
                yield agent, int(ctl.stdout.readline().split()[1].rpartition(b":")[2])
    finally:
        agent.stop()


@pytest.fixture(scope="module")
def ways() -> Iterator[Ways]:
    server = Server()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="arcbox-", dir="/var/tmp")))
        ours = stack.enter_context(forwarded(directory, server))[1]
        port, middle = free_port(), directory / "middle"
        stack.enter_context(process("socat", f"UNIX-LISTEN:{middle},fork,backlog=2048", f"TCP:127.0.0.1:{server.port}"))
        stack.enter_context(
            process("socat", f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,backlog=2048", f"UNIX-CONNECT:{middle}")
        )
        until_it_answers(lambda: connect_once(port))
        yield Ways(ours, port)
    server.listener.close()


@pytest.mark.parametrize(("work", "name"), [(download, "out of the guest"), (upload, "into the guest")])
def test_bytes(compare: Compare, ways: Ways, work: Callable[[int, int], None], name: str) -> None:
    blocks = 2 if compare.quick else 128
    compare(
        f"forward: bytes {name}",
        lambda: work(ways.ours, blocks),
        lambda: work(ways.socat, blocks),
        0.8,
        rival_name="2 x socat",
        unit="B/s",
        per=blocks * MIB,
        rounds=7,
    )


def test_connections_one_after_the_other(compare: Compare, ways: Ways) -> None:
    count = 2 if compare.quick else 100

    def connect(port: int) -> None:
        for _ in range(count):
            connect_once(port)

    compare(
        "forward: connect, one byte there and back, close",
        lambda: connect(ways.ours),
        lambda: connect(ways.socat),
        0.8,
        rival_name="2 x socat",
        per=count,
        rounds=7,
    )


def test_a_thousand_at_a_time(compare: Compare, ways: Ways) -> None:
    count = 20 if compare.quick else 1000

    def connect(port: int) -> None:
        with ExitStack() as stack:
            socks = [
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60)) for _ in range(count)
            ]
            for sock in socks:
                sock.sendall(b"\0")
            for sock in socks:
                assert sock.recv(1) == b"\0"

    compare(
        f"forward: {count} connections open at a time",
        lambda: connect(ways.ours),
        lambda: connect(ways.socat),
        0.8,
        rival_name="2 x socat",
        per=count,
        rounds=5,
    )


def test_memory_of_idle_forwards(compare: Compare, tmp_path: Path) -> None:
    count = 20 if compare.quick else 1000

    def each() -> float:
        # A new agent each time: memory that a closed connection gave back would hide the cost.
        server = Server()
        with (
            tempfile.TemporaryDirectory(prefix="arcbox-", dir="/var/tmp") as directory,
            forwarded(Path(directory), server) as (agent, port),
            ExitStack() as stack,
        ):
            connect_once(port)
            server.accepted = 0
            before = memory(agent.pid)["Pss"]
            for _ in range(count):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            until_it_answers(lambda: connect_once(port))
            while server.accepted <= count:
                time.sleep(0.05)
            time.sleep(0.5)
            grown = memory(agent.pid)["Pss"] - before
        server.listener.close()
        return grown / count

    compare.figure("forward: an idle one's memory", each, 4096, unit="B", higher_is_better=False, rounds=1)

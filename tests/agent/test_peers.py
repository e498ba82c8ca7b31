"""What one peer can hold of the agent: its own frames, a share of the bytes and connections, its own refusals."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from arcbox_agent.agent.serving.ledger import Ledger
from arcbox_agent.agent.serving.refused_peers import ranges
from arcbox_agent.wire import CreateContainerRequest, Error, ExecRequest, PingRequest, PingResponse, encode_frame
from tests.agent.peer import Peer, eventually, info
from tests.agent.test_flow import resident
from tests.agent.test_listeners import open_to_all
from tests.conftest import PATIENCE, RunningAgent, StartAgent

PONG = PingResponse(message="pong", version="0.1.0")


# ------------------------------------------------------------------------- a frame


@pytest.mark.parametrize(
    ("type", "payload", "reason"),
    [
        pytest.param(
            CreateContainerRequest.TYPE, b"\x42\x00", "CreateContainerRequest.mounts: more than 1024 items", id="mounts"
        ),
        pytest.param(ExecRequest.TYPE, b"\x12\x02ab", "ExecRequest.cmd: more than 65536 items", id="words"),
        pytest.param(
            ExecRequest.TYPE, b"\x1a\x04\x0a\x00\x12\x00", "ExecRequest: more than 262144 values", id="variables"
        ),
    ],
)
def test_a_frame_of_very_many_items_is_refused_by_their_number_and_costs_no_more_than_its_bytes(
    start_agent: StartAgent, type: int, payload: bytes, reason: str
) -> None:
    agent = start_agent()
    before = peak(agent)
    with Peer(agent.socket_path) as peer:
        peer.send_bytes(encode_frame(type, payload * ((16 << 20) // len(payload) - 8)))
        reply = peer.reply()
        assert isinstance(reply, Error)
        assert reply.code == 400
        assert reply.message.startswith(f"invalid request: {reason}")
        # It was a whole frame: the connection goes on.
        assert peer.ask(PingRequest()) == PONG
    # The frame itself, twice: as it arrives, and its payload.
    assert peak(agent) - before < 64 << 20


def peak(agent: RunningAgent) -> int:
    """The most memory that the agent ever had, in bytes."""
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


# ------------------------------------------------------------------- bytes by peer


class Account:
    def __init__(self, ledger: Ledger, owner: str, restricted: bool = False) -> None:
        self.ledger, self.owner, self.restricted = ledger, owner, restricted
        self.charged = 0
        self.evicted: tuple[int, int] | None = None

    def hold(self, size: int) -> None:
        self.ledger.charge(self, size)

    def evict(self, charged: int, of_peer: int) -> None:
        self.evicted = charged, of_peer


def test_over_the_bound_the_peer_with_the_most_loses_its_largest_connection() -> None:
    ledger = Ledger(1000, 1000)
    honest = Account(ledger, "uid 1")
    honest.hold(400)
    many = [Account(ledger, "uid 2") for _ in range(100)]
    for number, each in enumerate(many):
        each.hold(5 if number != 50 else 20)
    assert ledger.total == 915
    honest.hold(490)
    assert honest.evicted is None
    assert many[50].evicted == (20, 515)
    assert ledger.total == 985
    # As many of them as it takes.
    honest.hold(494)
    many[0].hold(17)
    assert honest.evicted is None
    assert many[0].evicted == (17, 507)
    for each in [honest, *many]:
        ledger.release(each)
    assert (ledger.total, ledger.holders) == (0, {})


def test_a_peer_that_may_only_look_holds_its_share_and_no_more() -> None:
    ledger = Ledger(1000, 100)
    first, second = Account(ledger, "uid 7", True), Account(ledger, "uid 7", True)
    other = Account(ledger, "uid 8")
    other.hold(500)
    first.hold(60)
    second.hold(40)
    assert (first.evicted, second.evicted) == (None, None)
    second.hold(41)
    assert (first.evicted, second.evicted) == ((60, 101), None)
    assert other.evicted is None


def half_frame(held: int) -> bytes:
    return struct.pack(">II", 7 << 19, 1) + bytes([0x0A]) + bytes(held)


@contextmanager
def as_user(uid: int, path: Path, count: int, data: bytes) -> Iterator[None]:
    """A process of that user that sends `data` on each of `count` connections, and says so."""
    program = (
        "import os, socket, sys, time\n"
        "uid, path, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])\n"
        "data = sys.stdin.buffer.read()\n"
        "os.setgroups([]); os.setgid(uid); os.setuid(uid)\n"
        "held = [socket.socket(socket.AF_UNIX) for _ in range(count)]\n"
        "for each in held:\n each.connect(path)\n"
        "for each in held:\n"
        " try: each.sendall(data)\n"
        " except OSError: pass\n"
        "print('sent', flush=True)\n"
        "time.sleep(1000)\n"
    )
    arguments = [sys.executable, "-ISE", "-c", program, str(uid), str(path), str(count)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(data)
        process.stdin.close()
        assert process.stdout.readline() == b"sent\n"
        try:
            yield
        finally:
            process.kill()


def test_many_small_holders_do_not_have_an_honest_connection_closed(start_agent: StartAgent) -> None:
    agent = start_agent(max_frame_size="4MiB", max_queued_total="8MiB", allow_uid=["12345"])
    open_to_all(agent.socket_path)
    with Peer(agent.socket_path) as honest:
        # The largest connection by far.
        honest.send_bytes(half_frame(3 << 20))
        eventually(lambda: info(agent).counters["bytes_received"] > 3 << 20, "it has arrived")
        with as_user(12345, agent.socket_path, 100, half_frame(100_000)):
            eventually(lambda: info(agent).counters["bound_queued_total"] >= 10, "the small ones are closed")
            honest.send_bytes(bytes((7 << 19) - 5 - (3 << 20)))
            reply = honest.reply()
            assert isinstance(reply, Error)
            assert reply.message.startswith("invalid request: failed to decode")
    closed = [line for line in agent.log().splitlines() if "max_queued_total reached" in line]
    assert [("uid 12345 " in line, "held_by_peer=" in line) for line in closed] == [(True, True)]


# ---------------------------------------------------------- peers that may only look


def test_a_peer_that_may_only_look_has_a_share_of_the_connections(start_agent: StartAgent, tmp_path: Path) -> None:
    looking = Path(tmp_path / "look.sock")
    agent = start_agent(listen=[f"unix:{looking}?mode=read-only"], max_connections="1000")
    with ExitStack() as open_peers:
        peers = [open_peers.enter_context(Peer(looking)) for _ in range(70)]
        for peer in peers:
            peer.send(PingRequest())
        replies = [peer.reply() for peer in peers]
        text = f"uid {os.getuid()} has 64 connections already, all that one who may only look can have"
        assert replies == [PONG] * 64 + [Error(code=429, message=text)] * 6
        # On a listener that lets it do more it is not counted.
        with Peer(agent.socket_path) as peer:
            assert peer.ask(PingRequest()) == PONG
        peers[0].close()

        def admitted() -> bool:
            with Peer(looking) as peer:
                return peer.ask(PingRequest()) == PONG

        eventually(admitted, "its place is free again")


def test_a_peer_that_may_only_look_cannot_make_the_agent_hold_much(start_agent: StartAgent, tmp_path: Path) -> None:
    looking = Path(tmp_path / "look.sock")
    agent = start_agent(listen=[f"unix:{looking}?mode=read-only"])
    before = resident(agent)
    pings = b"".join(encode_frame(1, b"\x0a\xe0\xd4\x03" + b"x" * 60_000) for _ in range(16))
    with ExitStack() as open_peers:
        peers = [open_peers.enter_context(Peer(looking)) for _ in range(200)]
        for peer in peers:
            peer.socket.setblocking(False)
        for peer in peers:
            for start in range(0, len(pings), 1 << 16):
                try:
                    peer.socket.send(pings[start : start + (1 << 16)])
                except OSError:
                    break
        eventually(lambda: info(agent).counters["bound_queued_total"] > 0, "it has more than its share")
        # The heap is given back what was evicted, once a second.
        eventually(lambda: resident(agent) - before < 24 << 20, "it takes no more than that")
    with Peer(looking) as peer:
        peer.send_bytes(struct.pack(">II", (1 << 20) + 1, 1))
        reply = peer.reply()
        assert isinstance(reply, Error)
        assert reply.message == "invalid frame: frame length 1048577 is above the limit of 1048576"


# ------------------------------------------------------------------------ refusals


def test_every_connection_over_the_bound_is_told_in_its_own_version(start_agent: StartAgent) -> None:
    agent = start_agent(max_connections="2")
    with ExitStack() as open_peers:
        for _ in range(2):
            assert open_peers.enter_context(Peer(agent.socket_path)).ask(PingRequest()) == PONG
        peers = [open_peers.enter_context(Peer(agent.socket_path, version=2)) for _ in range(500)]
        for number, peer in enumerate(peers):
            peer.send(PingRequest(), trace_id=f"t{number}")
        for number, peer in enumerate(peers):
            frame = peer.frame()
            assert (frame.type, frame.version, frame.trace_id) == (0xFFFF, 2, f"t{number}")


def test_connections_that_cannot_even_be_refused_yet_wait_for_it(start_agent: StartAgent) -> None:
    agent = start_agent(max_connections="2")
    with ExitStack() as open_peers:
        for _ in range(2):
            assert open_peers.enter_context(Peer(agent.socket_path)).ask(PingRequest()) == PONG
        silent = [open_peers.enter_context(Peer(agent.socket_path)) for _ in range(1100)]
        late = open_peers.enter_context(Peer(agent.socket_path, version=2))
        late.send(PingRequest(), trace_id="late")
        for peer in silent[:500]:
            peer.close()
        frame = late.frame()
        assert (frame.type, frame.trace_id) == (0xFFFF, "late")
        # One that asks nothing is closed in the end: in which version it could be told is not known.
        assert silent[500].bytes_until_closed() == b""


def test_no_user_can_hide_anothers_refusal_behind_thousands_of_their_own(start_agent: StartAgent) -> None:
    agent = start_agent()
    open_to_all(agent.socket_path)
    program = (
        "import os, socket, sys\n"
        "for uid in [*range(70000, 70300), 4242]:\n"
        " pid = os.fork()\n"
        " if pid == 0:\n"
        "  os.setgroups([]); os.setgid(uid); os.setuid(uid)\n"
        "  s = socket.socket(socket.AF_UNIX)\n"
        "  s.connect(sys.argv[1]); s.recv(1); os._exit(0)\n"
        " os.waitpid(pid, 0)\n"
    )
    subprocess.run([sys.executable, "-ISE", "-c", program, str(agent.socket_path)], check=True, timeout=PATIENCE)
    eventually(lambda: "uid 4242" in agent.log(), "it is told")
    lines = [line for line in agent.log().splitlines() if "not allowed" in line]
    assert len([line for line in lines if " peer=" in line]) == 64
    gathered = [line for line in lines if " peers=" in line]
    assert 1 <= len(gathered) < 20
    assert "uid 70064-70" in gathered[0]
    assert sum(int(line.partition("refused=")[2].split()[0]) for line in gathered) == 301 - 64
    assert info(agent).counters["connections_refused_peer"] == 301


def test_neighbours_are_told_as_one() -> None:
    assert ranges([("cid", 3), ("uid", 3), ("uid", 4), ("uid", 5), ("uid", 7)]) == [
        ("cid", 3, 3),
        ("uid", 3, 5),
        ("uid", 7, 7),
    ]


# ------------------------------------------------------------------------ the loop

#: Sends requests of 16 MiB, one after the other; each is decoded whole, and refused by what it says.
HEAVY = """
import socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
payload = b"".join(b"\\x12\\xf0\\x01" + b"x" * 240 for _ in range(65536))
frame = (len(payload) + 4).to_bytes(4, "big") + int(sys.argv[2]).to_bytes(4, "big") + payload
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[3])):
    peer.sendall(frame)
    head = peer.recv(8, socket.MSG_WAITALL)
    assert head[4:] == b"\\0\\0\\xff\\xff", head
    peer.recv(int.from_bytes(head[:4], "big") - 4, socket.MSG_WAITALL)
"""


def test_large_requests_of_one_peer_leave_the_loop_to_the_others(start_agent: StartAgent) -> None:
    agent = start_agent()
    heavy = 20
    process = subprocess.Popen(
        [sys.executable, "-c", HEAVY, str(agent.socket_path), str(ExecRequest.TYPE), str(heavy)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        with Peer(agent.socket_path) as peer:
            process.stdin.write(b"\n")
            process.stdin.flush()
            answered, longest = 0, 0.0
            while process.poll() is None:
                begun = time.monotonic()
                assert peer.ask(PingRequest()) == PONG
                longest = max(longest, time.monotonic() - begun)
                answered += 1
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    assert answered > 10 * heavy
    assert longest < 1

"""Slow, silent, vanishing and hostile peers: each costs a bounded part of the agent, and nobody else."""

from __future__ import annotations

import fcntl
import os
import random
import resource
import signal
import socket
import struct
import sys
import termios
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from arcbox_agent.wire import (
    Error,
    ExecOutput,
    ExecRequest,
    FrameDecoder,
    ListContainersRequest,
    PingRequest,
    PingResponse,
    encode_frame,
    encode_message,
)
from tests.agent.peer import Peer, eventually, info, only_peer
from tests.conftest import RunningAgent, StartAgent

PONG = PingResponse(message="pong", version="0.1.0")


def descriptors_of(agent: RunningAgent) -> int:
    """How many descriptors it has open, when nobody is connected."""
    with only_peer(agent):
        return len(os.listdir(f"/proc/{agent.process.pid}/fd"))


def resident(agent: RunningAgent) -> int:
    """Bytes of memory the agent has in use."""
    return int(Path(f"/proc/{agent.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()


def pending(peer: Peer) -> int:
    """Bytes that have arrived and are not read."""
    return int.from_bytes(fcntl.ioctl(peer.socket, termios.FIONREAD, bytes(4)), sys.byteorder)


def send_until_it_blocks(peer: Peer, data: bytes) -> int:
    """Send `data` over and over until the agent takes no more; how many bytes it took."""
    peer.socket.settimeout(2.0)
    sent = 0
    try:
        while True:
            sent += peer.socket.send(memoryview(data)[sent % len(data) :])
            assert sent < 1 << 30, "the agent takes without end"
    except TimeoutError:
        return sent
    finally:
        peer.socket.settimeout(60)


# --------------------------------------------------------------------- slow readers


def test_a_peer_that_never_reads_is_paused_and_nobody_else_is(start_agent: StartAgent) -> None:
    agent = start_agent()
    before = resident(agent)
    pings = encode_message(PingRequest(message="x" * 1000)) * 100
    with Peer(agent.socket_path) as deaf:
        sent = send_until_it_blocks(deaf, pings)
        # Everything the agent keeps for it fits in a few socket buffers and a read.
        assert sent < 8 << 20
        now = info(agent)
        assert now.counters["bound_slow_reader"] >= 1
        assert 0 < now.queued_bytes < 4 << 20
        assert resident(agent) - before < 16 << 20
        # It begins to read, and misses nothing.
        received = 0
        whole = len(encode_message(PingRequest(message="x" * 1000)))
        for _ in range(sent // whole):
            reply = deaf.reply()
            assert reply == PingResponse(message="pong: " + "x" * 1000, version="0.1.0")
            received += 1
        assert received == sent // whole


def test_a_peer_that_goes_away_without_reading_is_forgotten(start_agent: StartAgent) -> None:
    agent = start_agent()
    with Peer(agent.socket_path) as deaf:
        send_until_it_blocks(deaf, encode_message(PingRequest(message="x" * 1000)) * 100)
    eventually(lambda: info(agent).connections == 1, "its connection is gone")
    assert info(agent).queued_bytes == 0


# ------------------------------------------------------------------ waiting requests


def test_requests_wait_behind_one_that_runs_and_come_in_order(start_agent: StartAgent) -> None:
    agent = start_agent()
    with Peer(agent.socket_path) as peer, Peer(agent.socket_path) as other:
        peer.send(ExecRequest(cmd=["sh", "-c", "sleep 0.3; echo slow"]), PingRequest(), ExecRequest(cmd=["echo", "2"]))
        # Another connection does not wait.
        assert other.ask(PingRequest()) == PONG
        assert peer.reply() == ExecOutput(stream="stdout", data=b"slow\n", done=True)
        assert peer.reply() == PONG
        assert peer.reply() == ExecOutput(stream="stdout", data=b"2\n", done=True)


def test_too_many_waiting_requests_stop_the_reading_and_none_is_lost(start_agent: StartAgent) -> None:
    agent = start_agent(max_pipelined="10")
    go = agent.directory / "go"
    ping = encode_message(PingRequest(message="x" * 100))
    with Peer(agent.socket_path) as peer:
        peer.send(ExecRequest(cmd=["sh", "-c", f"until test -e {go}; do sleep 0.02; done"]))
        sent = send_until_it_blocks(peer, ping)
        assert sent < 4 << 20
        assert info(agent).counters["bound_pipelined"] >= 1
        go.touch()
        assert peer.reply() == ExecOutput(stream="stdout", done=True)
        for _ in range(sent // len(ping)):
            assert peer.reply() == PingResponse(message="pong: " + "x" * 100, version="0.1.0")


def test_too_many_waiting_bytes_stop_the_reading_too(start_agent: StartAgent) -> None:
    agent = start_agent(max_queued_bytes="1MiB")
    before = resident(agent)
    go = agent.directory / "go"
    ping = encode_message(PingRequest(message="x" * 500_000))
    with Peer(agent.socket_path) as peer:
        peer.send(ExecRequest(cmd=["sh", "-c", f"until test -e {go}; do sleep 0.02; done"]))
        send_until_it_blocks(peer, ping)
        assert resident(agent) - before < 16 << 20
        go.touch()
        assert peer.reply() == ExecOutput(stream="stdout", done=True)
        assert peer.reply() == PingResponse(message="pong: " + "x" * 500_000, version="0.1.0")


def test_all_half_frames_together_have_a_bound_and_the_largest_goes_first(start_agent: StartAgent) -> None:
    agent = start_agent(max_frame_size="4MiB", max_queued_total="8MiB")
    before = resident(agent)
    # A frame of 4 MiB of which three quarters come.
    half = struct.pack(">II", 4 << 20, 1) + bytes([0x0A]) + bytes(3 << 20)
    with ExitStack() as open_peers:
        small = open_peers.enter_context(Peer(agent.socket_path))
        small.send_bytes(half[: 1 << 20])
        senders = []
        for _ in range(6):
            peer = open_peers.enter_context(Peer(agent.socket_path))
            senders.append(threading.Thread(target=_send_and_ignore, args=(peer, half)))
            senders[-1].start()
        for sender in senders:
            sender.join()
        eventually(lambda: info(agent).counters["bound_queued_total"] >= 3, "the largest are closed")
        assert resident(agent) - before < 40 << 20
        # The small one is still there: its frame can be finished.
        rest = (4 << 20) - 4 - ((1 << 20) - 8)
        small.send_bytes(b"\0" * rest)
        reply = small.reply()
        assert isinstance(reply, Error)
        assert reply.code == 400


@pytest.mark.parametrize("what", ["output", "input of a reply", "input of a stream"])
def test_what_calls_hold_while_they_run_has_a_bound_and_those_who_hold_little_go_on(
    start_agent: StartAgent, what: str
) -> None:
    agent = start_agent(max_frame_size="4MiB", max_queued_total="8MiB", exec_output_limit="4MiB")
    go = agent.directory / "go"
    wait = f"until test -e {go}; do sleep 0.1; done"
    large = (
        ExecRequest(cmd=["sh", "-c", f"head -c 3000000 /dev/zero; {wait}"])
        if what == "output"
        else ExecRequest(cmd=["sh", "-c", wait], stdin=bytes(3_000_000), stream=what == "input of a stream")
    )
    before = resident(agent)
    with ExitStack() as open_peers:
        small = open_peers.enter_context(Peer(agent.socket_path))
        small.send(ExecRequest(cmd=["sh", "-c", f"head -c 100000 /dev/zero; {wait}"]))
        peers = [open_peers.enter_context(Peer(agent.socket_path)) for _ in range(6)]
        for peer in peers:
            peer.send(large)
        eventually(lambda: info(agent).counters["bound_queued_total"] == 4, "those too many are closed")
        if what == "output":
            assert resident(agent) - before < 24 << 20
        go.touch()
        replies = [peer.reply() for peer in peers]
        refused = [reply for reply in replies if isinstance(reply, Error)]
        assert (
            refused
            == [Error(code=429, message="the agent's bound on bytes in flight was reached (max_queued_total)")] * 4
        )
        data = bytes(3_000_000 if what == "output" else 0)
        assert [reply for reply in replies if reply not in refused] == [
            ExecOutput(stream="stdout", data=data, done=True)
        ] * 2
        assert small.reply() == ExecOutput(stream="stdout", data=bytes(100_000), done=True)
        # What is over holds nothing any more.
        for _ in range(5):
            with Peer(agent.socket_path) as peer:
                reply = peer.ask(large)
                assert isinstance(reply, ExecOutput)
                assert reply.done
    assert info(agent).counters["bound_queued_total"] == 4


def test_a_half_frame_goes_with_its_connection_though_what_that_started_goes_on(start_agent: StartAgent) -> None:
    agent = start_agent()
    half = struct.pack(">II", 8 << 20, 1) + bytes([0x0A]) + bytes(7 << 20)
    before = resident(agent)
    started = []
    try:
        for sent in range(1, 13):
            with Peer(agent.socket_path) as peer:
                reply = peer.ask(ExecRequest(cmd=["sleep", "1000"], detach=True, detail=True))
                assert isinstance(reply, ExecOutput)
                started.append(reply.pid)
                peer.send_bytes(half)
                eventually(lambda: info(agent).counters["bytes_received"] > sent * len(half), "it has arrived")
        with only_peer(agent):
            assert resident(agent) - before < 40 << 20
    finally:
        for pid in started:
            os.kill(pid, signal.SIGKILL)


def test_a_call_whose_connection_goes_before_it_has_begun_is_over_too(start_agent: StartAgent) -> None:
    agent = start_agent(max_frame_size="64KiB", max_queued_total="64KiB", shutdown_timeout="0.5")
    with Peer(agent.socket_path) as peer:
        peer.ask(PingRequest())
        # All of it comes in one read: the call is there, and more behind it than may be held.
        os.kill(agent.process.pid, signal.SIGSTOP)
        try:
            peer.send(ExecRequest(cmd=["true"]), *[PingRequest(message="x" * 1000)] * 100)
        finally:
            os.kill(agent.process.pid, signal.SIGCONT)
        reply = peer.reply()
        assert isinstance(reply, Error)
        assert reply.code == 429
    agent.stop()
    assert "did not finish in time" not in agent.log()


def test_a_connection_that_is_closed_for_its_memory_sends_no_error_inside_a_frame(start_agent: StartAgent) -> None:
    agent = start_agent(max_frame_size="64KiB", max_queued_total="64KiB")
    with Peer(agent.socket_path) as peer:
        peer.send(ExecRequest(cmd=["sh", "-c", "head -c 1000000 /dev/zero; sleep 1000"], stream=True))
        # The socket is full, in the middle of a frame.
        sent = 0
        while sent != (sent := pending(peer)) or not sent:
            time.sleep(0.2)
        # Room for more, and more than may be held, both at once.
        os.kill(agent.process.pid, signal.SIGSTOP)
        try:
            received = peer.socket.recv(150_000)
            peer.send(*[PingRequest(message="x" * 1000)] * 100)
        finally:
            os.kill(agent.process.pid, signal.SIGCONT)
        received += peer.bytes_until_closed()
        decoder = FrameDecoder(version=1)
        decoder.feed(received)
        while (frame := decoder.next_frame()) is not None:
            assert not any(ExecOutput.decode(frame.payload).data)
        # Of the last frame, head and some of the data.
        half = received[len(received) - decoder.buffered :]
        assert not any(half[100:])
        assert info(agent).counters["bound_queued_total"] == 1


def _send_and_ignore(peer: Peer, data: bytes) -> None:
    try:
        peer.send_bytes(data)
    except OSError:
        pass  # closed by the agent, as it should be


# ------------------------------------------------------------------------- time-outs


@pytest.mark.parametrize("trace_id", [None, "t" * 2000])
def test_waiting_requests_without_a_payload_have_a_bound_too(start_agent: StartAgent, trace_id: str | None) -> None:
    agent = start_agent(max_frame_size="1MiB", max_queued_total="4MiB")
    go = agent.directory / "go"
    before = resident(agent)
    call = ExecRequest(cmd=["sh", "-c", f"until test -e {go}; do sleep 0.2; done"])
    requests = encode_message(ListContainersRequest(), trace_id) * 1000
    with ExitStack() as open_peers:
        peers = [open_peers.enter_context(Peer(agent.socket_path)) for _ in range(40)]
        for peer in peers:
            peer.send(call, trace_id=trace_id)
        # Each read takes what it brings off the decoder: as objects, in no buffer any more.
        eventually(lambda: info(agent).counters["commands_started"] == len(peers), "all commands run")
        for peer in peers:
            _send_and_ignore(peer, requests)
        eventually(lambda: info(agent).counters["bound_queued_total"] >= 1, "the largest are closed")
        assert resident(agent) - before < 24 << 20
        go.touch()


def test_a_frame_that_stays_half_is_told_and_closed(start_agent: StartAgent) -> None:
    agent = start_agent(frame_timeout="0.2")
    with Peer(agent.socket_path) as half, Peer(agent.socket_path) as idle:
        half.send_bytes(encode_message(PingRequest()) + b"\0\0\0")
        assert half.reply() == PONG
        assert half.reply() == Error(code=400, message="a frame was not whole after 0.2 s (frame_timeout)")
        assert half.is_closed_by_the_agent()
        # Who has sent nothing at all has no frame that is late.
        assert idle.ask(PingRequest()) == PONG
    assert info(agent).counters["bound_frame_timeout"] == 1


@pytest.mark.parametrize(
    ("sent", "counter", "line"),
    [
        (bytes(8), "frames_broken", "broken frame, connection closed"),
        (bytes(3), "bound_frame_timeout", "frame not whole in time, connection closed"),
        (struct.pack(">II", 4 << 20, 1) + bytes(3 << 20), "bound_queued_total", "max_queued_total reached"),
    ],
)
def test_a_peer_that_is_closed_over_and_over_does_not_flood_the_log(
    start_agent: StartAgent, sent: bytes, counter: str, line: str
) -> None:
    agent = start_agent(frame_timeout="0.2", max_frame_size="4MiB", max_queued_total="4MiB")
    for round in range(1, 6):
        with ExitStack() as open_peers:
            for _ in range(2):
                _send_and_ignore(open_peers.enter_context(Peer(agent.socket_path)), sent)
            eventually(lambda: info(agent).counters[counter] >= round, "it is closed")
    assert agent.log().count(line) == 1


def test_bytes_that_trickle_in_do_not_extend_the_time_of_a_frame(start_agent: StartAgent) -> None:
    agent = start_agent(frame_timeout="0.5")
    with Peer(agent.socket_path) as slow:
        slow.send_bytes(struct.pack(">II", 1000, 1))
        ended = threading.Event()

        def trickle() -> None:
            while not ended.wait(0.05):
                _send_and_ignore(slow, b"\x0a")

        sender = threading.Thread(target=trickle)
        sender.start()
        try:
            assert slow.reply() == Error(code=400, message="a frame was not whole after 0.5 s (frame_timeout)")
        finally:
            ended.set()
            sender.join()


def test_an_idle_connection_is_closed_where_that_is_configured(start_agent: StartAgent) -> None:
    agent = start_agent(idle_timeout="0.3")
    with Peer(agent.socket_path) as peer, Peer(agent.socket_path) as busy:
        busy.send(ExecRequest(cmd=["sleep", "1.5"]))
        assert peer.ask(PingRequest()) == PONG
        assert peer.bytes_until_closed() == b""
        # A call that runs is not idleness.
        assert busy.reply() == ExecOutput(stream="stdout", done=True)


def test_idleness_begins_when_the_last_call_has_ended(start_agent: StartAgent) -> None:
    agent = start_agent(idle_timeout="1")
    with Peer(agent.socket_path) as peer:
        assert peer.ask(ExecRequest(cmd=["sleep", "1.5"])) == ExecOutput(stream="stdout", done=True)
        assert peer.ask(PingRequest()) == PONG


def test_a_half_frame_behind_a_long_call_has_its_time_afterwards(start_agent: StartAgent) -> None:
    agent = start_agent(frame_timeout="1", max_pipelined="1")
    ping = encode_message(PingRequest())
    with Peer(agent.socket_path) as peer:
        peer.send(ExecRequest(cmd=["sleep", "1.5"]))
        peer.send_bytes(ping * 3 + ping[:6])
        assert peer.reply() == ExecOutput(stream="stdout", done=True)
        assert [peer.reply() for _ in range(3)] == [PONG] * 3
        peer.send_bytes(ping[6:])
        assert peer.reply() == PONG


# --------------------------------------------------------------------- going away


def test_a_peer_that_only_stops_sending_gets_all_replies(start_agent: StartAgent) -> None:
    agent = start_agent()
    with Peer(agent.socket_path) as peer:
        peer.send(ExecRequest(cmd=["sh", "-c", "sleep 0.3; echo a"]), PingRequest(), ExecRequest(cmd=["echo", "b"]))
        peer.socket.shutdown(socket.SHUT_WR)
        assert peer.reply() == ExecOutput(stream="stdout", data=b"a\n", done=True)
        assert peer.reply() == PONG
        assert peer.reply() == ExecOutput(stream="stdout", data=b"b\n", done=True)
        assert peer.is_closed_by_the_agent()


def test_one_that_stops_sending_gets_the_end_of_its_stream_too(start_agent: StartAgent) -> None:
    agent = start_agent()
    with Peer(agent.socket_path) as peer:
        peer.send(ExecRequest(cmd=["sh", "-c", "echo a; sleep 0.3; echo b"], stream=True))
        peer.socket.shutdown(socket.SHUT_WR)
        data = b""
        while not (reply := peer.reply()).done:  # type: ignore[attr-defined]
            data += reply.data  # type: ignore[attr-defined]
        assert data + reply.data == b"a\nb\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("half_closed_first", [False, True])
def test_the_command_of_a_peer_that_goes_away_is_ended(start_agent: StartAgent, half_closed_first: bool) -> None:
    agent = start_agent()
    pid_file = agent.directory / "pid"
    peer = Peer(agent.socket_path)
    peer.send(ExecRequest(cmd=["sh", "-c", f"echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; sleep 1000"]))
    eventually(pid_file.exists, "the command runs")
    pid = int(pid_file.read_text())
    if half_closed_first:
        peer.socket.shutdown(socket.SHUT_WR)
        with Peer(agent.socket_path) as other:
            assert other.ask(PingRequest()) == PONG
        assert os.path.exists(f"/proc/{pid}")
    peer.close()
    eventually(lambda: not os.path.exists(f"/proc/{pid}"), "the command is gone")
    eventually(lambda: info(agent).connections == 1, "the connection is gone")


def test_the_command_of_a_peer_that_goes_away_while_it_is_paused_is_ended_too(start_agent: StartAgent) -> None:
    agent = start_agent(max_pipelined="1")
    pid_file = agent.directory / "pid"
    peer = Peer(agent.socket_path)
    peer.send(ExecRequest(cmd=["sh", "-c", f"echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; sleep 1000"]))
    send_until_it_blocks(peer, encode_message(PingRequest(message="x" * 1000)))
    eventually(pid_file.exists, "the command runs")
    pid = int(pid_file.read_text())
    peer.close()
    eventually(lambda: not os.path.exists(f"/proc/{pid}"), "the command is gone")


# ------------------------------------------------------------------------ hostility


def test_garbage_of_any_kind_ends_in_an_error_or_a_close_and_the_agent_lives(start_agent: StartAgent) -> None:
    agent = start_agent(max_frame_size="64KiB")
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    noise = random.Random(seed)
    for _ in range(200):
        with Peer(agent.socket_path) as peer:
            _send_and_ignore(peer, noise.randbytes(noise.randrange(1, 4000)))
            try:
                peer.socket.shutdown(socket.SHUT_WR)
            except OSError:
                continue
            assert peer.is_closed_by_the_agent()
    eventually(lambda: info(agent).connections == 1, "all of them are gone")


def test_whole_frames_of_random_types_and_payloads_are_all_answered(start_agent: StartAgent) -> None:
    agent = start_agent()
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    noise = random.Random(seed)
    # Not those that would do something when they happen to parse.
    harmless = [0x0000, 0x0001, 0x0002, 0x0004, 0x0014, 0x0021, 0x0024, 0x0100, 0x1001, 0x7777, 0xFFFF, 0xFFFFFFFF]
    with Peer(agent.socket_path) as peer:
        for _ in range(500):
            # From 0x08 on: the first byte makes it V1.
            payload = bytes([noise.randrange(8, 256)]) + noise.randbytes(noise.randrange(40))
            peer.send_bytes(encode_frame(noise.choice(harmless), payload))
            assert peer.frame().type in (0xFFFF, 0x1001, 0x1002, 0x1004, 0x1014, 0x1100)
        assert peer.ask(PingRequest()) == PONG


def test_thousands_of_connections_at_once_are_all_served(start_agent: StartAgent) -> None:
    agent = start_agent(max_connections="6000")
    descriptors = descriptors_of(agent)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    peers: list[Peer] = []
    try:
        for _ in range(5000):
            peers.append(Peer(agent.socket_path))
        for peer in peers:
            peer.send(PingRequest())
        for peer in peers:
            assert peer.reply() == PONG
        assert info(agent).connections == 5001
    finally:
        for peer in peers:
            peer.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    eventually(lambda: info(agent).connections == 1, "all of them are gone")
    eventually(lambda: descriptors_of(agent) == descriptors, "their descriptors are closed")


def test_a_full_descriptor_table_slows_a_stream_and_loses_none_of_it(start_agent: StartAgent) -> None:
    agent = start_agent()
    go = agent.directory / "go"
    with ExitStack() as open_peers:
        peer = open_peers.enter_context(Peer(agent.socket_path))
        script = f"until test -e {go}; do sleep 0.1; done; seq 1000000"
        peer.send(ExecRequest(cmd=["sh", "-c", script], stream=True))
        eventually(lambda: info(agent).counters["commands_started"] == 1, "the command runs")
        used = len(os.listdir(f"/proc/{agent.process.pid}/fd"))
        resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (used + 5, used + 5))
        for _ in range(10):
            open_peers.enter_context(Peer(agent.socket_path))
        eventually(lambda: "cannot accept connections" in agent.log(), "no descriptor is left")
        go.touch()
        # Not read yet: it has to wait.
        sent = 0
        while sent != (sent := pending(peer)) or not sent:
            time.sleep(0.2)
        received = bytearray()
        done = False
        while not done:
            part = peer.reply()
            assert isinstance(part, ExecOutput)
            received += part.data
            done = part.done
        assert received == b"".join(b"%d\n" % n for n in range(1, 1000001))


def test_a_full_descriptor_table_slows_accepting_and_is_logged_once(start_agent: StartAgent) -> None:
    agent = start_agent()
    used = len(os.listdir(f"/proc/{agent.process.pid}/fd"))
    limit = used + 20
    resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
    peers = [Peer(agent.socket_path) for _ in range(50)]
    # Those that got a descriptor are served as ever.
    for _ in range(10):
        assert peers[0].ask(PingRequest()) == PONG
    eventually(lambda: "cannot accept connections" in agent.log(), "it is logged")
    for peer in peers[:40]:
        peer.close()
    # Then it is the others' turn: nobody was turned away.
    for peer in peers[40:]:
        assert peer.ask(PingRequest()) == PONG
        peer.close()
    lines = [line for line in agent.log().splitlines() if "cannot accept connections" in line]
    assert len(lines) == 1
    assert "raise the agent's limit on open files" in lines[0]
    assert info(agent).counters["accept_errors"] >= 1

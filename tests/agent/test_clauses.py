"""One test for each clause by which a connection decides to go on, to wait or to close.

Each clause decides one case that the larger stories pass by.  Where a clause is about time,
the order of two events decides and not a duration: of two connections, the one that has
waited longer is the clock for the other, so a slow machine makes no test fail.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from arcbox_agent.wire import (
    Error,
    ExecOutput,
    ExecRequest,
    PingRequest,
    PingResponse,
    encode_frame,
    encode_message,
)
from tests.agent.peer import Peer, eventually, info, only_peer
from tests.conftest import RunningAgent

PONG = PingResponse(message="pong", version="0.1.0")
#: The shortest ping there is, in V1: 8 bytes, and its reply has 21.
PING = bytes.fromhex("0000000400000001")

#: The beginning of one.
HALF_FRAME = PING[:6]

#: A request that the agent does not know.
UNKNOWN = bytes.fromhex("0000000400007777")

#: The socket of a peer holds so many of these, and not so many replies to them.
MANY_PINGS = 15_000

#: What happens in one look of the agent at its connections is seen within this time.
ONE_LOOK = 0.5

StartAgent = Callable[..., RunningAgent]


@contextmanager
def frozen(agent: RunningAgent) -> Iterator[None]:
    """The agent does nothing meanwhile: what is sent arrives in one read."""
    os.kill(agent.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(agent.process.pid, signal.SIGCONT)


def waits_for(go: Path) -> ExecRequest:
    """A command that ends when `go` is there, and has begun when `go.began` is."""
    return ExecRequest(cmd=["sh", "-c", f"touch {go}.began; until test -e {go}; do sleep 0.02; done"])


def began(go: Path) -> None:
    eventually(Path(f"{go}.began").exists, "the command runs")


def assert_closed_before(earlier: Peer, later: Peer) -> None:
    """The agent closes `later` not before `earlier`: at the soonest in the same look at both."""
    later.bytes_until_closed()
    earlier.socket.settimeout(ONE_LOOK)
    assert earlier.is_closed_by_the_agent()


def make_it_block(agent: RunningAgent, peer: Peer, then: bytes = b"") -> None:
    """More replies than the peer's socket holds, and `then`, all in one read of the agent."""
    with frozen(agent):
        peer.send_bytes(PING * MANY_PINGS + then)
    eventually(lambda: info(agent).counters["bound_slow_reader"] == 1, "the peer does not read")


def read_pongs(peer: Peer, count: int = MANY_PINGS) -> None:
    for _ in range(count):
        assert peer.reply() == PONG


# ------------------------------------------------------------------- after a turn


def test_a_stop_takes_as_long_as_the_last_call_and_not_as_its_deadline(start_agent: StartAgent) -> None:
    agent = start_agent(shutdown_timeout="3000")
    go = agent.directory / "go"
    with Peer(agent.socket_path) as peer:
        peer.send(waits_for(go))
        began(go)
        agent.process.terminate()
        eventually(lambda: not agent.socket_path.exists(), "it has begun to end")
        go.touch()
        assert peer.reply() == ExecOutput(stream="stdout", done=True)
        peer.socket.settimeout(20)
        assert peer.is_closed_by_the_agent()
    assert agent.process.wait(20) == 0


def test_a_stop_answers_what_had_arrived_behind_the_last_call(start_agent: StartAgent) -> None:
    agent = start_agent(shutdown_timeout="3000")
    go = agent.directory / "go"
    with Peer(agent.socket_path) as peer:
        peer.send(waits_for(go), PingRequest(), ExecRequest(cmd=["echo", "last"]), PingRequest())
        began(go)
        agent.process.terminate()
        eventually(lambda: not agent.socket_path.exists(), "it has begun to end")
        go.touch()
        assert peer.reply() == ExecOutput(stream="stdout", done=True)
        assert peer.reply() == PONG
        assert peer.reply() == ExecOutput(stream="stdout", data=b"last\n", done=True)
        assert peer.reply() == PONG
        assert peer.bytes_until_closed() == b""
    assert agent.process.wait(20) == 0


def test_a_peer_whose_turn_is_over_is_not_read_until_its_next(start_agent: StartAgent) -> None:
    agent = start_agent(max_pipelined="1")
    # One read brings more requests than a turn answers, and others follow at once: what they
    # bring would have to wait, over the bound, if they were read.
    requests = encode_frame(0x7777, bytes(range(8, 248)) * 4) * 2000
    with Peer(agent.socket_path) as peer:
        sender = threading.Thread(target=peer.send_bytes, args=(requests,))
        sender.start()
        for _ in range(2000):
            assert isinstance(peer.reply(), Error)
        sender.join()
    assert info(agent).counters["bound_pipelined"] == 0


def test_a_peer_that_reads_slowly_is_counted_once_however_often_it_is_looked_at(start_agent: StartAgent) -> None:
    agent = start_agent(frame_timeout="0.1")
    with Peer(agent.socket_path) as peer:
        make_it_block(agent, peer)
        # Whoever goes away is found by looking, so it has been looked at.
        with Peer(agent.socket_path) as clock:
            clock.send_bytes(HALF_FRAME)
            clock.bytes_until_closed()
        read_pongs(peer)
        assert peer.ask(PingRequest()) == PONG
    assert info(agent).counters["bound_slow_reader"] == 1


def test_a_half_frame_behind_replies_that_were_read_late_has_its_time_afterwards(start_agent: StartAgent) -> None:
    agent = start_agent(frame_timeout="2")
    with Peer(agent.socket_path) as slow, Peer(agent.socket_path) as first, Peer(agent.socket_path) as second:
        make_it_block(agent, slow, then=HALF_FRAME)
        # For longer than a frame may take: the peer could not have sent the rest.
        first.send_bytes(HALF_FRAME)
        assert b"frame_timeout" in first.bytes_until_closed()
        second.send_bytes(PING + HALF_FRAME)
        assert second.reply() == PONG
        read_pongs(slow)
        assert_closed_before(second, slow)


def test_a_half_frame_behind_replies_that_were_read_late_can_be_finished(start_agent: StartAgent) -> None:
    agent = start_agent(frame_timeout="0.5")
    with Peer(agent.socket_path) as slow, Peer(agent.socket_path) as clock:
        make_it_block(agent, slow, then=HALF_FRAME)
        clock.send_bytes(HALF_FRAME)
        assert b"frame_timeout" in clock.bytes_until_closed()
        slow.send_bytes(PING[len(HALF_FRAME) :])
        read_pongs(slow, MANY_PINGS + 1)


def test_a_reply_that_is_read_late_holds_up_the_requests_behind_it_and_loses_none(start_agent: StartAgent) -> None:
    agent = start_agent()
    with Peer(agent.socket_path) as peer:
        peer.send(ExecRequest(cmd=["head", "-c", "1000000", "/dev/zero"]), PingRequest(), ExecRequest(cmd=["true"]))
        eventually(lambda: info(agent).counters["bound_slow_reader"] == 1, "the peer does not read")
        peer.send(PingRequest())
        assert peer.reply() == ExecOutput(stream="stdout", data=bytes(1_000_000), done=True)
        assert peer.reply() == PONG
        assert peer.reply() == ExecOutput(stream="stdout", done=True)
        assert peer.reply() == PONG
        peer.socket.shutdown(socket.SHUT_WR)
        assert peer.bytes_until_closed() == b""


# --------------------------------------------------------------- looked at by time


def test_a_connection_is_idle_from_the_end_of_its_call_on(start_agent: StartAgent) -> None:
    agent = start_agent(idle_timeout="2")
    go = agent.directory / "go"
    with Peer(agent.socket_path) as caller, Peer(agent.socket_path) as first:
        caller.send(waits_for(go))
        began(go)
        # By now the request is older than an idle connection becomes.
        assert first.bytes_until_closed() == b""
        with Peer(agent.socket_path) as clock:
            assert clock.ask(PingRequest()) == PONG
            go.touch()
            assert caller.reply() == ExecOutput(stream="stdout", done=True)
            assert_closed_before(clock, caller)
    assert info(agent).counters["bound_idle_timeout"] == 3


def test_a_peer_that_reads_slowly_is_not_idle(start_agent: StartAgent) -> None:
    agent = start_agent(idle_timeout="0.3")
    with Peer(agent.socket_path) as slow, Peer(agent.socket_path) as idle:
        make_it_block(agent, slow)
        slow.send(PingRequest())
        assert idle.bytes_until_closed() == b""
        read_pongs(slow, MANY_PINGS + 1)


@pytest.mark.parametrize("comes", ["with the call", "while it runs"])
def test_a_half_frame_behind_a_call_that_runs_has_its_time_afterwards(start_agent: StartAgent, comes: str) -> None:
    agent = start_agent(frame_timeout="1")
    go = agent.directory / "go"
    with Peer(agent.socket_path) as caller, Peer(agent.socket_path) as first, Peer(agent.socket_path) as second:
        call = encode_message(waits_for(go))
        caller.send_bytes(call + HALF_FRAME if comes == "with the call" else call)
        began(go)
        if comes == "while it runs":
            caller.send_bytes(HALF_FRAME)
        first.send_bytes(HALF_FRAME)
        assert b"frame_timeout" in first.bytes_until_closed()
        second.send_bytes(PING + HALF_FRAME)
        assert second.reply() == PONG
        go.touch()
        assert caller.reply() == ExecOutput(stream="stdout", done=True)
        assert_closed_before(second, caller)
    assert info(agent).counters["bound_frame_timeout"] == 3


@pytest.mark.parametrize("what", ["half closed", "paused"])
def test_a_peer_that_goes_away_after_many_looks_at_it_is_found_all_the_same(start_agent: StartAgent, what: str) -> None:
    agent = start_agent(frame_timeout="0.1", max_pipelined="1")
    with ExitStack() as closing:
        clock = closing.enter_context(Peer(agent.socket_path))
        peer = closing.enter_context(Peer(agent.socket_path))
        peer.send(ExecRequest(cmd=["sleep", "1000"]))
        eventually(lambda: info(agent).counters["commands_started"] == 1, "the command runs")
        if what == "paused":
            peer.send(PingRequest(), PingRequest())
            eventually(lambda: info(agent).counters["bound_pipelined"] == 1, "no more is read")
        else:
            peer.socket.shutdown(socket.SHUT_WR)
        clock.send_bytes(HALF_FRAME)
        clock.bytes_until_closed()
        assert info(agent).connections == 2
        peer.close()
        eventually(lambda: info(agent).connections == 1, "its connection is gone")


def test_a_peer_over_the_bound_that_says_nothing_is_closed_all_the_same(start_agent: StartAgent) -> None:
    agent = start_agent(max_connections="2")
    with only_peer(agent) as peer, Peer(agent.socket_path) as other, Peer(agent.socket_path) as silent:
        assert other.ask(PingRequest()) == PONG
        assert silent.bytes_until_closed() == b""
        # The others may be silent for as long as they like.
        assert peer.ask(PingRequest()) == PONG


def close_over_a_full_socket(agent: RunningAgent, peer: Peer) -> None:
    """The agent closes, and cannot send all of the replies before that."""
    with frozen(agent):
        # Behind something else than a ping, all replies of a turn are written at once.
        peer.send_bytes(UNKNOWN + PING * MANY_PINGS + struct.pack(">II", 0, 0))
    eventually(lambda: info(agent).counters["frames_broken"] == 1, "the stream is broken")


def test_a_connection_that_is_being_closed_waits_for_its_last_replies_to_be_read(start_agent: StartAgent) -> None:
    agent = start_agent(frame_timeout="0.1")
    with Peer(agent.socket_path) as peer:
        close_over_a_full_socket(agent, peer)
        with Peer(agent.socket_path) as clock:  # until it has been looked at
            clock.send_bytes(HALF_FRAME)
            clock.bytes_until_closed()
        assert isinstance(peer.reply(), Error)
        read_pongs(peer)
        reply = peer.reply()
        assert isinstance(reply, Error)
        assert reply.message.startswith("invalid frame: ")
        assert peer.bytes_until_closed() == b""


def test_a_connection_that_is_being_closed_does_not_wait_without_end(start_agent: StartAgent) -> None:
    agent = start_agent(frame_timeout="0.1")
    with Peer(agent.socket_path) as peer:
        close_over_a_full_socket(agent, peer)
        assert info(agent).connections == 2
        eventually(lambda: info(agent).connections == 1, "it is closed though its peer reads nothing")


# --------------------------------------------------------------------- what is said


def test_the_queue_of_a_connection_is_counted_however_small_it_is(start_agent: StartAgent) -> None:
    agent = start_agent()
    with Peer(agent.socket_path) as deaf:
        for _ in range(1000):
            deaf.send(PingRequest(message="x" * 4000))
            said = info(agent)
            if said.counters["bound_slow_reader"]:
                break
        assert 0 < said.queued_bytes <= 5000
        while deaf.socket in select.select([deaf.socket], [], [], 0)[0]:
            deaf.socket.recv(1 << 20)
        eventually(lambda: info(agent).queued_bytes == 0, "all has been taken")


def gauge(path: Path, name: str) -> float:
    """What the agent says to Prometheus on the socket `path`."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        with connection.makefile("r") as page:
            (value,) = (line.split()[1] for line in page if line.startswith(f"arcbox_agent_{name} "))
    return float(value)


def test_a_peer_that_goes_away_in_the_middle_of_a_stream_is_no_failure(start_agent: StartAgent, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics"
    agent = start_agent(metrics_listen=f"unix:{metrics}")
    for number in range(1, 4):
        with Peer(agent.socket_path) as peer:
            peer.send(ExecRequest(cmd=["yes"], stream=True))
            assert isinstance(peer.reply(), ExecOutput)
            assert gauge(metrics, "requests_running") == 1
        eventually(lambda: gauge(metrics, "requests_running") == 0, "the call is over")
        eventually(lambda: gauge(metrics, "commands_running") == 0, "its command is over")
        assert info(agent).counters["commands_started"] == number
    said = info(agent)
    assert (said.counters["requests_failed"], said.counters["handler_failures"]) == (0, 0)


def test_a_call_is_over_when_its_reply_has_come(start_agent: StartAgent, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics"
    agent = start_agent(metrics_listen=f"unix:{metrics}")
    with Peer(agent.socket_path) as peer:
        for cmd, kind in ((["true"], ExecOutput), (["/nowhere"], Error)):
            assert isinstance(peer.ask(ExecRequest(cmd=cmd)), kind)
            assert gauge(metrics, "requests_running") == 0
            assert gauge(metrics, "held_bytes") == 0

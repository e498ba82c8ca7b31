"""Executions outlive their clients, their agent, and their keeper."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arcbox_agent import wire
from tests.conftest import PATIENCE, RunningAgent
from tests.containers.support import keeper_of
from tests.executions.support import Attached, connect, start

#: Lines in pieces, for about a second.
SLOWLY = (
    "i=0; while [ $i -lt 400 ]; do seq $((i * 500 + 1)) $((i * 500 + 500)); sleep 0.002; i=$((i + 1)); done; exit 6"
)
ALL = b"".join(b"%d\n" % n for n in range(1, 200_001))


@pytest.fixture
def agent(start_agent: Callable[..., RunningAgent]) -> Iterator[RunningAgent]:
    agent = start_agent(containers_at_exit="leave")
    yield agent
    if agent.process.poll() is not None:
        agent.restart()
    peer = connect(agent.socket_path)
    listed = peer.ask(wire.ListExecutionsRequest())
    assert isinstance(listed, wire.ListExecutionsResponse)
    for each in listed.executions:
        peer.ask(wire.RemoveExecutionRequest(id=each.id, force=True))


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def wait(agent: RunningAgent, id: str) -> wire.Execution:
    reply = connect(agent.socket_path).ask(wire.WaitExecutionRequest(id=id))
    assert isinstance(reply, wire.Execution), reply
    return reply


def take_some(reader: Attached, size: int) -> None:
    """Until so many bytes have come, or the agent has gone."""
    try:
        while reader.end is None and len(reader.read()) < size:
            reader.step()
    except (EOFError, ConnectionError):
        return


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_output_goes_on_at_its_cursor_under_the_next_agent(agent: RunningAgent, how: str) -> None:
    start(connect(agent.socket_path), SLOWLY, id="x")
    got = b""
    end = None
    for _ in range(4):
        reader = Attached(agent.socket_path, "x", stdout=len(got))
        take_some(reader, 150_000)
        got += reader.read()
        (agent.kill if how == "kill" else agent.stop)()
        agent.restart()
    reader = Attached(agent.socket_path, "x", stdout=len(got))
    end = reader.run()
    assert got + reader.read() == ALL
    assert (end.cause, end.exit_code, reader.gaps) == ("exited", 6, [])


def test_input_that_was_accepted_reaches_the_command_once(agent: RunningAgent) -> None:
    choice = random.Random(7)
    text = bytes(choice.randrange(256) for _ in range(1 << 16)) * 24
    start(connect(agent.socket_path), "cat", id="cat", open_stdin=True)
    echo = b""
    for round in range(5):
        client = Attached(agent.socket_path, "cat", stdout=len(echo), input=True)
        first = client.first
        assert isinstance(first, wire.Execution)
        accepted, sent = first.input_offset, first.input_offset
        try:
            while len(client.read()) + len(echo) < (round + 1) * len(text) // 5:
                if sent < len(text) and sent + 4096 <= client.accepted.until:
                    client.send(wire.StreamInput(offset=sent, data=text[sent : sent + 4096]))
                    sent += 4096
                    if choice.random() < 0.05 and accepted < sent:
                        # Once more what it may have already.
                        client.send(wire.StreamInput(offset=sent - 4096, data=text[sent - 4096 : sent]))
                    continue
                client.step()
        finally:
            echo += client.read()
        agent.kill()
        agent.restart()
    client = Attached(agent.socket_path, "cat", stdout=len(echo), input=True)
    first = client.first
    assert isinstance(first, wire.Execution)
    sent = first.input_offset
    while sent < len(text):
        if sent + 4096 > client.accepted.until:
            client.step()
            continue
        client.send(wire.StreamInput(offset=sent, data=text[sent : sent + 4096]))
        sent += 4096
    client.send(wire.StreamInput(offset=sent, close=True))
    assert client.run().exit_code == 0
    assert echo + client.read() == text


def test_an_end_without_an_agent_is_known_to_the_next(agent: RunningAgent, tmp_path: Path) -> None:
    start(connect(agent.socket_path), f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; echo last; exit 9", id="x")
    killed = start(connect(agent.socket_path), "echo $$; exec sleep 1000", id="y")
    agent.kill()
    (tmp_path / "go").touch()
    os.kill(killed.pid, signal.SIGUSR1)
    until(lambda: Path(f"/proc/{killed.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    agent.restart()
    end = wait(agent, "x")
    assert (end.cause, end.exit_code, end.output_cut) == ("exited", 9, False)
    reader = Attached(agent.socket_path, "x")
    reader.run()
    assert reader.read() == b"last\n"
    end = wait(agent, "y")
    assert (end.cause, end.signal, end.exit_code) == ("signalled", signal.SIGUSR1, -1)
    assert end.started_ns > end.created_ns > 0


def test_the_end_of_the_input_is_kept(agent: RunningAgent) -> None:
    start(connect(agent.socket_path), "sleep 0.7; cat; echo over", id="x", open_stdin=True)
    client = Attached(agent.socket_path, "x", input=True)
    client.send(wire.StreamInput(data=b"input ", close=True))
    client.until(lambda: client.accepted.closed)
    agent.kill()
    agent.restart()
    reader = Attached(agent.socket_path, "x")
    assert (reader.run().exit_code, reader.read()) == (0, b"input over\n")


@pytest.mark.parametrize("rounds", [1, 8])
def test_an_end_that_was_acknowledged_reaches_the_command(agent: RunningAgent, rounds: int) -> None:
    """Killed the moment after: the next agent must know of it."""
    for round in range(rounds):
        id = f"x{round}"
        start(connect(agent.socket_path), "sleep 0.2; cat", id=id, open_stdin=True)
        client = Attached(agent.socket_path, id, input=True)
        client.send(wire.StreamInput(data=b"all of it"))
        client.until(lambda client=client: client.accepted.offset == 9)  # type: ignore[misc]
        client.send(wire.StreamInput(offset=9, close=True))
        client.until(lambda client=client: client.accepted.closed)  # type: ignore[misc]
        agent.kill()
        agent.restart()
        reader = Attached(agent.socket_path, id)
        assert isinstance(reader.first, wire.Execution)
        assert reader.first.input_closed
        assert (reader.run().exit_code, reader.read()) == (0, b"all of it")


def test_a_time_out_holds_under_the_next_agent(agent: RunningAgent) -> None:
    start(connect(agent.socket_path), "sleep 1000", id="x", timeout_ms=1500)
    agent.kill()
    agent.restart()
    end = wait(agent, "x")
    assert (end.cause, end.signal) == ("timeout", signal.SIGKILL)


def test_a_terminal_goes_on_under_the_next_agent(agent: RunningAgent) -> None:
    start(connect(agent.socket_path), "cat", id="t", tty=True, open_stdin=True)
    client = Attached(agent.socket_path, "t", input=True)
    client.send(wire.StreamInput(data=b"one\n"))
    client.until(lambda: client.read() == b"one\r\none\r\n")
    agent.kill()
    agent.restart()
    client = Attached(agent.socket_path, "t", stdout=10, input=True)
    assert isinstance(client.first, wire.Execution)
    assert client.first.input_offset == 4
    client.send(wire.StreamInput(offset=4, data=b"two\n", close=True))
    assert (client.run().exit_code, client.read()) == (0, b"two\r\ntwo\r\n")


def test_a_keeper_that_is_killed_is_replaced(agent: RunningAgent) -> None:
    start(connect(agent.socket_path), "cat; exit 4", id="x", open_stdin=True)
    client = Attached(agent.socket_path, "x", input=True)
    client.send(wire.StreamInput(data=b"before "))
    client.until(lambda: client.read() == b"before ")
    os.kill(keeper_of(agent.directory), signal.SIGKILL)
    until(lambda: "the next keeper has what the former one held" in agent.log())
    agent.kill()
    agent.restart()
    client = Attached(agent.socket_path, "x", stdout=7, input=True)
    client.send(wire.StreamInput(offset=7, data=b"after", close=True))
    end = client.run()
    assert client.read() == b"after"
    # The code of a process whose parent was killed is known where the kernel keeps it.
    assert (end.cause, end.exit_code) in (("exited", 4), ("unknown", -1))


def test_input_is_not_repeated_where_agent_and_keeper_are_killed(agent: RunningAgent) -> None:
    # It opens its input again, so it sees no end of it while nobody writes.
    start(connect(agent.socket_path), "exec 0<>/proc/self/fd/0; dd bs=1 count=11 2>/dev/null", id="x", open_stdin=True)
    client = Attached(agent.socket_path, "x", input=True)
    client.send(wire.StreamInput(data=b"before"))
    client.until(lambda: client.read() == b"before")
    keeper = keeper_of(agent.directory)
    agent.kill()
    os.kill(keeper, signal.SIGKILL)
    agent.restart()
    client = Attached(agent.socket_path, "x", stdout=6, input=True)
    assert isinstance(client.first, wire.Execution)
    client.send(wire.StreamInput(offset=client.first.input_offset, data=b"after"))
    client.run()
    assert client.read() == b"after"


def test_an_end_that_nobody_saw_is_said_to_be_unknown(agent: RunningAgent, tmp_path: Path) -> None:
    started = start(connect(agent.socket_path), f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; exit 9", id="x")
    keeper = keeper_of(agent.directory)
    agent.kill()
    os.kill(keeper, signal.SIGKILL)
    (tmp_path / "go").touch()
    until(lambda: not Path(f"/proc/{started.pid}").exists())
    agent.restart()
    end = wait(agent, "x")
    assert (end.state, end.cause, end.exit_code, end.signal, end.output_cut) == ("ended", "unknown", -1, 0, True)


def test_one_that_cannot_be_taken_over_holds_up_neither_the_agent_nor_the_others(agent: RunningAgent) -> None:
    lost = start(connect(agent.socket_path), "exec sleep 1000", id="lost")
    start(connect(agent.socket_path), "sleep 0.5; echo here; exit 3", id="other")
    agent.kill()
    spool = agent.state_dir / "executions" / "lost" / "stdout"
    spool.unlink()
    spool.mkdir()
    agent.restart()
    reader = Attached(agent.socket_path, "other")
    assert (reader.run().exit_code, reader.read()) == (3, b"here\n")
    assert "an execution cannot be taken over, and is left as it is" in agent.log()
    # The next agent finds it as it was.
    agent.kill()
    spool.rmdir()
    agent.restart()
    os.kill(lost.pid, signal.SIGTERM)
    end = wait(agent, "lost")
    assert (end.cause, end.signal) == ("signalled", signal.SIGTERM)


def test_a_damaged_record_is_set_aside(agent: RunningAgent) -> None:
    for id in ("a", "b"):
        start(connect(agent.socket_path), "true", id=id)
        wait(agent, id)
    agent.kill()
    (agent.state_dir / "executions" / "a" / "record").write_bytes(b"{}")
    agent.restart()
    assert wait(agent, "b").exit_code == 0
    reply = connect(agent.socket_path).ask(wire.InspectExecutionRequest(id="a"))
    assert isinstance(reply, wire.Error)
    assert (agent.state_dir / "executions" / "a.damaged" / "record").read_bytes() == b"{}"
    assert "an execution's record is damaged and set aside" in agent.log()

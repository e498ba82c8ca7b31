"""Executions of a real agent: their output from any cursor, their input by offset, their end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from arcbox_agent import wire
from tests.agent.peer import Peer
from tests.conftest import PATIENCE, RunningAgent
from tests.executions.support import SHELL, Attached, connect, start


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def inspect(peer: Peer, id: str) -> wire.Execution:
    reply = peer.ask(wire.InspectExecutionRequest(id=id))
    assert isinstance(reply, wire.Execution), reply
    return reply


def refused(reply: wire.Message, code: int) -> str:
    assert isinstance(reply, wire.Error), reply
    assert reply.code == code, reply
    return reply.message


def test_output_and_end_of_a_command(agent: RunningAgent, peer: Peer) -> None:
    begun = time.time_ns()
    started = start(peer, "echo out; echo err >&2; exit 3", id="one", user="root", env={"A": "b"})
    assert (started.id, started.cmd) == ("one", [*SHELL, "echo out; echo err >&2; exit 3"])
    reader = Attached(agent.socket_path, "one", stderr=0, trace_id="t")
    end = reader.run()
    assert (reader.read(), reader.read("stderr")) == (b"out\n", b"err\n")
    assert (end.state, end.cause, end.exit_code, end.signal) == ("ended", "exited", 3, 0)
    assert begun <= end.created_ns <= end.started_ns <= end.ended_ns <= time.time_ns()
    assert [(each.stream, each.begin, each.end, each.over) for each in end.outputs] == [
        ("stdout", 0, 4, True),
        ("stderr", 0, 4, True),
    ]
    # Kept: who comes later gets the same.
    later = Attached(agent.socket_path, "one", stdout=1)
    assert (later.run().exit_code, later.read()) == (3, b"ut\n")


def test_what_is_old_and_what_is_live_join_without_a_seam(agent: RunningAgent, peer: Peer) -> None:
    start(peer, "seq 1 200000; sleep 0.3; seq 200001 400000", id="seq")
    expected = b"".join(b"%d\n" % n for n in range(1, 400_001))
    readers = [Attached(agent.socket_path, "seq", stdout=cursor) for cursor in (0, 0)]
    for reader in readers:
        reader.run()
        assert reader.read() == expected
    for cursor in (1, 65_535, 65_536, 1_000_001, len(expected)):
        late = Attached(agent.socket_path, "seq", stdout=cursor)
        late.run()
        assert late.read() == expected[cursor:]
    message = refused(Attached(agent.socket_path, "seq", stdout=len(expected) + 1).first, 400)
    assert f"is behind its end, {len(expected)}" in message


def test_the_same_start_finds_the_same_execution(agent: RunningAgent, peer: Peer) -> None:
    first = start(peer, "echo $$; sleep 1000", id="a", env={"X": "1"})
    again = start(peer, "echo $$; sleep 1000", id="a", env={"X": "1"})
    assert (again.pid, again.created_ns) == (first.pid, first.created_ns)
    other = wire.StartExecutionRequest(id="a", command=wire.ExecRequest(cmd=["true"]))
    assert "execution a is another command" in refused(peer.ask(other), 409)
    keyed = start(peer, "sleep 1000", idempotency_key="k")
    assert start(peer, "sleep 1000", idempotency_key="k").id == keyed.id
    clash = wire.StartExecutionRequest(
        id="b", idempotency_key="k", command=wire.ExecRequest(cmd=[*SHELL, "sleep 1000"])
    )
    assert f"is that of execution {keyed.id}" in refused(peer.ask(clash), 409)


def test_a_hundred_equal_starts_at_once_start_one_command(agent: RunningAgent, tmp_path: Path) -> None:
    request = wire.StartExecutionRequest(
        id="once", command=wire.ExecRequest(cmd=[*SHELL, f"echo x >>{tmp_path}/started; sleep 1000"])
    )
    peers = [connect(agent.socket_path) for _ in range(100)]
    for peer in peers:
        peer.send(request)
    replies = [peer.reply() for peer in peers]
    assert len({reply.pid for reply in replies if isinstance(reply, wire.Execution)}) == 1
    assert all(isinstance(reply, wire.Execution) for reply in replies)
    until((tmp_path / "started").exists)
    assert (tmp_path / "started").read_text() == "x\n"


@pytest.mark.parametrize("id", ["../x", ".x", "", "-", "a/b", "x" * 129])
def test_an_id_is_a_plain_word(peer: Peer, id: str) -> None:
    if id:
        request = wire.StartExecutionRequest(id=id, command=wire.ExecRequest(cmd=["true"]))
        assert "invalid execution id" in refused(peer.ask(request), 400)
    assert "execution not found" in refused(peer.ask(wire.InspectExecutionRequest(id=id)), 404)


def test_what_cannot_start_leaves_nothing(agent: RunningAgent, peer: Peer) -> None:
    for command, text in (
        (wire.ExecRequest(cmd=["/nonesuch"]), "exec failed: No such file or directory (os error 2): /nonesuch"),
        (wire.ExecRequest(cmd=["true"], user="nonesuch"), "nonesuch"),
        (wire.ExecRequest(cmd=["true"], working_dir="/nonesuch"), "/nonesuch"),
    ):
        reply = peer.ask(wire.StartExecutionRequest(id="x", command=command))
        assert isinstance(reply, wire.Error)
        assert text in reply.message
        refused(peer.ask(wire.InspectExecutionRequest(id="x")), 404)
    assert "empty command" in refused(peer.ask(wire.StartExecutionRequest(command=wire.ExecRequest())), 400)
    assert "no command" in refused(peer.ask(wire.StartExecutionRequest(id="x")), 400)
    assert os.listdir(agent.state_dir / "executions") == []
    assert os.listdir(agent.run_dir / "executions") == []


# ------------------------------------------------------------------------ input


def test_input_by_offset_reaches_the_command_once(agent: RunningAgent, peer: Peer) -> None:
    start(peer, "cat", id="cat", open_stdin=True)
    client = Attached(agent.socket_path, "cat", input=True)
    client.send(wire.StreamInput(offset=0, data=b"hello "))
    client.until(lambda: client.accepted.offset == 6)
    client.send(
        wire.StreamInput(offset=0, data=b"hello "),  # repeated
        wire.StreamInput(offset=3, data=b"lo wor"),  # partly repeated
        wire.StreamInput(offset=9, data=b"ld"),
        wire.StreamInput(offset=11, close=True),
    )
    end = client.run()
    assert client.read() == b"hello world"
    assert (client.accepted.offset, client.accepted.closed) == (11, True)
    assert (end.exit_code, end.input_offset, end.input_closed) == (0, 11, True)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (409, wire.StreamInput(offset=7, data=b"x")),
        (400, wire.StreamInput(offset=0, data=bytes(262_145))),
        (400, wire.StreamCredit(stream="stdin", until=9)),
        (400, wire.StreamControl(signal="NONESUCH")),
        (400, wire.StreamControl(rows=3)),
    ],
)
def test_what_a_client_must_not_send_ends_its_stream_alone(
    agent: RunningAgent, peer: Peer, code: int, message: wire.Message
) -> None:
    start(peer, "cat", id="cat", open_stdin=True)
    client = Attached(agent.socket_path, "cat", input=True)
    client.send(message)
    while client.end is None:
        client.step()
    refused(client.end, code)
    assert inspect(peer, "cat").state == "running"
    # Its connection, and the input, are there for the next one.
    assert isinstance(client.peer.ask(wire.PingRequest()), wire.PingResponse)
    other = Attached(agent.socket_path, "cat", input=True)
    other.send(wire.StreamInput(data=b"x", close=True))
    assert (other.run().exit_code, other.read()) == (0, b"x")


def test_input_of_any_size_waits_for_a_command_that_reads_slowly(agent: RunningAgent, peer: Peer) -> None:
    size = 24 << 20
    start(peer, "sleep 0.5; sha256sum", id="sum", open_stdin=True)
    client = Attached(agent.socket_path, "sum", input=True)
    piece = os.urandom(64 << 10)
    sent = 0
    while sent < size:
        if client.accepted.until < sent + len(piece):
            client.step()
            continue
        client.send(wire.StreamInput(offset=sent, data=piece))
        sent += len(piece)
    client.send(wire.StreamInput(offset=sent, close=True))
    client.run()
    import hashlib

    assert client.read().split()[0].decode() == hashlib.sha256(piece * (size // len(piece))).hexdigest()


def test_a_command_that_closes_its_input_is_told(agent: RunningAgent, peer: Peer) -> None:
    start(peer, "sleep 0.3; exec <&-; sleep 1000", id="deaf", open_stdin=True)
    client = Attached(agent.socket_path, "deaf", input=True)
    client.send(wire.StreamInput(data=b"does anybody hear?"))
    client.until(lambda: client.accepted.closed)
    assert inspect(peer, "deaf").state == "running"


def test_a_command_may_end_with_input_unread(agent: RunningAgent, peer: Peer) -> None:
    for number in range(5):
        start(peer, "sleep 0.2; exec head -c 5", id=f"x{number}", open_stdin=True)
        client = Attached(agent.socket_path, f"x{number}", input=True)
        sent = 0
        while sent < 1_200_000 and not client.accepted.closed:
            if sent + 60_000 <= client.accepted.until:
                client.send(wire.StreamInput(offset=sent, data=bytes(60_000)))
                sent += 60_000
            else:
                client.step()
        end = client.run()
        assert (end.exit_code, client.read()) == (0, bytes(5))
        assert client.accepted.closed
    assert "a spool failed" not in agent.log()


def test_the_output_may_end_before_the_input_and_the_command(agent: RunningAgent, peer: Peer) -> None:
    start(peer, "echo out; exec >&- 2>&-; cat >/dev/null; exit 5", id="half", open_stdin=True)
    client = Attached(agent.socket_path, "half", input=True)
    client.until(lambda: client.over == {"stdout"})
    assert client.read() == b"out\n"
    assert inspect(peer, "half").state == "running"
    client.send(wire.StreamInput(data=b"bye", close=True))
    assert client.run().exit_code == 5


def test_one_client_gives_the_input(agent: RunningAgent, peer: Peer) -> None:
    start(peer, "cat", id="cat", open_stdin=True)
    first = Attached(agent.socket_path, "cat", input=True)
    assert "is another client's" in refused(Attached(agent.socket_path, "cat", input=True).first, 409)
    assert "is another client's" in refused(peer.ask(wire.WriteExecutionRequest(id="cat", data=b"x")), 409)
    assert inspect(peer, "cat").attached == 1
    first.close()
    until(lambda: inspect(peer, "cat").attached == 0)
    reply = peer.ask(wire.WriteExecutionRequest(id="cat", offset=0, data=b"by call", close=True))
    assert reply == wire.StreamAccepted(offset=7, until=reply.until, closed=True)  # type: ignore[attr-defined]
    reader = Attached(agent.socket_path, "cat")
    assert (reader.run().exit_code, reader.read()) == (0, b"by call")
    start(peer, "cat", id="none")
    assert "without input" in refused(Attached(agent.socket_path, "none", input=True).first, 400)


# ------------------------------------------------------------- flow and bounds


def test_what_falls_off_the_front_is_a_gap_of_that_size(start_agent: Callable[..., RunningAgent]) -> None:
    agent = start_agent(execution_spool_size="256KiB")
    peer = connect(agent.socket_path)
    start(peer, "seq 1 200000", id="seq")
    reply = peer.ask(wire.WaitExecutionRequest(id="seq"))
    assert isinstance(reply, wire.Execution)
    whole = b"".join(b"%d\n" % n for n in range(1, 200_001))
    [out, _] = reply.outputs
    assert out.end == len(whole)
    assert 256 << 10 >= out.end - out.begin > 128 << 10
    reader = Attached(agent.socket_path, "seq", stdout=7)
    reader.run()
    assert [(gap.cursor, gap.bytes) for gap in reader.gaps] == [(7, out.begin - 7)]
    assert reader.read() == whole[out.begin :]
    spool = agent.state_dir / "executions" / "seq" / "stdout"
    assert spool.stat().st_blocks * 512 <= 512 << 10  # the disk is given back


def test_a_command_that_is_to_lose_nothing_waits_for_its_reader(start_agent: Callable[..., RunningAgent]) -> None:
    agent = start_agent(execution_spool_size="256KiB")
    peer = connect(agent.socket_path)
    start(peer, "seq 1 500000", id="seq", wait_when_full=True)
    until(lambda: inspect(peer, "seq").outputs[0].end >= 256 << 10)
    reader = Attached(agent.socket_path, "seq", window=64 << 10, grant=False)
    while reader.cursors["stdout"] < 64 << 10:
        reader.step()
    assert inspect(peer, "seq").state == "running"
    reader.grant = True
    reader.credit()
    end = reader.run()
    assert reader.gaps == []
    assert reader.read() == b"".join(b"%d\n" % n for n in range(1, 500_001))
    assert end.outputs[0].begin > 0


def test_an_output_that_no_reader_wants_is_not_waited_for(start_agent: Callable[..., RunningAgent]) -> None:
    agent = start_agent(execution_spool_size="256KiB")
    peer = connect(agent.socket_path)
    start(peer, "head -c 3000000 /dev/zero >&2; echo over", id="x", wait_when_full=True)
    reader = Attached(agent.socket_path, "x")
    end = reader.run()
    assert (end.exit_code, reader.read()) == (0, b"over\n")
    assert [(each.stream, each.end) for each in end.outputs] == [("stdout", 5), ("stderr", 3_000_000)]


def test_a_key_is_free_again_when_its_start_failed(peer: Peer) -> None:
    for _ in range(2):
        request = wire.StartExecutionRequest(
            idempotency_key="k", command=wire.ExecRequest(cmd=["true"], working_dir="x")
        )
        assert "must be an absolute path" in refused(peer.ask(request), 400)
    request = wire.StartExecutionRequest(id="named", idempotency_key="k", command=wire.ExecRequest(cmd=["true"]))
    started = peer.ask(request)
    assert isinstance(started, wire.Execution), started


def test_a_command_waits_for_a_reader_that_has_gone_for_a_while(start_agent: Callable[..., RunningAgent]) -> None:
    agent = start_agent(execution_spool_size="256KiB", execution_wait="1")
    peer = connect(agent.socket_path)
    start(peer, "seq 1 500000", id="seq", wait_when_full=True)
    # Nobody comes: after the time it goes on, and says what is missing.
    end = peer.ask(wire.WaitExecutionRequest(id="seq"))
    assert isinstance(end, wire.Execution)
    assert (end.exit_code, end.outputs[0].end) == (0, 3_388_895)
    assert end.outputs[0].begin > 0


def test_a_reader_that_does_not_read_holds_up_nobody(agent: RunningAgent, peer: Peer) -> None:
    start(peer, "head -c 8000000 /dev/zero", id="much")
    idle = Attached(agent.socket_path, "much", window=1, grant=False)
    reader = Attached(agent.socket_path, "much")
    assert (reader.run().exit_code, len(reader.read())) == (0, 8_000_000)
    # What it did not grant was not sent.
    idle.step()
    assert idle.read() == b"\0"
    idle.grant, idle.window = True, 1 << 20
    idle.credit()
    assert (idle.run().exit_code, len(idle.read())) == (0, 8_000_000)


def test_executions_are_kept_for_their_time_and_within_the_bounds(start_agent: Callable[..., RunningAgent]) -> None:
    agent = start_agent(max_executions="3", execution_spool_total="1MiB", execution_spool_size="1MiB")
    peer = connect(agent.socket_path)
    for number in range(5):
        start(peer, "true", id=f"e{number}")
        peer.ask(wire.WaitExecutionRequest(id=f"e{number}"))
    listed = peer.ask(wire.ListExecutionsRequest(all=True))
    assert isinstance(listed, wire.ListExecutionsResponse)
    assert [each.id for each in listed.executions] == ["e2", "e3", "e4"]
    assert peer.ask(wire.ListExecutionsRequest()) == wire.ListExecutionsResponse()
    start(peer, "true", id="short", keep_ms=50)
    peer.ask(wire.WaitExecutionRequest(id="short"))
    until(lambda: isinstance(peer.ask(wire.InspectExecutionRequest(id="short")), wire.Error))
    for id in ("big1", "big2"):
        start(peer, "head -c 700000 /dev/zero", id=id)
        peer.ask(wire.WaitExecutionRequest(id=id))
    until(lambda: isinstance(peer.ask(wire.InspectExecutionRequest(id="big1")), wire.Error))
    assert inspect(peer, "big2").outputs[0].end == 700_000
    until(lambda: sorted(os.listdir(agent.state_dir / "executions")) == ["big2"])


# ---------------------------------------------------------------------- the end


@pytest.mark.parametrize(
    ("script", "signal_name", "cause", "number"),
    [
        ("kill -9 $$", "", "signalled", signal.SIGKILL),
        ("sleep 1000", "TERM", "signalled", signal.SIGTERM),
        ("sleep 1000", "KILL", "killed", signal.SIGKILL),
        ("trap 'exit 4' USR1; while :; do sleep 0.05; done", "USR1", "exited", 0),
    ],
)
def test_the_cause_of_an_end(peer: Peer, script: str, signal_name: str, cause: str, number: int) -> None:
    start(peer, f"echo ready; {script}", id="x")
    if signal_name:
        until(lambda: inspect(peer, "x").outputs[0].end == 6)
        time.sleep(0.1)  # the trap is set after the word
        assert peer.ask(wire.SignalExecutionRequest(id="x", signal=signal_name)) == wire.Empty()
    end = peer.ask(wire.WaitExecutionRequest(id="x"))
    assert isinstance(end, wire.Execution)
    assert (end.cause, end.signal, end.exit_code) == (cause, number, -1 if number else 4)
    assert "has ended" in refused(peer.ask(wire.SignalExecutionRequest(id="x")), 409)


def test_a_time_out_ends_all_of_it(agent: RunningAgent, peer: Peer) -> None:
    start(peer, "sleep 1000 & echo $!; wait", id="x", timeout_ms=300)
    reader = Attached(agent.socket_path, "x")
    end = reader.run()
    assert (end.cause, end.signal, end.exit_code) == ("timeout", signal.SIGKILL, -1)
    until(lambda: not Path(f"/proc/{int(reader.data['stdout'])}").exists())


def test_a_wait_may_be_over_first(peer: Peer) -> None:
    start(peer, "sleep 1000", id="x")
    reply = peer.ask(wire.WaitExecutionRequest(id="x", timeout_ms=50))
    assert isinstance(reply, wire.Execution)
    assert reply.state == "running"
    assert "runs: end it first" in refused(peer.ask(wire.RemoveExecutionRequest(id="x")), 409)
    assert peer.ask(wire.RemoveExecutionRequest(id="x", force=True)) == wire.Empty()
    assert "execution not found" in refused(peer.ask(wire.InspectExecutionRequest(id="x")), 404)


def test_what_is_left_in_the_background_neither_delays_the_end_nor_dies(agent: RunningAgent, peer: Peer) -> None:
    start(peer, "sleep 1000 & echo $!", id="x")
    reader = Attached(agent.socket_path, "x")
    end = reader.run()
    assert (end.cause, end.exit_code, end.output_cut) == ("exited", 0, True)
    left = int(reader.read())
    assert Path(f"/proc/{left}").exists()
    os.kill(left, signal.SIGKILL)


def test_a_helper_may_write_after_the_end(agent: RunningAgent, peer: Peer) -> None:
    start(peer, "{ sleep 0.5; cat; } & exec >/dev/null", id="none")
    start(peer, "echo early | { cat; }; echo late | (sleep 0.4; cat) &", id="x")
    reader = Attached(agent.socket_path, "x")
    end = reader.run()
    assert (reader.read(), end.output_cut) == (b"early\nlate\n", False)


# -------------------------------------------------------------------- terminals


def test_a_terminal_has_a_size_that_changes(agent: RunningAgent, peer: Peer) -> None:
    start(
        peer, "stty size; read line; stty size; exit 7", id="t", tty=True, tty_height=30, tty_width=100, open_stdin=True
    )
    client = Attached(agent.socket_path, "t", input=True)
    client.until(lambda: b"30 100\r\n" in client.read())
    client.send(wire.StreamControl(rows=40, columns=120), wire.StreamInput(data=b"go\n"))
    end = client.run()
    assert client.read() == b"30 100\r\ngo\r\n40 120\r\n"
    assert (end.exit_code, end.tty) == (7, True)
    assert [each.stream for each in end.outputs] == ["stdout"]


def test_a_key_interrupts_what_runs_in_a_terminal(agent: RunningAgent, peer: Peer) -> None:
    start(peer, "echo ready; exec sleep 1000", id="t", tty=True, open_stdin=True)
    client = Attached(agent.socket_path, "t", input=True)
    client.until(lambda: b"ready" in client.read())
    client.send(wire.StreamInput(data=b"\x03"))
    end = client.run()
    assert (end.cause, end.signal) == ("signalled", signal.SIGINT)


def test_the_end_of_a_terminals_input_is_typed(agent: RunningAgent, peer: Peer) -> None:
    start(peer, "cat; echo over", id="t", tty=True, open_stdin=True)
    client = Attached(agent.socket_path, "t", input=True)
    client.send(wire.StreamInput(data=b"word\n", close=True))
    assert client.run().exit_code == 0
    assert client.read() == b"word\r\nword\r\nover\r\n"


# ------------------------------------------------------------------- containers


def test_an_execution_in_a_container_ends_with_it(peer: Peer) -> None:
    made = peer.ask(wire.CreateContainerRequest(id="box", cmd=["sleep", "1000"]))
    assert isinstance(made, wire.CreateContainerResponse)
    assert peer.ask(wire.StartContainerRequest(id="box")) == wire.Empty()
    started = start(peer, "sleep 1000", id="in", container_id="box")
    assert started.container_id == "box"
    listed = peer.ask(wire.ListExecutionsRequest(container_id="box"))
    assert isinstance(listed, wire.ListExecutionsResponse)
    assert [each.id for each in listed.executions] == ["in"]
    peer.ask(wire.KillContainerRequest(id="box"))
    end = peer.ask(wire.WaitExecutionRequest(id="in"))
    assert isinstance(end, wire.Execution)
    assert (end.cause, end.signal) == ("signalled", signal.SIGKILL)
    request = wire.StartExecutionRequest(command=wire.ExecRequest(cmd=["true"], container_id="box"))
    assert "container is not running" in refused(peer.ask(request), 400)


def test_a_client_detaches_and_the_command_goes_on(agent: RunningAgent, peer: Peer) -> None:
    start(peer, "cat", id="cat", open_stdin=True)
    client = Attached(agent.socket_path, "cat", input=True)
    client.send(wire.StreamInput(data=b"one"))
    client.until(lambda: client.read() == b"one")
    client.send(wire.StreamControl(detach=True))
    while client.end is None:
        client.step()
    assert client.end == wire.Empty()
    other = Attached(agent.socket_path, "cat", stdout=client.cursors["stdout"], input=True)
    other.send(wire.StreamInput(offset=3, data=b"two", close=True))
    assert (other.run().exit_code, other.read()) == (0, b"two")
    assert isinstance(client.peer.ask(wire.PingRequest()), wire.PingResponse)

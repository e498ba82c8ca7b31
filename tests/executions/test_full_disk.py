"""A spool on a disk that is full: nothing is lost but what may be, and the command waits."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from arcbox_agent import wire
from tests.executions.support import Attached, connect, start
from tools.soak import small_disk
from tools.stress.agent import PATIENCE, AgentProcess


@pytest.mark.parametrize("waits", [False, True])
def test_a_full_disk_holds_up_the_command(tmp_path: Path, waits: bool) -> None:
    with small_disk(tmp_path / "disk", "3m"):
        agent = AgentProcess(tmp_path, state_dir=tmp_path / "disk" / "state")
        agent.start()
        agent.wait_until_it_answers()
        try:
            peer = connect(agent.socket_path)
            start(peer, "seq 1 1000000", id="x", wait_when_full=waits)
            whole = b"".join(b"%d\n" % n for n in range(1, 1_000_001))
            if not waits:
                end = peer.ask(wire.WaitExecutionRequest(id="x"))
                assert isinstance(end, wire.Execution)
                assert (end.exit_code, end.outputs[0].end) == (0, len(whole))
            reader = Attached(agent.socket_path, "x")
            last = reader.run()
            missing = sum(gap.bytes for gap in reader.gaps)
            assert reader.read() == whole[missing:]
            assert (missing > 0) is not waits
            assert last.exit_code == 0
            # Once ended ones are gone there is room again.
            peer.ask(wire.RemoveExecutionRequest(id="x"))
            start(peer, "echo again", id="y")
            again = Attached(agent.socket_path, "y")
            assert (again.run().exit_code, again.read()) == (0, b"again\n")
        finally:
            agent.stop()


@pytest.mark.parametrize("tty", [False, True])
def test_nothing_is_lost_while_the_disk_takes_nothing(tmp_path: Path, tty: bool) -> None:
    with small_disk(tmp_path / "disk", "3m"):
        agent = AgentProcess(tmp_path, state_dir=tmp_path / "disk" / "state")
        agent.start()
        agent.wait_until_it_answers()
        try:
            peer = connect(agent.socket_path)
            script = "stty -echo 2>/dev/null; echo ready; read line; seq 1 20000; echo over"
            start(peer, script, id="x", open_stdin=True, wait_when_full=True, tty=tty)
            client = Attached(agent.socket_path, "x", input=True)
            client.until(lambda: b"ready" in client.read())
            ballast = tmp_path / "disk" / "ballast"
            with open(ballast, "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                while True:
                    file.write(bytes(1 << 12))
            client.send(wire.StreamInput(data=b"go\n"))
            assert "cannot be spooled" in _log_of(agent, "cannot be spooled")
            ballast.unlink()
            end = client.run()
            newline = b"\r\n" if tty else b"\n"
            words = [b"ready", *(b"%d" % n for n in range(1, 20_001)), b"over"]
            assert client.read() == b"".join(word + newline for word in words)
            assert end.exit_code == 0
        finally:
            agent.stop()


def _log_of(agent: AgentProcess, text: str) -> str:
    """The agent's log, once it has that text."""
    deadline = time.monotonic() + PATIENCE
    while text not in agent.log():
        assert time.monotonic() < deadline, agent.log()
        time.sleep(0.01)
    return agent.log()

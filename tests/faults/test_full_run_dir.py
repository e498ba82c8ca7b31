"""A run directory without room: nothing is lost, or the start is refused and says why."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcbox_agent import sync
from arcbox_agent.errors import RequestError
from tests.containers.support import eventually, lines_of
from tools.stress.agent import PATIENCE, AgentProcess


@contextlib.contextmanager
def agent_with_small_run_dir(options: str) -> Iterator[AgentProcess]:
    with tempfile.TemporaryDirectory(prefix="arcbox-") as name:
        agent = AgentProcess(Path(name), settings={"containers_at_exit": "leave"})
        agent.run_dir.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", agent.run_dir], check=True)
        try:
            agent.start()
            agent.wait_until_it_answers()
            yield agent
        finally:
            if agent.running:
                agent.kill()
            subprocess.run(["umount", "-l", agent.run_dir], check=True)


def fill(directory: Path) -> Path:
    ballast = directory / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    return ballast


@pytest.mark.parametrize("many", [1, 200])
def test_a_start_without_room_is_refused_and_says_why(many: int) -> None:
    """No bytes, or no names: `many` of the names are free."""
    options = "size=1m,nr_inodes=400" if many > 1 else f"size=1m,nr_inodes={many + 4}"
    with agent_with_small_run_dir(options) as agent, sync.connect(agent.address, timeout=PATIENCE) as client:
        ballast = fill(agent.run_dir)
        client.create_container(id="c", cmd=["/bin/sh", "-c", "echo hello; exit 7"])
        with pytest.raises(RequestError, match="No space left on device"):
            client.start_container("c")
        (info,) = client.list_containers(all=True)
        assert (info.state, info.started_at) == ("created", 0)
        assert "No space left on device" in info.error
        assert client.exec(["/bin/echo", "hello"]).stdout == b"hello\n"  # which needs nothing there
        ballast.unlink()
        if many > 1:
            client.start_container("c")
            assert client.wait_container("c").status_code == 7
            assert lines_of(client, "c") == [b"hello"]
        agent.stop()


def test_a_run_directory_that_gets_full_costs_neither_output_nor_a_code() -> None:
    with agent_with_small_run_dir("size=1m") as agent:
        go = agent.directory / "go"
        script = f"echo begin; while ! [ -e {go} ]; do sleep 0.02; done; seq 100000; exit 7"
        with sync.connect(agent.address, timeout=PATIENCE) as client:
            client.create_container(id="c", cmd=["/bin/sh", "-c", script])
            client.start_container("c")
            eventually(lambda: lines_of(client, "c") == [b"begin"])
            ballast = fill(agent.run_dir)
            go.touch()
            end = client.wait_container("c")
            assert (end.status_code, end.error, end.output_cut) == (7, "", False)
            assert lines_of(client, "c") == [b"begin", *(b"%d" % number for number in range(1, 100001))]
        # The agent finds its containers again, full or not.
        agent.kill()
        agent.start()
        agent.wait_until_it_answers()
        with sync.connect(agent.address, timeout=PATIENCE) as client:
            assert client.wait_container("c").status_code == 7
            ballast.unlink()
            client.start_container("c")
            assert client.wait_container("c").status_code == 7
            client.remove_container("c")
        agent.stop()

"""What the agent costs while it does nothing: memory, connections, the time to start."""

from __future__ import annotations

import compileall
import os
import resource
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.conftest import Compare
from benchmarks.rivals_running import BARE_PYTHON
from benchmarks.table import Row
from tools.stress.agent import PATIENCE, PING, ROOT, AgentProcess, memory

CONNECTIONS = 1000


@pytest.fixture
def agent() -> Iterator[AgentProcess]:
    with tempfile.TemporaryDirectory(prefix="arcbox-") as name:
        agent = AgentProcess(Path(name))
        try:
            yield agent
        finally:
            if agent.running:
                agent.kill()


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_idle_connections(compare: Compare, agent: AgentProcess) -> None:
    count = 50 if compare.quick else CONNECTIONS

    def bytes_each() -> float:
        # A new agent each time: memory that a closed connection gave back would hide the cost.
        agent.start()
        agent.wait_until_it_answers()
        first = [_connection_that_works(agent) for _ in range(10)]
        before = memory(agent.pid)["Pss"]
        idle = [_connection_that_works(agent) for _ in range(count)]
        after = memory(agent.pid)["Pss"]
        for connection in (*first, *idle):
            connection.close()
        agent.stop()
        return (after - before) / count

    compare.figure(f"idle connections, {CONNECTIONS}: memory each", bytes_each, 2000, unit="B", rounds=5)


def _connection_that_works(agent: AgentProcess) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    connection.connect(str(agent.socket_path))
    connection.sendall(PING)
    assert connection.recv(100)[4:8] == b"\x00\x00\x10\x01"
    return connection


def test_start(compare: Compare, agent: AgentProcess) -> None:
    """From exec to listening, and the memory then; a Python that does nothing beside it."""
    # As pip installs it.  Else each start would compile the sources where the environment
    # has PYTHONDONTWRITEBYTECODE, and take twice as long.
    compileall.compile_dir(ROOT / "src", quiet=1)
    ours: list[float] = []
    bare: list[float] = []

    def start() -> float:
        agent.socket_path.unlink(missing_ok=True)
        begin = time.perf_counter()
        agent.start()
        while not _listens(agent.socket_path):
            assert agent.running, agent.log()
            time.sleep(0.0003)
        seconds = time.perf_counter() - begin
        agent.wait_until_it_answers()
        time.sleep(0.05)
        ours.append(memory(agent.pid)["Pss"])
        agent.stop()
        return seconds

    def start_bare() -> float:
        begin = time.perf_counter()
        with subprocess.Popen(
            [*BARE_PYTHON, "-c", "import os; os.write(1, b'.'); os.read(0, 1)"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None and process.stdout.read(1) == b"."
            seconds = time.perf_counter() - begin
            bare.append(memory(process.pid)["Pss"])
            process.communicate()
        return seconds

    compare(
        "the agent: time to listening",
        start,
        start_bare,
        1 / 4.5,
        rival_name="bare python -ISE",
        measured=True,
        rounds=15,
        seconds=10,
    )
    compare.add(
        Row.against_figure(
            "the agent: PSS",
            ours,
            18e6,
            unit="B",
            rival=bare,
            rival_name="bare python -ISE",
            higher_is_better=False,
        )
    )


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(os.fspath(path))
        except OSError:
            return False
        return True

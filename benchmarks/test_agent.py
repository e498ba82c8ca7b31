"""The agent under load, beside C that does the same work: ping, spawn, streamed output."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcbox_agent import wire
from benchmarks.conftest import Compare
from benchmarks.rivals_running import Load, Target, ask, rival, running
from benchmarks.table import Row
from tools.stress.agent import AgentProcess, forget_peak_rss, peak_rss

GIB = 1 << 30
#: The relay at its best here: larger or smaller buffers and pipes were slower.
RELAY = (str(256 << 10), str(1 << 20))


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="arcbox-") as name:
        yield Path(name)


@pytest.fixture
def agent(directory: Path) -> Iterator[Target]:
    process = AgentProcess(directory)
    process.start()
    try:
        process.wait_until_it_answers()
        yield Target(process.socket_path, process.pid)
        process.stop()
    finally:
        if process.running:
            process.kill()


@pytest.fixture
def ping(agent: Target, directory: Path) -> tuple[Path, Path, str]:
    """The files of a ping and its pong, checked, and the version in the pong."""
    request = wire.encode_message(wire.PingRequest(message="ping"))
    reply = ask(agent.socket_path, request)
    version = wire.PingResponse.decode(reply[8:]).version
    assert reply == wire.encode_message(wire.PingResponse(message="pong: ping", version=version))
    return _file(directory / "ping", request), _file(directory / "pong", reply), version


@pytest.fixture
def ping_server(ping: tuple[Path, Path, str], directory: Path) -> Iterator[Target]:
    request, reply, version = ping
    path = directory / "rival.sock"
    with running(rival("ping_server"), path, version, listening_at=path) as process:
        assert ask(path, request.read_bytes()) == reply.read_bytes()
        yield Target(path, process.pid)


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_ping_one_at_a_time(compare: Compare, agent: Target, ping_server: Target, ping: tuple[Path, Path, str]) -> None:
    # All on one core: what is measured is work, not how soon another core wakes up.
    cpu = _cpus()[0]
    agent.run_on(cpu)
    ping_server.run_on(cpu)
    load = Load(*ping[:2], connections=1, depth=1, total=100 if compare.quick else 20_000)
    compare(
        "ping, one at a time, one core, p50",
        lambda: load.run(agent, cpu)[1],
        lambda: load.run(ping_server, cpu)[1],
        1 / 1.5,
        rival_name="C epoll",
        measured=True,
        seconds=8,
    )


@pytest.mark.parametrize(("connections", "depth"), [(1, 16), (32, 16)])
def test_ping_pipelined(
    compare: Compare,
    agent: Target,
    ping_server: Target,
    ping: tuple[Path, Path, str],
    connections: int,
    depth: int,
) -> None:
    cpus = _cpus()
    # One connection has nothing to do while it waits: one core, as above.
    theirs, mine = (cpus[0], cpus[-1]) if connections > 1 else (cpus[0], cpus[0])
    agent.run_on(theirs)
    ping_server.run_on(theirs)
    load = Load(*ping[:2], connections, depth, 5_000 if compare.quick else 250_000 * min(connections, 4))
    cpu: dict[int, list[float]] = {agent.pid: [], ping_server.pid: []}

    def run(target: Target) -> float:
        rate, _, spent = load.run(target, mine)
        cpu[target.pid].append(spent)
        return rate

    plural = "s" if connections > 1 else ", one core"
    compare(
        f"ping, {connections} connection{plural}, pipelined",
        lambda: run(agent),
        lambda: run(ping_server),
        0.5,
        rival_name="C epoll",
        unit="/s",
        measured=True,
        seconds=12,
    )
    compare.add(
        Row.against_figure(
            f"ping, {connections} connection{plural}, pipelined, CPU each",
            cpu[agent.pid],
            0.4e-6,
            unit="s",
            rival=cpu[ping_server.pid],
            rival_name="C epoll",
            higher_is_better=False,
        )
    )


def test_exec_true(compare: Compare, agent: Target, directory: Path) -> None:
    cpu = _cpus()[0]
    request = wire.encode_message(wire.ExecRequest(cmd=["/bin/true"]))
    reply = ask(agent.socket_path, request)
    assert reply == wire.encode_message(wire.ExecOutput(stream="stdout", done=True))
    count = 20 if compare.quick else 300
    load = Load(_file(directory / "true", request), _file(directory / "end", reply), 1, 1, count)

    def posix_spawn() -> float:
        import subprocess

        done = subprocess.run([rival("spawn"), str(count), "/bin/true"], check=True, stdout=subprocess.PIPE)
        return int(done.stdout) / 1e9

    compare(
        "exec /bin/true: two pipes, wait, reply",
        lambda: load.run(agent, cpu)[1],
        posix_spawn,
        1 / 1.2,
        rival_name="C posix_spawn, no RPC",
        measured=True,
        seconds=10,
    )


def test_exec_output(compare: Compare, agent: Target, directory: Path) -> None:
    import subprocess

    size = (4 << 20) if compare.quick else GIB
    command = [str(rival("produce")), str(size)]
    request = _file(directory / "produce", wire.encode_message(wire.ExecRequest(cmd=command, stream=True)))
    relay_at = directory / "relay.sock"
    first: dict[str, list[float]] = {"frames": [], "raw": []}

    def drain(path: Path, kind: str) -> float:
        done = subprocess.run([rival("drain"), path, request, str(size), kind], check=True, stdout=subprocess.PIPE)
        seconds, first_byte = map(float, done.stdout.split())
        first[kind].append(first_byte / 1e9)
        return size / seconds

    with running(rival("relay"), relay_at, *RELAY, *command, listening_at=relay_at):
        forget_peak_rss(agent.pid)
        compare(
            "exec output, 1 GiB",
            lambda: drain(agent.socket_path, "frames"),
            lambda: drain(relay_at, "raw"),
            0.9,
            rival_name="C relay",
            unit="B/s",
            measured=True,
            seconds=12,
        )
        peak = float(peak_rss(agent.pid))
    compare.add(
        Row.against_rival(
            "exec output, first byte",
            first["frames"],
            first["raw"],
            0.5,
            unit="s",
            rival_name="C relay",
            higher_is_better=False,
        )
    )
    compare.add(
        Row.against_figure(
            "exec output, the agent's peak RSS",
            [peak],
            30e6,
            unit="B",
            rival=[],
            rival_name="",
            higher_is_better=False,
        )
    )


def _cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0))

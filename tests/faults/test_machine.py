"""What the machine does to the agent: a full disk, a read-only or missing state directory, no descriptors."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arcbox_agent import connect
from arcbox_agent.errors import RequestError
from arcbox_agent.wire import LogEntry
from tools.soak import small_disk
from tools.stress.agent import PATIENCE, PING, AgentProcess

#: The whole disk of the state directory.
DISK = 4 << 20


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="arcbox-") as name:
        yield Path(name)


@pytest.fixture
def disk(directory: Path) -> Iterator[Path]:
    with small_disk(directory / "disk", str(DISK)):
        yield directory / "disk"


@pytest.fixture
def agent(directory: Path, disk: Path) -> Iterator[AgentProcess]:
    agent = AgentProcess(
        directory,
        state_dir=disk / "state",
        settings={"containers_at_exit": "stop", "log_max_size": "64MiB"},
    )
    agent.start()
    try:
        agent.wait_until_it_answers()
        yield agent
        agent.stop()
    finally:
        if agent.running:
            agent.kill()


def fill(disk: Path) -> Path:
    """Not one byte is left."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        with pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(1 << 16))
    return ballast


def test_a_container_goes_on_while_the_disk_is_full_and_the_gap_is_recorded(
    agent: AgentProcess, disk: Path, directory: Path
) -> None:
    # 16 MB of lines, four times the disk and far more than any buffer on the way;
    # then, when there is room again, a last line.
    done, more = directory / "done", directory / "more"
    total = 160_000
    script = (
        f"seq -f '%0.0f {'x' * 90}' 1 {total}; touch {done}; "
        f"while [ ! -e {more} ]; do sleep 0.05; done; echo the last line"
    )

    async def run() -> list[LogEntry]:
        async with connect(agent.address, timeout=PATIENCE) as client:
            await client.create_container(id="writer", cmd=["/bin/sh", "-c", script])
            await client.start_container("writer")
            await asyncio.to_thread(wait_for, done.exists)
            assert (await client.ping("there?")).message == "pong: there?"
            subprocess.run(["mount", "-o", f"remount,size={16 * DISK}", disk], check=True)
            more.touch()
            assert (await client.wait_container("writer")).status_code == 0
            lines = [entry async for entry in client.logs("writer")]
            await client.remove_container("writer")
            return lines

    lines = asyncio.run(run())
    assert lines[-1].data == b"the last line"
    lost, numbers = 0, []
    for line in lines[:-1]:
        if line.gap is not None:
            lost += line.gap.lines
        else:
            numbers.append(int(line.data.split()[0]))
    # In order, none twice, and each that is not there is counted.
    assert numbers == sorted(set(numbers))
    assert lost > 0
    assert len(numbers) + lost == total


def test_calls_that_need_the_disk_say_that_it_is_full_and_work_again_later(agent: AgentProcess, disk: Path) -> None:
    async def run() -> None:
        async with connect(agent.address, timeout=PATIENCE) as client:
            await client.create_container(id="before", cmd=["/bin/sh", "-c", "echo hello; exit 7"])
            ballast = fill(disk)
            with pytest.raises(RequestError, match="(?i)no space left") as refused:
                for number in range(100):
                    await client.create_container(id=f"full-{number}", cmd=["/bin/true"])
            assert "None" not in refused.value.message
            # What needs no disk goes on.
            assert (await client.exec(["/bin/echo", "still here"])).stdout == b"still here\n"
            ballast.unlink()
            await client.create_container(id="after", cmd=["/bin/true"])
            for id, code in (("before", 7), ("after", 0)):
                await client.start_container(id)
                assert (await client.wait_container(id)).status_code == code
            assert [entry.data async for entry in client.logs("before")] == [b"hello"]
            for info in await client.list_containers(all=True):
                await client.remove_container(info.id)

    asyncio.run(run())


def test_a_state_directory_that_cannot_be_written_is_an_error_that_says_what_to_do(directory: Path, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    agent = AgentProcess(directory, state_dir=disk / "state")
    agent.start()
    wait_for(lambda: not agent.running)
    assert "it is on a read-only file system: mount one that can be written" in agent.log()
    assert str(disk / "state") in agent.log()
    assert "Traceback" not in agent.log()


def test_a_state_directory_that_is_a_file_is_an_error_that_says_so(directory: Path) -> None:
    (directory / "state").write_text("in the way")
    agent = AgentProcess(directory)
    agent.start()
    wait_for(lambda: not agent.running)
    assert str(directory / "state") in agent.log()
    assert "Traceback" not in agent.log()


def test_a_full_descriptor_table_slows_accepting_and_no_more(agent: AgentProcess) -> None:
    pid = agent.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    room = max(map(int, os.listdir(f"/proc/{pid}/fd"))) + 21
    connections = [connection_to(agent) for _ in range(10)]
    for connection in connections:
        assert pong(connection)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (room, limits[1]))
    try:
        waiting = [connection_to(agent) for _ in range(60)]
        for connection in waiting:
            connection.sendall(PING)
        # Those who were there before are served as ever, and nothing spins.
        cpu = agent.cpu_seconds()
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            assert all(pong(connection) for connection in connections)
            time.sleep(0.05)
        assert agent.cpu_seconds() - cpu < 0.5
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    # And when there are descriptors again, everybody who waited gets an answer.
    for connection in waiting:
        assert connection.recv(100)[4:8] == b"\x00\x00\x10\x01"
    for connection in (*connections, *waiting):
        connection.close()
    assert agent.log().count("EMFILE") + agent.log().count("Too many open files") <= 2


def test_a_command_without_descriptors_is_refused_with_the_reason(agent: AgentProcess) -> None:
    async def run() -> None:
        async with connect(agent.address, timeout=PATIENCE) as client:
            await client.create_container(id="c", cmd=["/bin/sleep", "1000"])
            await client.start_container("c")
            await client.exec(["/bin/true"])
            limits = resource.prlimit(agent.pid, resource.RLIMIT_NOFILE)
            room = next(fd for fd in itertools.count() if not os.path.lexists(f"/proc/{agent.pid}/fd/{fd}"))
            resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (room, limits[1]))
            try:
                for where in ("", "c"):
                    with pytest.raises(RequestError, match=r"^exec failed: Too many open files \(os error 24\)"):
                        await client.exec(["/bin/true"], container=where)
            finally:
                resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, limits)
            for where in ("", "c"):
                assert (await client.exec(["/bin/true"], container=where)).exit_code == 0
            await client.remove_container("c", force=True)

    asyncio.run(run())
    assert "Traceback" not in agent.log()


def connection_to(agent: AgentProcess) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    connection.connect(str(agent.socket_path))
    return connection


def pong(connection: socket.socket) -> bool:
    connection.sendall(PING)
    return connection.recv(100)[4:8] == b"\x00\x00\x10\x01"


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)

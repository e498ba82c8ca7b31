"""Stop: TERM, then KILL, of everything a container started; and it holds up nothing else."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import arcbox_agent
from arcbox_agent import sync, wire
from arcbox_agent.agent.processes.lanes import DISK_THREADS
from arcbox_agent.errors import BadRequestError

from .support import alive, eventually, lines_of, run

#: Ends at TERM only after it was asked twice is not what programs do; this one never does.
DEAF = "trap '' TERM; echo ready; while :; do sleep 1000; done"


def test_a_container_that_ends_at_term_is_stopped_at_once(client: sync.Client) -> None:
    client.create_container(
        cmd=["sh", "-c", "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done 2>/dev/null"], name="x"
    )
    client.start_container("x")
    eventually(lambda: lines_of(client, "x") == [b"ready"])
    client.stop_container("x", timeout=60)
    (info,) = client.list_containers(all=True)
    assert (info.state, info.status, info.exit_code) == ("stopped", "Stopped", 5)
    assert lines_of(client, "x") == [b"ready", b"bye"]


def test_a_container_that_is_deaf_to_term_is_killed_in_the_end(client: sync.Client) -> None:
    client.create_container(cmd=["sh", "-c", DEAF], name="x")
    client.start_container("x")
    eventually(lambda: lines_of(client, "x") == [b"ready"])
    began = time.monotonic()
    client.stop_container("x", timeout=1)
    assert time.monotonic() - began > 0.9  # it was given its second
    (info,) = client.list_containers(all=True)
    assert (info.status, info.exit_code, info.signal) == ("Stopped", 137, 9)


def test_a_stop_without_patience_kills_at_once(client: sync.Client) -> None:
    client.create_container(cmd=["sh", "-c", DEAF], name="x")
    client.start_container("x")
    eventually(lambda: lines_of(client, "x") == [b"ready"])
    client.stop_container("x", timeout=0)
    assert client.list_containers(all=True)[0].signal == 9


def test_a_second_stop_joins_the_first_and_can_make_it_shorter(agent: Any) -> None:
    async def main() -> None:
        async with arcbox_agent.connect(agent.address, wait=10) as client:
            await client.create_container(cmd=["sh", "-c", DEAF], name="x")
            await client.start_container("x")
            await asyncio.sleep(0.2)
            slow = [asyncio.create_task(client.stop_container("x", timeout=50)) for _ in range(3)]
            await asyncio.sleep(0.2)
            assert not any(task.done() for task in slow)
            await client.stop_container("x", timeout=0)
            await asyncio.gather(*slow)

    run(main(), timeout=40)


def test_stop_reaches_grandchildren_and_those_that_made_sessions_of_their_own(client: sync.Client) -> None:
    script = (
        "sh -c 'sleep 1000 & echo $!; wait' & setsid sh -c 'sleep 1000 & echo $!; wait' & "
        "(setsid sh -c 'setsid sleep 1000 & echo $!; exit' &) ; wait"
    )
    client.create_container(cmd=["sh", "-c", script], name="x")
    client.start_container("x")
    eventually(lambda: len(lines_of(client, "x")) == 3)
    pids = [int(line) for line in lines_of(client, "x")]
    assert all(map(alive, pids))
    client.stop_container("x", timeout=30)
    assert not any(map(alive, pids))


def test_everything_gets_its_time_to_end_even_when_the_main_process_is_gone(client: sync.Client) -> None:
    child = "trap 'sleep 0.5; echo child is done; exit' TERM; echo ready; while :; do sleep 0.05; done 2>/dev/null"
    client.create_container(cmd=["sh", "-c", f'setsid sh -c "{child}" & wait'], name="x")
    client.start_container("x")
    eventually(lambda: lines_of(client, "x") == [b"ready"])
    client.stop_container("x", timeout=30)
    assert lines_of(client, "x") == [b"ready", b"child is done"]


def test_a_main_process_that_lets_its_workers_finish_finds_them_alive(client: sync.Client) -> None:
    worker = "trap 'echo told; exit 1' TERM; read line <$0; echo $line"
    main = (
        "mkfifo $0 && { sh -c \"$1\" $0 & } && trap 'echo finish >$0; wait; exit 3' TERM && echo ready && "
        "while :; do sleep 0.05; done"
    )
    with tempfile.TemporaryDirectory() as directory:
        client.create_container(cmd=["sh", "-c", main, f"{directory}/work", worker], name="x")
        client.start_container("x")
        eventually(lambda: lines_of(client, "x") == [b"ready"])
        client.stop_container("x", timeout=60)
    assert lines_of(client, "x") == [b"ready", b"finish"]
    assert client.list_containers(all=True)[0].exit_code == 3


def test_a_container_is_stopped_by_its_own_signal_and_in_its_own_time(client: sync.Client, agent: Any) -> None:
    script = "trap 'echo quit; exit 4' QUIT; trap '' TERM; echo ready; while :; do sleep 0.05; done"
    client.create_container(cmd=["sh", "-c", script], name="x", stop_signal="sigquit", stop_timeout=0.25)
    client.create_container(cmd=["sh", "-c", DEAF], name="deaf", stop_timeout=0.25)
    infos = {info.name: (info.stop_signal, info.stop_timeout_ms) for info in client.list_containers(all=True)}
    assert infos == {"x": ("QUIT", 250), "deaf": ("TERM", 250)}
    client.close()
    agent.kill()
    agent.restart()  # what a container has of its own outlives the agent
    with sync.connect(agent.address, wait=10) as client:
        for name in ("x", "deaf"):
            client.start_container(name)
            eventually(lambda name=name: lines_of(client, name) == [b"ready"])  # type: ignore[misc]
        client.stop_container("x", timeout=60)
        began = time.monotonic()
        client.stop_container("deaf")
        assert 0.24 < time.monotonic() - began < 9
        assert lines_of(client, "x") == [b"ready", b"quit"]
        codes = {info.name: info.exit_code for info in client.list_containers(all=True)}
        assert codes == {"x": 4, "deaf": 137}


def test_a_stop_without_end_is_ended_by_another(agent: Any) -> None:
    async def main() -> None:
        async with arcbox_agent.connect(agent.address, wait=10) as client:
            await client.create_container(cmd=["sh", "-c", DEAF], name="x", stop_timeout=math.inf)
            assert (await client.list_containers(all=True))[0].stop_timeout_ms == -1
            await client.start_container("x")
            await asyncio.sleep(0.2)
            slow = [asyncio.create_task(client.stop_container("x", **how)) for how in ({"timeout": math.inf}, {})]
            await asyncio.sleep(0.3)
            assert not any(task.done() for task in slow)
            await client.stop_container("x", timeout=0)
            await asyncio.gather(*slow)

    run(main(), timeout=40)


@pytest.mark.parametrize("signal", ["NOSUCH", "0", "RTMAX-40"])
def test_a_stop_signal_that_is_none_is_refused(client: sync.Client, signal: str) -> None:
    with pytest.raises(BadRequestError, match=f"unknown signal '{signal}'"):
        client.create_container(cmd=["true"], stop_signal=signal)
    assert client.list_containers(all=True) == []


def test_what_is_left_when_the_main_process_ends_is_killed(client: sync.Client) -> None:
    client.create_container(cmd=["sh", "-c", "setsid sleep 1000 & echo $!; sleep 0.2; exit 6"], name="x")
    client.start_container("x")
    assert client.wait_container("x").status_code == 6
    (pid,) = map(int, lines_of(client, "x"))
    assert not alive(pid)
    client.start_container("x")
    client.wait_container("x")


def test_a_stop_that_waits_holds_up_nothing_else(agent: Any) -> None:
    async def main() -> None:
        async with arcbox_agent.connect(agent.address, wait=10) as client:
            await client.create_container(cmd=["sh", "-c", DEAF], name="deaf")
            await client.create_container(cmd=["sleep", "1000"], name="other")
            await client.start_container("deaf")
            await asyncio.sleep(0.2)
            stop = asyncio.create_task(client.stop_container("deaf", timeout=50))
            await asyncio.sleep(0.1)
            await client.start_container("other")
            assert (await client.exec(["echo", "a"], container="deaf")).stdout == b"a\n"
            assert len(await client.list_containers()) == 2
            await client.stop_container("other", timeout=10)
            await client.create_container(cmd=["true"], name="third")
            await client.remove_container("third")
            assert not stop.done()
            await client.kill_container("deaf")
            await stop

    run(main(), timeout=40)


def test_a_client_that_goes_away_does_not_stop_a_stop(agent: Any) -> None:
    async def main() -> None:
        async with arcbox_agent.connect(agent.address, wait=10) as client:
            await client.create_container(cmd=["sh", "-c", DEAF], name="x")
            await client.start_container("x")
            await asyncio.sleep(0.2)
            async with arcbox_agent.connect(agent.address) as other:
                stop = asyncio.create_task(other.stop_container("x", timeout=1))
                await asyncio.sleep(0.3)
                stop.cancel()
            assert (await client.wait_container("x")).status_code == 137

    run(main(), timeout=40)


def test_a_storm_of_stops(agent: Any) -> None:
    async def main() -> None:
        async with arcbox_agent.connect(agent.address, wait=10) as client:
            ids = [(await client.create_container(cmd=["sleep", "1000"])).id for _ in range(60)]
            await asyncio.gather(*map(client.start_container, ids))
            assert len(await client.list_containers()) == 60
            await asyncio.gather(*(client.stop_container(id, timeout=30) for id in ids * 2), return_exceptions=True)
            assert await client.list_containers() == []
            assert {each.status for each in await client.list_containers(all=True)} == {"Stopped"}

    run(main())


def test_containers_are_stopped_with_the_agent_where_it_is_so_configured(agent: Any) -> None:
    with sync.connect(agent.address, wait=10) as client:
        client.create_container(cmd=["sh", "-c", "setsid sleep 1000 & echo $!; wait"], name="x")
        client.start_container("x")
        eventually(lambda: len(lines_of(client, "x")) == 1)
        pids = [client.list_containers()[0].pid, int(lines_of(client, "x")[0])]
        assert all(map(alive, pids))
    agent.stop()
    assert not any(map(alive, pids))
    agent.restart()
    with sync.connect(agent.address, wait=10) as client:
        (info,) = client.list_containers(all=True)
        assert (info.status, info.signal) == ("Stopped", 15)


def test_a_cgroup_is_left_of_no_container(client: sync.Client, agent: Any) -> None:
    client.create_container(cmd=["sleep", "1000"], name="x")
    client.start_container("x")
    pid = client.list_containers()[0].pid
    with open(f"/proc/{pid}/cgroup") as file:
        (path,) = [line.rstrip().split("::")[1] for line in file if line.startswith("0::")]
    with open("/proc/self/mounts") as file:
        (root,) = [line.split()[1] for line in file if line.split()[2] == "cgroup2"][:1]
    cgroup = root + path
    assert os.path.basename(cgroup) == "@" + client.list_containers()[0].id
    client.exec(["true"], container="x")
    client.exec(["sh", "-c", "sleep 1000 &"], container="x")
    client.stop_container("x")
    assert not os.path.exists(cgroup)


def test_at_the_agents_end_what_was_started_last_is_dead_before_the_next_is_asked(
    start_agent: Any, tmp_path: Path
) -> None:
    agent = start_agent()
    script = (
        "trap 'echo $1 asked >>$0; sleep 0.3; echo $1 dead >>$0; exit' TERM; echo ready; while :; do sleep 0.02; done"
    )
    told = tmp_path / "told"
    with sync.connect(agent.address) as client:
        for name in ("first", "second", "third"):
            client.create_container(cmd=["sh", "-c", script, str(told), name], name=name)
            client.start_container(name)
            eventually(lambda: lines_of(client, name) == [b"ready"])
    agent.stop()
    assert told.read_text().splitlines() == [
        f"{name} {what}" for name in ("third", "second", "first") for what in ("asked", "dead")
    ]


def test_at_the_agents_end_one_that_is_deaf_to_term_takes_the_time_of_no_other(start_agent: Any) -> None:
    agent = start_agent(stop_timeout="2")
    with sync.connect(agent.address) as client:
        for name, script in (("first", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done"), ("deaf", DEAF)):
            client.create_container(cmd=["sh", "-c", script], name=name)
            client.start_container(name)
            eventually(lambda: lines_of(client, name) == [b"ready"])
    agent.stop()
    agent.restart()
    with sync.connect(agent.address, wait=20) as client:
        ends = {each.name: (each.exit_code, each.signal) for each in client.list_containers(all=True)}
        assert ends == {"first": (5, 0), "deaf": (137, 9)}


@pytest.fixture
def freezer(tmp_path: Path) -> Iterator[Path]:
    """A cgroup of the old kind, in which nothing can be killed while it is frozen: as where a disk hangs."""
    hierarchy = tmp_path / "freezer"
    hierarchy.mkdir()
    subprocess.run(["mount", "-t", "cgroup", "-o", "freezer", "none", hierarchy], check=True)
    group = hierarchy / f"arcbox-test-{os.getpid()}"
    group.mkdir()
    yield group
    (group / "freezer.state").write_text("THAWED")
    for pid in map(int, (group / "cgroup.procs").read_text().split()):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: (group / "cgroup.procs").read_text() == "")
    group.rmdir()
    subprocess.run(["umount", hierarchy], check=True)


def test_the_agent_ends_though_a_container_cannot_be_killed(start_agent: Callable[..., Any], freezer: Path) -> None:
    agent = start_agent(containers_at_exit="stop", stop_timeout="0.1")
    with sync.connect(agent.address) as client:
        id = client.create_container(cmd=["sleep", "1000"]).id
        client.start_container(id)
        (info,) = client.list_containers()
    (freezer / "cgroup.procs").write_text(str(info.pid))
    (freezer / "freezer.state").write_text("FROZEN")
    eventually(lambda: (freezer / "freezer.state").read_text() == "FROZEN\n")
    agent.process.send_signal(signal.SIGTERM)
    assert agent.process.wait(60) == 0
    assert "containers that cannot be ended are left containers=1" in agent.log()


def hang_on_the_disk(agent: Any, client: sync.Client, connections: ExitStack) -> list[Path]:
    """Every thread that writes records opens a FIFO that nobody reads, and so hangs; which FIFOs."""
    fifos = []
    for _ in range(DISK_THREADS):
        id = client.create_container(cmd=["true"]).id
        # Where a record is written first.
        fifos.append(agent.state_dir / "containers" / f"{id}.json.tmp")
        os.mkfifo(fifos[-1])
        starting = connections.enter_context(socket.socket(socket.AF_UNIX))
        starting.connect(str(agent.socket_path))
        starting.sendall(wire.encode_message(wire.StartContainerRequest(id=id)))
    threads = Path(f"/proc/{agent.process.pid}/task")
    eventually(lambda: sum("fifo_open" in each.read_text() for each in threads.glob("*/stack")) == DISK_THREADS)
    return fifos


def test_what_hangs_on_the_disk_holds_up_no_signal(agent: Any) -> None:
    script = "sh -c 'trap \"\" TERM; echo $$; while :; do sleep 1000; done' & echo $$; wait"
    with ExitStack() as hanging, sync.connect(agent.address, wait=10) as client:
        client.create_container(cmd=["sh", "-c", script], name="x")
        client.start_container("x")
        eventually(lambda: len(lines_of(client, "x")) == 2)
        container = [int(line) for line in lines_of(client, "x")]
        # A command whose client goes is ended with what it started.
        running = hanging.enter_context(socket.socket(socket.AF_UNIX))
        running.connect(str(agent.socket_path))
        left = agent.directory / "left"
        request = wire.ExecRequest(cmd=["sh", "-c", f"sleep 1000 & echo $! >{left}; wait"])
        running.sendall(wire.encode_message(request))
        eventually(lambda: left.exists() and left.read_text().endswith("\n"))
        fifos = hang_on_the_disk(agent, client, hanging)
        try:
            stopping = hanging.enter_context(socket.socket(socket.AF_UNIX))
            stopping.connect(str(agent.socket_path))
            stopping.sendall(wire.encode_message(wire.StopContainerRequest(id="x", timeout=1)))
            running.close()
            eventually(lambda: not any(map(alive, [*container, int(left.read_text())])))
        finally:
            for fifo in fifos:  # which are opened now, and are no files to be synced
                hanging.callback(os.close, os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))
        assert client.wait_container("x").status_code == 143


@pytest.mark.slow
@pytest.mark.parametrize("at_exit", ["leave", "stop"])
def test_what_hangs_on_the_disk_does_not_keep_the_agent_from_ending(start_agent: Any, at_exit: str) -> None:
    agent = start_agent(shutdown_timeout="0.2", stop_timeout="0.2", containers_at_exit=at_exit)
    with ExitStack() as hanging, sync.connect(agent.address, wait=10) as client:
        # What it leaves, an empty cgroup for the next command, goes at the end.
        client.exec(["true"])
        client.create_container(cmd=["sleep", "1000"], name="x")
        client.start_container("x")
        pid = client.list_containers()[0].pid
        hang_on_the_disk(agent, client, hanging)
        agent.stop()
    assert "ended with something under way that hangs threads=" in agent.log()
    went_on = alive(pid)
    if went_on:
        os.kill(pid, signal.SIGKILL)
    assert went_on == (at_exit == "leave")

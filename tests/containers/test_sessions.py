"""Where there is no cgroup: what a container started is found by session and by parent."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcbox_agent import sync
from arcbox_agent.agent.processes.cgroups import Cgroup, find_parent
from arcbox_agent.agent.processes.children import Processes
from arcbox_agent.agent.processes.descendants import ProcessSession
from arcbox_agent.agent.processes.lanes import Lanes
from arcbox_agent.agent.processes.spec import SpawnSpec
from tools.stress.agent import AgentProcess

from .support import alive, eventually, lines_of, null, run

SOURCE = Path(__file__).resolve().parents[2] / "src"


UNMOUNT_CGROUP2 = (
    "for mount in $(awk '$3 == \"cgroup2\" {print $2}' /proc/self/mounts); do umount -l $mount || exit 1; done; "
)
WITHOUT_CGROUPS = ("unshare", "-m", "--propagation", "private", "sh", "-c")


@pytest.fixture
def client_without_cgroups() -> Iterator[sync.Client]:
    """Of an agent in a mount namespace of its own, from which cgroup2 has been unmounted."""
    directory = tempfile.mkdtemp(prefix="arcbox-")
    command = (
        f"{UNMOUNT_CGROUP2} exec {sys.executable} -m arcbox_agent.agent --listen unix:{directory}/s "
        f"--state-dir {directory}/state --run-dir {directory}/run --containers-at-exit stop"
    )
    agent = subprocess.Popen(
        [*WITHOUT_CGROUPS, command],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stderr=subprocess.PIPE,
    )
    try:
        with sync.connect(f"unix://{directory}/s", wait=20) as client:
            yield client
    finally:
        agent.terminate()
        _, log = agent.communicate(timeout=30)
        shutil.rmtree(directory)
    assert agent.returncode == 0, log.decode()
    assert b"no cgroup2 that can be written" in log


def test_stop_and_the_end_of_the_main_process_reach_what_can_be_found(client_without_cgroups: sync.Client) -> None:
    client = client_without_cgroups
    script = "sleep 1000 & echo $!; setsid sh -c 'sleep 1000 & echo $!; wait' & "
    for name, end in (("stopped", "wait"), ("ended", "read x; exit 3")):
        client.create_container(cmd=["sh", "-c", script + end], name=name, open_stdin=True)
        client.start_container(name)
    eventually(lambda: len(lines_of(client, "stopped")) == len(lines_of(client, "ended")) == 2)
    pids = [int(line) for name in ("stopped", "ended") for line in lines_of(client, name)]
    assert all(map(alive, pids))
    client.stop_container("stopped", timeout=20)
    assert not any(map(alive, pids[:2]))
    client.kill_container("ended")
    assert client.wait_container("ended").signal == 9
    # What had a session of its own was never looked at while its parent lived: that is the limit.
    assert not alive(pids[2])
    if alive(pids[3]):
        os.kill(pids[3], signal.SIGKILL)


def test_a_command_is_killed_with_its_session(client_without_cgroups: sync.Client) -> None:
    result = client_without_cgroups.exec(["sh", "-c", "sleep 1000 & echo $!; wait"], timeout=0.5)
    assert result.timed_out
    pid = int(result.stdout)
    eventually(lambda: not alive(pid))


@pytest.mark.slow
def test_a_stop_without_descriptors_ends_all_of_it_when_there_are_some_again(
    client_without_cgroups: sync.Client,
) -> None:
    client = client_without_cgroups
    client.create_container(cmd=["sh", "-c", "trap 'exit 0' TERM; sleep 1000 & echo $!; wait"], name="x")
    client.start_container("x")
    eventually(lambda: len(lines_of(client, "x")) == 1)
    left, main = int(lines_of(client, "x")[0]), client.list_containers()[0].pid
    agent = client.agent_info().pid
    limits = resource.prlimit(agent, resource.RLIMIT_NOFILE)
    resource.prlimit(agent, resource.RLIMIT_NOFILE, (3, limits[1]))
    stop = threading.Thread(target=client.stop_container, args=("x",), kwargs={"timeout": 20})
    try:
        stop.start()
        eventually(lambda: not alive(main))
        time.sleep(0.3)
    finally:
        resource.prlimit(agent, resource.RLIMIT_NOFILE, limits)
    stop.join(30)
    assert not stop.is_alive()
    assert not alive(left)
    assert client.list_containers(all=True)[0].status == "Stopped"


def test_a_container_from_before_there_were_cgroups_is_stopped_with_all_it_started(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path, python=(*WITHOUT_CGROUPS, f'{UNMOUNT_CGROUP2} exec "$0" "$@"', sys.executable))
    agent.start()
    try:
        with sync.connect(agent.address, wait=20) as client:
            script = "trap 'echo told; exit 5' TERM; sleep 1000 & echo $!; wait; wait"
            client.create_container(cmd=["sh", "-c", script], name="x")
            client.start_container("x")
            eventually(lambda: len(lines_of(client, "x")) == 1)
            left = int(lines_of(client, "x")[0])
        agent.kill()
        agent.python = (sys.executable,)
        agent.start()
        with sync.connect(agent.address, wait=20) as client:
            assert client.exec(["true"], container="x").exit_code == 0
            client.stop_container("x", timeout=20)
            assert client.wait_container("x").status_code == 5
            assert lines_of(client, "x")[1:] == [b"told"]
            assert not alive(left)
            client.remove_container("x")
        agent.stop()
    finally:
        if agent.running:
            agent.kill()


def test_a_session_whose_number_is_a_strangers_now_has_nothing_of_ours() -> None:
    async def main() -> None:
        processes = Processes(asyncio.get_running_loop(), Lanes())
        fd = null()
        process = await processes.spawn(SpawnSpec(["/bin/sleep", "1000"], stdio=(fd, fd, fd)))
        assert ProcessSession(process.pid, process.start_time).pids() == {process.pid}
        stranger = ProcessSession(process.pid, process.start_time - 1)
        assert not stranger.alive()
        stranger.kill()
        assert alive(process.pid)
        ours = ProcessSession(process.pid, process.start_time)
        ours.kill()
        await process.wait()
        assert not ours.alive() and ours.pids() == set()
        await processes.close()

    run(main())


def test_a_cgroup_is_killed_below_itself_too_and_removed() -> None:
    parent = find_parent(f"arcbox-test-{os.getpid()}")
    assert parent is not None, "these tests need cgroup2, writable"
    top = Cgroup(parent)
    inner = top.child("a").child("b")
    inner.create()

    async def main() -> None:
        processes = Processes(asyncio.get_running_loop(), Lanes())
        spawned = []
        for cgroup in (top, inner):
            fd = null()
            spawned.append(
                await processes.spawn(SpawnSpec(["/bin/sleep", "1000"], stdio=(fd, fd, fd), cgroup_fd=cgroup.open()))
            )
        pids = {process.pid for process in spawned}
        assert top.pids() == pids and inner.pids() == {spawned[1].pid}
        assert top.alive() and not top.remove()
        assert top.send_signal(0) == 2
        inner.leave_to(top)
        assert inner.pids() == set() and top.pids() == pids
        top.kill()
        for process in spawned:
            assert (await process.wait()).signal == 9
        await processes.close()

    run(main())
    eventually(lambda: not top.alive())
    assert top.remove()
    assert not os.path.exists(parent)
    assert top.remove() and not top.alive() and top.pids() == set()
    top.kill()

"""One test for each clause by which what was started is found, ended or left alone."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import arcbox_agent
from arcbox_agent import sync, wire
from arcbox_agent.agent.processes.cgroups import Cgroup, find_parent, mount_point
from arcbox_agent.agent.processes.scopes import cgroup_name

from .support import alive, eventually, leased, run

#: Says its number and that of what it leaves in the background.
LEAVES_ONE = "sleep 1000 >/dev/null 2>&1 & echo $!"


def cgroup_of(pid: int | str) -> Path:
    """The directory of the cgroup2 that a process is in."""
    (name,) = (line[3:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::"))
    root = mount_point()
    assert root is not None, "these tests need cgroup2, writable"
    return Path(root + name)


def assert_killed(pid: int) -> None:
    eventually(lambda: not alive(pid))


@pytest.fixture
def leaves() -> Iterator[Callable[[sync.Client], int]]:
    """Runs a command that leaves a process in the background; its number.  It is killed at the end."""
    left: list[int] = []

    def leave(client: sync.Client) -> int:
        left.append(int(client.exec(["sh", "-c", LEAVES_ONE]).stdout))
        return left[-1]

    yield leave
    for pid in left:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


# ------------------------------------------------------------ the end of a command


def test_what_a_command_left_is_not_in_the_cgroup_of_the_next(client: sync.Client, leaves: Any) -> None:
    pid = leaves(client)
    for _ in range(3):
        own = client.exec(["cat", "/proc/self/cgroup"]).stdout.decode()
        assert str(cgroup_of(pid)).split("/")[-1] not in [line.split("/")[-1] for line in own.splitlines()]


def test_what_a_command_left_does_not_die_with_the_next(client: sync.Client, leaves: Any) -> None:
    pid = leaves(client)
    for _ in range(3):
        late = client.exec(["sh", "-c", "setsid sleep 1000 & echo $!; wait"], timeout=0.2)
        assert late.timed_out
        assert_killed(int(late.stdout))
    assert alive(pid)


def test_what_a_command_left_that_ended_by_itself_is_not_killed_when_its_client_goes(agent: Any, leaves: Any) -> None:
    with sync.connect(agent.address, wait=10) as client:
        pid = leaves(client)
    with sync.connect(agent.address) as other:
        eventually(lambda: other.agent_info().connections == 1)
        late = other.exec(["sh", "-c", "setsid sleep 1000 & echo $!; wait"], timeout=0.2)
        assert_killed(int(late.stdout))
    assert alive(pid)


def test_some_empty_cgroups_are_kept_and_not_all(agent: Any) -> None:
    with sync.connect(agent.address, wait=10) as client:
        commands = cgroup_of(client.exec_detached(["sleep", "1000"])).parent
        go = agent.directory / "go"
        with ThreadPoolExecutor(16) as threads:
            script = f"until test -e {go}; do sleep 0.05; done"

            def wait_in_a_command(_: int) -> int:
                with sync.connect(agent.address) as each:
                    return each.exec(["sh", "-c", script]).exit_code

            codes = threads.map(wait_in_a_command, range(16))
            eventually(lambda: len(list(commands.glob(".exec-*"))) == 16)
            go.touch()
            assert list(codes) == [0] * 16
        eventually(lambda: len(list(commands.glob(".exec-*"))) <= 8)
        assert len(list(commands.glob(".exec-*"))) > 0
        (detached,) = [pid for path in commands.glob(".detached-*") for pid in Cgroup(str(path)).pids()]
        os.kill(detached, signal.SIGKILL)


def test_a_command_in_the_guest_is_in_no_cgroup_that_was_one_of_a_container(client: sync.Client) -> None:
    client.create_container(cmd=["sleep", "1000"], name="x")
    client.start_container("x")
    (container,) = client.list_containers()
    for _ in range(3):
        assert client.exec(["true"], container="x").exit_code == 0
        own = client.exec(["cat", "/proc/self/cgroup"]).stdout.decode()
        assert container.id not in own
    client.remove_container("x", force=True)


def test_what_a_command_left_in_a_container_belongs_to_the_container(client: sync.Client) -> None:
    client.create_container(cmd=["sleep", "1000"], name="x")
    client.start_container("x")
    (container,) = client.list_containers()
    pid = int(client.exec(["sh", "-c", LEAVES_ONE], container="x").stdout)
    eventually(lambda: cgroup_of(pid) == cgroup_of(container.pid))
    eventually(lambda: list(cgroup_of(container.pid).glob(".exec-*")) == [])
    assert alive(pid)
    client.kill_container("x")
    client.wait_container("x")
    eventually(lambda: not alive(pid))
    client.remove_container("x")


@pytest.mark.parametrize("how", ["by itself", "timed out", "with its client", "detached", "in a container"])
def test_a_place_among_the_commands_is_free_again_however_the_last_has_ended(start_agent: Any, how: str) -> None:
    agent = start_agent(max_execs="1")
    with sync.connect(agent.address, wait=10) as client:
        if how == "by itself":
            for _ in range(3):
                # At once: when the reply is there, so is the place.
                assert client.exec(["true"]).exit_code == 0
        elif how == "timed out":
            assert client.exec(["sleep", "1000"], timeout=0.1).timed_out
        elif how == "detached":
            os.kill(client.exec_detached(["sleep", "1000"]), signal.SIGKILL)
        elif how == "in a container":
            client.create_container(cmd=["sleep", "1000"], name="x")
            client.start_container("x")
            assert client.exec(["true"], container="x").exit_code == 0
        else:
            with socket.socket(socket.AF_UNIX) as leaving:
                leaving.connect(str(agent.socket_path))
                leaving.sendall(wire.encode_message(wire.ExecRequest(cmd=["sleep", "1000"])))
                eventually(lambda: client.agent_info().counters["commands_started"] == 1)

        def free() -> bool:
            try:
                return client.exec(["true"]).exit_code == 0
            except arcbox_agent.errors.BusyError:
                return False

        eventually(free)
        if how == "in a container":
            client.remove_container("x", force=True)


# ------------------------------------------------------------------------ numbers


def test_a_signal_for_a_cgroup_reaches_no_stranger_that_has_a_number_of_its_processes(tmp_path: Path) -> None:
    """Between looking for a process and holding it, its number may become that of another.

    The list of processes is a pipe here: the first reading names a process that, as the
    second tells, is not in the cgroup.
    """
    listing = tmp_path / "cgroup.procs"
    os.mkfifo(listing)
    sleeping = [sys.executable, "-c", "import time; print(flush=True); time.sleep(1000)"]
    with (
        subprocess.Popen(sleeping, stdout=subprocess.PIPE) as ours,
        subprocess.Popen(sleeping, stdout=subprocess.PIPE) as stranger,
    ):
        try:
            for each in (ours, stranger):
                assert each.stdout is not None
                each.stdout.readline()

            def is_held(pid: int) -> bool:
                for path in Path("/proc/self/fdinfo").iterdir():
                    try:
                        if f"Pid:\t{pid}\n" in path.read_text():
                            return True
                    except FileNotFoundError:
                        continue
                return False

            def list_them() -> None:
                listing.write_text(f"{ours.pid}\n{stranger.pid}\n")
                eventually(lambda: is_held(ours.pid) and is_held(stranger.pid))
                listing.write_text(f"{ours.pid}\n")

            kernel = threading.Thread(target=list_them, daemon=True)
            kernel.start()
            assert Cgroup(str(tmp_path)).send_signal(signal.SIGTERM) == 1
            kernel.join(30)
            assert ours.wait(30) == -signal.SIGTERM
            assert stranger.poll() is None
        finally:
            for each in (ours, stranger):
                each.kill()


def is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_the_file_with_the_number_of_a_container_is_locked_until_its_program_runs(
    start_agent: Any, tmp_path: Path
) -> None:
    agent = start_agent(containers_at_exit="leave")
    with sync.connect(agent.address, wait=10) as client:
        all_containers = Path(find_parent(cgroup_name(str(agent.state_dir))) or "no cgroup2")
        client.create_container(cmd=[f"{tmp_path}/sleep", "1000"], id="x")
    pid_file = agent.run_dir / "containers" / "x" / "pid"
    born = all_containers / "@x" / "cgroup.procs"
    with leased(tmp_path / "sleep"):
        with socket.socket(socket.AF_UNIX) as leaving:
            leaving.connect(str(agent.socket_path))
            leaving.sendall(wire.encode_message(wire.StartContainerRequest(id="x")))
            eventually(lambda: born.exists() and born.read_text() != "")
            eventually(lambda: pid_file.read_text() != "")
            assert is_locked(pid_file)
            agent.kill()
        assert is_locked(pid_file)
    eventually(lambda: not is_locked(pid_file))
    assert pid_file.read_text().split()[0] == born.read_text().strip()
    agent.restart()
    with sync.connect(agent.address, wait=10) as client:
        (info,) = client.list_containers(all=True)
        assert (info.state, alive(info.pid), info.pid) == ("running", True, int(born.read_text()))
        client.remove_container("x", force=True)


def test_an_agent_that_comes_back_in_the_middle_of_a_start_waits_for_what_becomes_of_it(start_agent: Any) -> None:
    agent = start_agent(containers_at_exit="leave")
    with sync.connect(agent.address, wait=10) as client:
        client.create_container(cmd=["sleep", "1000"], id="x")
    agent.kill()
    record_path = agent.state_dir / "containers" / "x.json"
    record = json.loads(record_path.read_text())
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    record_path.write_text(json.dumps({**record, "state": "starting", "run": 1, "boot_id": boot_id}))
    pid_file = agent.run_dir / "containers" / "x" / "pid"
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    # In the place of the child, which has not come to its program yet.
    with pid_file.open("w") as child:
        fcntl.flock(child, fcntl.LOCK_EX)
        restarting = threading.Thread(target=agent.restart)
        before = agent.process
        restarting.start()

        eventually(lambda: agent.process is not before and "agent: starting" in agent.log())
        child.write(f"{Path('/proc/self/stat').read_text()}\nfailed 2 18\n")
        child.flush()
    restarting.join()
    with sync.connect(agent.address, wait=10) as client:
        (info,) = client.list_containers(all=True)
        assert (info.state, info.error) == ("created", "exec: No such file or directory")
        client.remove_container("x")


@pytest.mark.parametrize("detach", [False, True])
def test_a_command_that_cannot_be_started_fails_quietly_when_its_client_has_gone(
    agent: Any, tmp_path: Path, detach: bool
) -> None:
    broken = tmp_path / "source"
    broken.write_bytes(b"\x7fELF of no machine")
    broken.chmod(0o755)
    with sync.connect(agent.address, wait=10) as client:
        client.exec(["true"])
        everything = find_parent(cgroup_name(str(agent.state_dir)))
        assert everything is not None, "this test needs cgroup2"
        with leased(tmp_path / "broken", str(broken)):
            with socket.socket(socket.AF_UNIX) as leaving:
                leaving.connect(str(agent.socket_path))
                leaving.sendall(wire.encode_message(wire.ExecRequest(cmd=[f"{tmp_path}/broken"], detach=detach)))
                eventually(lambda: len(Cgroup(everything).pids()) == 1)
            eventually(lambda: client.agent_info().connections == 1)
        eventually(lambda: Cgroup(everything).pids() == set())
        assert client.exec(["true"]).exit_code == 0
    agent.stop()
    assert " error " not in agent.log()


def test_a_start_whose_client_goes_away_is_finished(agent: Any) -> None:
    async def main() -> None:
        async with arcbox_agent.connect(agent.address, wait=10) as client:
            await client.create_container(cmd=["sleep", "1000"], id="x")
            with socket.socket(socket.AF_UNIX) as leaving:
                leaving.connect(str(agent.socket_path))
                leaving.sendall(wire.encode_message(wire.StartContainerRequest(id="x")))
            while not await client.list_containers():
                await asyncio.sleep(0.01)

    run(main())

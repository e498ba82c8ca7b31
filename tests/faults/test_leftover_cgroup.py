"""Cgroups that a former agent, or whoever manages this one, has left."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

from arcbox_agent import connect
from arcbox_agent.agent.config.table import Settings
from arcbox_agent.agent.containers.output.capture import Capture
from arcbox_agent.agent.containers.runtimes.process.parts import Parts
from arcbox_agent.agent.containers.store import Store
from arcbox_agent.agent.metrics import Metrics
from arcbox_agent.agent.processes import cgroups
from arcbox_agent.agent.processes.children import Processes
from arcbox_agent.agent.processes.keeper import Keeper
from arcbox_agent.agent.processes.lanes import Lanes
from arcbox_agent.agent.processes.scopes import Scopes, cgroup_name
from arcbox_agent.agent.processes.spec import SpawnSpec
from tests.containers.support import eventually
from tools.stress.agent import PATIENCE, AgentProcess


def test_a_container_starts_unharmed_where_a_killed_cgroup_was_left() -> None:
    with tempfile.TemporaryDirectory(prefix="arcbox-") as name:
        agent = AgentProcess(Path(name), settings={"containers_at_exit": "stop"})
        agent.start()
        try:
            agent.wait_until_it_answers()
            assert asyncio.run(_exit_code(agent)) == 7
            agent.stop()
        finally:
            if agent.running:
                agent.kill()


async def _exit_code(agent: AgentProcess) -> int:
    parent = cgroups.find_parent(cgroup_name(str(agent.state_dir)))
    assert parent is not None, "this test needs cgroup2"
    left = cgroups.Cgroup(f"{parent}/c")
    async with connect(agent.address, timeout=PATIENCE) as client:
        await client.create_container(id="c", cmd=["/bin/sh", "-c", "exit 7"])
        left.create()
        left.kill()
        await client.start_container("c")
        reply = await client.wait_container("c")
        await client.remove_container("c")
        return reply.status_code


def test_an_agent_in_a_cgroup_that_was_killed_once_starts_containers_and_commands_unharmed() -> None:
    mount_point = cgroups.mount_point()
    assert mount_point is not None, "this test needs cgroup2"
    with tempfile.TemporaryDirectory(prefix="arcbox-") as name:
        killed = cgroups.Cgroup(f"{mount_point}/{Path(name).name}")
        killed.create()
        killed.kill()
        into_it = ("sh", "-c", f'echo 0 > {killed.path}/cgroup.procs; exec "$0" "$@"', sys.executable)
        agent = AgentProcess(Path(name), settings={"containers_at_exit": "stop"}, python=into_it)
        agent.start()
        try:
            agent.wait_until_it_answers()
            assert killed.pids() == {agent.pid}
            assert asyncio.run(_exit_codes(agent)) == (7, 8, 9)
            agent.stop()
        finally:
            if agent.running:
                agent.kill()
            killed.kill()
            eventually(killed.remove)  # the keeper needs a moment to die


async def _exit_codes(agent: AgentProcess) -> tuple[int, int, int]:
    """Of a command, a container, and a command in that."""
    async with connect(agent.address, timeout=PATIENCE) as client:
        command = await client.exec(["/bin/sh", "-c", "exit 7"])
        await client.create_container(id="c", cmd=["/bin/sh", "-c", "read x; exit 8"], open_stdin=True)
        await client.start_container("c")
        inside = await client.exec(["/bin/sh", "-c", "exit 9"], container="c")
        (agent.run_dir / "containers" / "c" / "stdin").write_text("x\n")
        end = await client.wait_container("c")
        await client.remove_container("c")
        return command.exit_code, end.status_code, inside.exit_code


def test_what_could_not_be_killed_when_its_run_ended_is_killed_when_that_is_cleaned_up(tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        lanes = Lanes()
        processes, capture = Processes(loop, lanes), Capture(Settings(), Metrics())
        store = Store(str(tmp_path), str(tmp_path))
        scopes = Scopes(str(tmp_path))
        scopes.open()
        keeper = Keeper(str(tmp_path / "keeper.sock"), processes, lanes)
        parts = Parts(store, processes, lanes, capture, keeper, scopes, "")
        parent = cgroups.find_parent(cgroup_name(str(tmp_path)))
        assert parent is not None, "this test needs cgroup2"
        left = cgroups.Cgroup(f"{parent}/x")
        left.create()
        null = os.open("/dev/null", os.O_RDWR)
        process = await processes.spawn(SpawnSpec(["/bin/sleep", "1000"], stdio=(null,) * 3, cgroup_fd=left.open()))
        await lanes.disk(parts.clean, "x", left)
        async with asyncio.timeout(PATIENCE):
            assert (await process.wait()).signal == signal.SIGKILL
        assert not os.path.exists(left.path)
        os.rmdir(parent)
        await processes.close()

    asyncio.run(main())


def test_an_agent_that_ran_nothing_leaves_no_cgroup() -> None:
    with tempfile.TemporaryDirectory(prefix="arcbox-") as name:
        agent = AgentProcess(Path(name))
        agent.start()
        try:
            agent.wait_until_it_answers()
            parent = cgroups.find_parent(cgroup_name(str(agent.state_dir)))
            assert parent is not None, "this test needs cgroup2"
            agent.stop()
            assert not Path(parent).exists()
        finally:
            if agent.running:
                agent.kill()

"""A container's cgroup that an agent was killed before it could remove."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from arcbox_agent import connect
from arcbox_agent.agent.containers import cgroups
from arcbox_agent.agent.containers.process_runtime import _cgroup_name
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
    parent = cgroups.find_parent(_cgroup_name(str(agent.state_dir)))
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


def test_an_agent_that_ran_nothing_leaves_no_cgroup() -> None:
    with tempfile.TemporaryDirectory(prefix="arcbox-") as name:
        agent = AgentProcess(Path(name))
        agent.start()
        try:
            agent.wait_until_it_answers()
            parent = cgroups.find_parent(_cgroup_name(str(agent.state_dir)))
            assert parent is not None, "this test needs cgroup2"
            agent.stop()
            assert not Path(parent).exists()
        finally:
            if agent.running:
                agent.kill()

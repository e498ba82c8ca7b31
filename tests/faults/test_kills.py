"""SIGKILL of the agent at random moments, and what it must find again each time."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.pace import patience
from tools.stress.agent import AgentProcess
from tools.stress.world import World

#: How often the agent is killed; ARCBOX_KILLS=2000 for a long night.
KILLS = int(os.environ.get("ARCBOX_KILLS", "200"))
SEED = int(os.environ.get("ARCBOX_SEED", "1"))
CLIENTS = 4
#: A small log file, so that rotation is in full swing; enough of them, so that no line is old.
SETTINGS = {"containers_at_exit": "leave", "log_max_size": "64KiB", "log_max_files": "100"}


@pytest.fixture
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="arcbox-") as name:
        directory = Path(name)
        agent = AgentProcess(directory, settings=SETTINGS)
        world = World(agent, directory, SEED)
        try:
            yield world
        finally:
            if agent.running:
                agent.kill()
            world.end_all_processes()


@pytest.mark.slow
@pytest.mark.timeout(patience(1200))
def test_an_agent_killed_at_any_moment_lists_the_truth_and_loses_no_line(world: World) -> None:
    asyncio.run(_killed_again_and_again(world, random.Random(SEED)))
    assert not world.faults, "\n".join([*world.faults[:10], world.agent.log()])
    # That the work which was interrupted was really going on.
    for call in ("create", "start", "stop", "kill", "wait", "remove", "exec", "logs"):
        assert world.counts[call] > 0, f"no {call} was ever answered"
    assert world.counts["reconciled"] >= KILLS // 2


async def _killed_again_and_again(world: World, choice: random.Random) -> None:
    agent = world.agent
    killed = time.clock_gettime(time.CLOCK_BOOTTIME)
    for _ in range(KILLS):
        agent.start()
        if choice.random() < 0.2:
            # While it starts, and finds again what was there.
            await asyncio.sleep(choice.uniform(0.0, 0.2))
        else:
            await asyncio.to_thread(agent.wait_until_it_answers)
            world.outages.add(killed, time.clock_gettime(time.CLOCK_BOOTTIME))
            await world.reconcile()
            if world.faults:
                return  # what comes after the first fault says little
            clients = [
                asyncio.create_task(world.client(f"k{i}", random.Random(choice.getrandbits(64))))
                for i in range(CLIENTS)
            ]
            await asyncio.sleep(choice.uniform(0.02, 0.35))
            agent.kill()
            killed = time.clock_gettime(time.CLOCK_BOOTTIME)
            await asyncio.gather(*clients)
            continue
        agent.kill()
    agent.start()
    await asyncio.to_thread(agent.wait_until_it_answers)
    world.outages.add(killed, time.clock_gettime(time.CLOCK_BOOTTIME))
    await world.finish()
    if not world.faults:
        await asyncio.to_thread(agent.stop)

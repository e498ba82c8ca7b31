"""Load on an agent in a guest: from the host over vsock, and in the guest with all faults at random."""

from __future__ import annotations

import asyncio
import random

import pytest

from arcbox_agent.client import Client
from tests.vm.conftest import with_client
from tests.vm.machine import Machine
from tests.vm.soak import soak
from tools.stress import pipeline
from tools.stress.mix import mixed_requests

CONNECTIONS = 8
REQUESTS = 4000
#: Requests on the way per connection.
WINDOW = 64
SEED = 5
#: What a process may keep of a load that is over: the allocator does not give all back.
MEMORY_KEPT = 8 << 20


def test_a_mixed_load_from_the_host_loses_and_reorders_nothing(guest: Machine) -> None:
    async def holdings(client: Client) -> tuple[int, list[str], int]:
        script = "readlink /proc/1/fd/* | sed 's/:\\[.*//' | sort"
        files = (await client.exec(["/bin/sh", "-c", script], check=True)).stdout.decode().splitlines()
        return (await client.agent_info()).connections, files, len(await client.list_containers(all=True))

    async def memory(client: Client) -> int:
        status = await client.exec(["/bin/grep", "^VmRSS", "/proc/1/status"], check=True)
        return int(status.stdout.split()[1]) << 10

    async def load(hostname: str, requests: int) -> tuple[list[str], int]:
        pipelines = [
            await pipeline.connect(guest.dial(), f"v{number}", version=2 if number % 2 else 1, window=WINDOW)
            for number in range(CONNECTIONS)
        ]
        try:
            async with asyncio.timeout(250), asyncio.TaskGroup() as group:
                for number, one in enumerate(pipelines):
                    choice = random.Random(SEED * 1000 + number)
                    group.create_task(mixed_requests(one, choice, requests // CONNECTIONS, hostname))
        finally:
            for one in pipelines:
                one.close()
        return [fault for one in pipelines for fault in one.faults], sum(one.answered for one in pipelines)

    async def work(client: Client) -> None:
        hostname = (await client.system_info()).hostname
        # What it opens once and for all, it has from here on.
        await load(hostname, 25 * CONNECTIONS)
        before, memory_before = await settled(client), await memory(client)
        faults, answered = await load(hostname, REQUESTS)
        assert faults == []
        assert answered >= REQUESTS
        assert await settled(client) == before
        assert await memory(client) <= memory_before + MEMORY_KEPT

    async def settled(client: Client) -> tuple[int, list[str], int]:
        while (now := await holdings(client))[0] > 1:
            await asyncio.sleep(0.1)
        return now

    with_client(guest, work, patience=280)


@pytest.mark.slow
def test_a_soak_in_the_guest_loses_nothing(guest: Machine) -> None:
    async def work(client: Client) -> tuple[int, str]:
        # A keeper that cannot be started for want of descriptors is missing for a minute.  Where
        # the agent is killed then, output is lost, as its log says: slow guests come upon that.
        return await soak(client, "--seconds", "15", "--seed", "20261124", "--without", "no descriptors")

    code, said = with_client(guest, work, patience=280)
    assert code == 0, said
    assert "verdict: everything written was delivered, nothing is left behind" in said

"""A guest that is saved, and restored twice: its agent, its clock, its random numbers.

Its root is the minimal initramfs, as no snapshot holds a root over virtiofs; nor does one
hold vsock, which is unplugged before and plugged in again afterwards: for the guest that is
what every hypervisor's restore is, its connections have ended and its listeners are there.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import arcbox_agent
from arcbox_agent.client import Client
from arcbox_agent.errors import TransportError
from tests.cli.conftest import Arcboxctl
from tests.vm.conftest import with_client
from tests.vm.machine import Machine

MEMORY = 384
#: Seconds that pass between the snapshot and its restore: more than a clock may differ.
ASLEEP = 4.0


async def random_numbers(client: Client) -> bytes:
    command = ["/bin/dd", "if=/dev/urandom", "bs=32", "count=1"]
    return (await client.exec(command, check=True)).stdout


def test_the_first_sync_time_after_a_restore_repairs_clock_and_random_numbers(
    boot: Callable[..., Machine], minimal_initramfs: Path, tmp_path: Path
) -> None:
    machine = boot(initramfs=minimal_initramfs, memory=MEMORY)
    machine.wait_until_it_listens()

    async def unplug_under_a_client() -> tuple[str, int]:
        async with arcbox_agent.connect(machine.address, wait=60) as client:
            await client.sync_time()
            created = await client.create_container(cmd=["/bin/sh", "-c", "while echo tick; do sleep 0.2; done"])
            await client.start_container(created.id)
            pid = (await client.agent_info()).pid
            entries = client.logs(created.id, follow=True)
            await anext(entries)
            await asyncio.to_thread(machine.unplug_vsock)
            with pytest.raises(TransportError):
                async for _ in entries:
                    pass
            return created.id, pid

    id, pid = asyncio.run(unplug_under_a_client())
    snapshot = tmp_path / "snapshot"
    machine.save(snapshot)
    saved = time.monotonic()
    machine.close()
    time.sleep(max(0.0, saved + ASLEEP - time.monotonic()))

    async def work(client: Client) -> bytes:
        before = await client.agent_info()
        done = await asyncio.to_thread(Arcboxctl(restored.address), "sync-time")
        assert re.search(r"the clock was [\d.]+ m?s behind, was set, and is [\d.]+ ms (ahead|behind)", done.stdout)
        after = await client.agent_info()
        assert before.pid == after.pid == pid
        # Set again where a guest that was just restored took its time about it.
        assert after.counters["clock_set"] > before.counters.get("clock_set", 0)
        seconds = float((await client.exec(["/bin/date", "+%s"], check=True)).stdout)
        assert abs(seconds - time.time()) < 3
        # Its container never noticed, and the connection of its follower is gone.
        (container,) = await client.list_containers()
        assert (container.id, container.state) == (id, "running")
        assert after.connections == before.connections == 1
        return await random_numbers(client)

    drawn = set()
    for _ in range(2):
        restored = boot(initramfs=minimal_initramfs, memory=MEMORY, snapshot=snapshot)
        drawn.add(with_client(restored, work))
        behind, *_ = re.findall(r"clock set by the host behind=(\S+)", restored.console())
        assert float(behind) >= ASLEEP - 1
        # From the hypervisor, and not what the guest had fetched before the snapshot.
        assert "random pool reseeded hardware_bytes=64 passed_over=256" in restored.console()
        restored.close()
    assert len(drawn) == 2

"""`make vm-bench`: what a real guest shows, and nothing but it.

    boot to first answer     from QEMU's start to the reply to a ping over vsock, median of 3
    round trip over vsock    a ping from the host, one at a time, p50 of 2,000
    loopback in the guest    the same between two processes of the guest, over cid 1
    exec to listening, PSS   the agent started in the guest, median of 7

Under emulation (tcg) the guest's CPU is many times slower than the machine's own: figures
with it compare only with each other.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

import arcbox_agent
from arcbox_agent.client import Client
from tests.vm.kernel import guest_kernel
from tests.vm.machine import Machine, agent_command, guest_environment
from tests.vm.packages import REPOSITORY

BOOTS = 3
PINGS = 2000
STARTS = 7

#: The same loop as here, run in the guest by the exec of the agent that it pings.
_LOOPBACK = """
import asyncio, sys
from tests.vm.bench import round_trip, PINGS
print(asyncio.run(round_trip("vsock://1:1024")))
"""


async def round_trip(address: str) -> float:
    """Microseconds, p50."""
    async with arcbox_agent.connect(address, wait=120) as client:
        taken = []
        for number in range(PINGS):
            started = time.perf_counter()
            reply = await client.ping("x")
            taken.append(time.perf_counter() - started)
            assert reply.message == "pong: x", number
        return statistics.median(taken) * 1e6


async def in_guest(client: Client, *arguments: str) -> str:
    result = await client.exec(
        [sys.executable, *arguments], env=guest_environment(), working_dir=str(REPOSITORY), check=True
    )
    return result.stdout.decode()


async def first_answer(address: str) -> None:
    async with arcbox_agent.connect(address, wait=120) as client:
        await client.ping()


async def measure_guest(address: str) -> tuple[float, float, float, float]:
    from_host = await round_trip(address)
    async with arcbox_agent.connect(address, timeout=300) as client:
        loopback = float(await in_guest(client, "-c", _LOOPBACK))
        starts = [
            line.split() for line in (await in_guest(client, "-m", "tests.vm.footprint", str(STARTS))).splitlines()
        ]
    # The first start reads everything from the host's disk: the median leaves it out.
    to_listening = statistics.median(float(milliseconds) for milliseconds, _ in starts)
    pss = statistics.median(int(size) for _, size in starts)
    return from_host, loopback, to_listening, pss / (1 << 20)


def main() -> int:
    boots = []
    for number in range(BOOTS):
        started = time.monotonic()
        with Machine(agent_command("--listen", "vsock:1024", "--allow-cid", "1")) as machine:
            asyncio.run(first_answer(machine.address))
            boots.append(time.monotonic() - started)
            if number == BOOTS - 1:
                figures = asyncio.run(measure_guest(machine.address))
            kernel_vsock, accelerator = machine.kernel_vsock, machine.accelerator
    from_host, loopback, to_listening, pss = figures
    kernel = guest_kernel()
    vsock = "the kernel's vhost-vsock" if kernel_vsock else "the vhost-user backend of tests/vm"
    print(f"Linux {kernel.release} on {accelerator.name}, 2 CPUs; vsock through {vsock}\n")
    rows = [
        ("boot to first answer", f"{statistics.median(boots):.1f} s"),
        ("round trip over vsock, host to guest, p50", f"{from_host:.0f} us"),
        ("round trip over vsock, in the guest, p50", f"{loopback:.0f} us"),
        ("agent in the guest: exec to listening", f"{to_listening:.0f} ms"),
        ("agent in the guest: PSS when it listens", f"{pss:.1f} MB"),
    ]
    for name, value in rows:
        print(f"  {name:<44}{value:>10}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

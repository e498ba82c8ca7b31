"""`make vm-soak`: the soak of tools/soak.py in a guest, over the loopback of its AF_VSOCK.

    python -m tests.vm.soak --seconds 600 --seed 7

The guest's own agent starts it; what is hurt, killed and judged is another one in the same
guest.  An emulated guest does in a minute what a machine does in some seconds.
"""

from __future__ import annotations

import asyncio
import sys

import arcbox_agent
from arcbox_agent.client import Client, exit_code
from tests.vm.machine import Machine, agent_command, guest_environment
from tests.vm.packages import REPOSITORY

PORT = 2000
#: MiB: the soak's own disk is in memory, as all is that a guest writes.
MEMORY = 768


async def soak(client: Client, *arguments: str) -> tuple[int, str]:
    """Its exit code, and what it said, which is printed as it comes."""
    command = [sys.executable, "-m", "tools.soak", "--vsock", str(PORT), *arguments]
    said = ""
    async with client.exec_stream(command, env=guest_environment(), working_dir=str(REPOSITORY)) as parts:
        async for part in parts:
            text = part.data.decode(errors="replace")
            said += text
            print(text, end="", flush=True)
    return exit_code(part), said


def main() -> int:
    with Machine(agent_command(), memory=MEMORY) as machine:
        machine.wait_until_it_listens()

        async def work() -> int:
            async with arcbox_agent.connect(machine.address) as client:
                code, _ = await soak(client, *sys.argv[1:])
                return code

        return asyncio.run(work())


if __name__ == "__main__":
    sys.exit(main())

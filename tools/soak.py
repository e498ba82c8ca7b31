"""The soak: mixed load with all faults at random, and a judge at the end.

    python -m tools.soak --seconds 120 --seed 7

First part: the agent is killed and started again all the time.  Second part: it
lives through every other fault, so that what it holds at the end can be compared
with what it held at the beginning.  With `--vsock` all of it goes over the loopback
of AF_VSOCK, as in a guest (tests/vm/soak.py).  Ends with 0 if everything that was written
was delivered, and nothing was left behind.  Needs root: it mounts a small tmpfs
to have a disk that can be full.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.stress.agent import AgentProcess, Holdings
from tools.stress.injuries import Injuries
from tools.stress.world import World

CLIENTS = 4
#: Seconds that the clients work between two reconciliations.
ROUND = (0.5, 3.0)
#: What a process may keep of a load that is over: the allocator does not give all back.
MEMORY_KEPT = 8 << 20
#: After a fault calls may still be refused for so long.
GRACE = 1.5
DISK = "48m"
SETTINGS = {
    "containers_at_exit": "leave",
    "log_max_size": "64KiB",
    # A container that is started again and again on a slow machine writes more than a hundred files.
    "log_max_files": "1000",
    "frame_timeout": "2",
}


class Soak:
    def __init__(
        self, directory: Path, seconds: float, seed: int, without: frozenset[str], vsock_port: int | None
    ) -> None:
        self.choice = random.Random(seed)
        self.agent = AgentProcess(
            directory, settings=SETTINGS, state_dir=directory / "disk" / "state", vsock_port=vsock_port
        )
        self.world = World(self.agent, directory, seed)
        self.injuries = Injuries(self.agent, directory / "disk", self.choice)
        unknown = without - {*self.injuries.refusing, *self.injuries.silent}
        if unknown:
            raise ValueError(f"no such faults: {sorted(unknown)}")
        self.without = without
        self.seconds = seconds
        self.begin = self.told = time.monotonic()
        self.killed = 0.0

    @property
    def spent(self) -> float:
        return time.monotonic() - self.begin

    async def run(self) -> list[str]:
        """Everything that is wrong."""
        await self._start()
        while self.spent < self.seconds * 0.55 and not self.world.faults:
            await self._round(then_gone=self.choice.random() < 0.85)
        if not self.world.faults:
            await self.world.finish()
            await self._end(kill=False)
            await self._start()
        if not self.world.faults:
            # What it needs once (the keeper, its threads), it has from here on, and no fault is in its way.
            await self._round(then_gone=False, unhurt=True)
            await self.world.finish()
            before = await asyncio.to_thread(self.agent.holdings_at_rest)
            self._tell(f"holds {before.describe()}")
            while self.spent < self.seconds and not self.world.faults:
                await self._round(then_gone=False)
            if not self.world.faults:
                await self.world.finish()
                self._compare(before, await asyncio.to_thread(self.agent.holdings_at_rest, before))
        if not self.world.faults:
            await self._end(kill=False)
        return self.world.faults

    async def _start(self) -> None:
        self.agent.start()
        await asyncio.to_thread(self.agent.wait_until_it_answers)
        self.world.outages.add(self.killed, time.clock_gettime(time.CLOCK_BOOTTIME))
        self.world.stopping = False

    async def _end(self, *, kill: bool) -> None:
        self.killed = time.clock_gettime(time.CLOCK_BOOTTIME)
        if kill:
            self.agent.kill()
            self.world.counts["kills"] += 1
        else:
            self.world.stopping = True
            await asyncio.to_thread(self.agent.stop)
            self.world.counts["restarts"] += 1

    async def _round(self, *, then_gone: bool, unhurt: bool = False) -> None:
        """All clients at work, faults meanwhile, and at the end the judge."""
        world, choice = self.world, self.choice
        world.pausing = False
        clients = [
            asyncio.create_task(world.client(f"s{number}", random.Random(choice.getrandbits(64))))
            for number in range(CLIENTS)
        ]
        clients.append(asyncio.create_task(world.follower(random.Random(choice.getrandbits(64)))))
        end = time.monotonic() + choice.uniform(*ROUND)
        while time.monotonic() < end and not world.faults:
            await asyncio.sleep(choice.uniform(0.02, 0.3))
            if not unhurt:
                await self._injure()
        if then_gone:
            # Killed in the middle of the calls; a clean end may come then, too.
            await self._end(kill=choice.random() < 0.85)
        else:
            world.pausing = True
        await asyncio.gather(*clients)
        if then_gone:
            await self._start()
        if world.trouble:
            await asyncio.sleep(GRACE)
            world.trouble = False
        if not world.faults:
            await world.reconcile()
        if time.monotonic() - self.told > 5:
            self._tell(f"agent holds {self.agent.holdings().describe()}")

    async def _injure(self) -> None:
        refusing, silent = self.injuries.refusing, self.injuries.silent
        name = self.choice.choice([name for name in (*refusing, *silent) if name not in self.without])
        if name in refusing:
            self.world.trouble = True
            await refusing[name]()
        else:
            await silent[name]()
        self.world.counts[name] += 1

    def _compare(self, before: Holdings, after: Holdings) -> None:
        self._tell(f"holds {after.describe()}")
        if more := Counter(after.files) - Counter(before.files):
            self.world.fault(f"descriptors at the end that were not there at the beginning: {dict(more)}")
        if after.children:
            self.world.fault(f"children at the end: {after.children}")
        if after.memory > before.memory + MEMORY_KEPT:
            self.world.fault(f"{after.memory} bytes at the end, {before.memory} at the beginning")

    def _tell(self, text: str) -> None:
        self.told = time.monotonic()
        counts = ", ".join(f"{number} {name}" for name, number in sorted(self.world.counts.items()))
        print(f"[{self.spent:6.1f} s] {text}; {counts}", flush=True)


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """A tmpfs, so that a full disk harms nobody else."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--without", action="append", default=[], metavar="FAULT", help="leave out, e.g. 'full disk'")
    parser.add_argument(
        "--vsock", type=int, metavar="PORT", help="reach the agent there, over the loopback of AF_VSOCK"
    )
    options = parser.parse_args(arguments)
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}, {options.seconds:g} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="arcbox-soak-") as name:
        directory = Path(name)
        with small_disk(directory / "disk", DISK):
            soak = Soak(directory, options.seconds, seed, frozenset(options.without), options.vsock)
            try:
                faults = asyncio.run(soak.run())
            finally:
                if soak.agent.running:
                    soak.agent.kill()
                soak.world.end_all_processes()
            log = soak.agent.log(whole=True).splitlines()
    if faults:
        concerned = [id for id in soak.world.every_id if any(re.search(rf"\b{id}\b", fault) for fault in faults)]
        lines = [line for line in log if any(f"container={id}" in line.split() or f"{id}." in line for id in concerned)]
        print("the agent's log of the containers concerned:", *lines[-200:], sep="\n", file=sys.stderr)
        print("the end of the agent's log:", *log[-60:], sep="\n", file=sys.stderr)
        for fault in faults[:20]:
            print(f"FAULT {fault}", file=sys.stderr)
        print(f"verdict: {len(faults)} faults; again with --seed {seed}", flush=True)
        return 1
    print("verdict: everything written was delivered, nothing is left behind", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The fault run: agent, keeper, or both are killed by SIGKILL at random moments, and nothing may be lost.

    python -m tools.faults --kills 600 --seed 7

Clients create, start, stop, kill, wait for and remove containers, run commands, read and
follow logs meanwhile.  After each death of the agent all that it lists is compared with what
was asked, and with what the containers themselves left as evidence (tools/stress): every line
once and in order, every exit code, no process, record, FIFO, cgroup or mount too many.

Only what ended while neither agent nor keeper was there may be lost, and must be told as lost:
how often that happened is shown apart.  It ends with 0 where nothing was lost otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from arcbox_agent.agent.processes import cgroups
from arcbox_agent.agent.processes.scopes import cgroup_name
from tools.stress.agent import PATIENCE, AgentProcess
from tools.stress.model import Outages
from tools.stress.world import World

CLIENTS = 4
#: A small log file, so that rotation is in full swing; enough of them, so that no line is old on a slow machine.
SETTINGS = {"containers_at_exit": "leave", "log_max_size": "64KiB", "log_max_files": "1000"}
#: Who is killed, and how often of ten.
VICTIMS = {"agent": 5, "keeper": 3, "both": 2}
#: Seconds of work before a kill.
WORK = (0.02, 0.35)
#: A death that is not noticed within this many seconds is one of a keeper with nothing to keep.
UNNOTICED = 1.0

_DEATH = "the keeper was killed"
_REPLACED = "the next keeper has what the former one held"


class FaultRun:
    """One agent, its world, and the kills."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.choice = random.Random(seed)
        self.agent = AgentProcess(directory, settings=SETTINGS)
        self.world = World(self.agent, directory, seed)
        self.world.blind = Outages()
        self.kills: Counter[str] = Counter()
        self._clients: list[asyncio.Task[None]] = []

    async def run(self, kills: int, seconds: float) -> None:
        """Until there were `kills` of them, or `seconds` are over, or something is wrong."""
        deadline = time.monotonic() + seconds
        self.agent.start()
        await asyncio.to_thread(self.agent.wait_until_it_answers)
        while sum(self.kills.values()) < kills and time.monotonic() < deadline and not self.world.faults:
            self._put_to_work()
            await asyncio.sleep(self.choice.uniform(*WORK))
            (victim,) = self.choice.choices(list(VICTIMS), weights=list(VICTIMS.values()))
            self.kills[victim] += 1
            if victim == "keeper":
                await self._kill_keeper()
            else:
                await self._kill_agent(with_keeper=victim == "both")
        if not self.world.faults:
            await self._end()

    def _put_to_work(self) -> None:
        if any(not client.done() for client in self._clients):
            return
        self._clients = [
            asyncio.create_task(self.world.client(f"k{number}", random.Random(self.choice.getrandbits(64))))
            for number in range(CLIENTS)
        ]
        self._clients.append(asyncio.create_task(self.world.follower(random.Random(self.choice.getrandbits(64)))))

    async def _kill_keeper(self) -> None:
        keeper = keeper_of(self.agent.run_dir)
        if not keeper:
            return  # no container was started since the last one ended
        before = self._said(_REPLACED)
        deaths = self._said(_DEATH)
        os.kill(keeper, signal.SIGKILL)
        killed = time.monotonic()
        while self._said(_REPLACED) == before:
            noticed = self._said(_DEATH) > deaths
            if time.monotonic() > killed + (PATIENCE if noticed else UNNOTICED):
                if noticed:
                    self.world.fault("a keeper that was killed was not replaced")
                return
            await asyncio.sleep(0.01)
        self.world.counts["keepers replaced"] += 1

    def _said(self, text: str) -> int:
        return self.agent.log(whole=True).count(text)

    async def _kill_agent(self, with_keeper: bool) -> None:
        killed = time.clock_gettime(time.CLOCK_BOOTTIME)
        keeper = keeper_of(self.agent.run_dir) if with_keeper else 0
        keeper_first = self.choice.random() < 0.5
        if keeper and keeper_first:
            os.kill(keeper, signal.SIGKILL)
        self.agent.kill()
        if keeper and not keeper_first:
            os.kill(keeper, signal.SIGKILL)
        await asyncio.gather(*self._clients)
        self._clients.clear()
        self.agent.start()
        if self.choice.random() < 0.2:
            # Once more, while it starts and finds again what was there.
            await asyncio.sleep(self.choice.uniform(0.0, 0.3))
            self.agent.kill()
            self.kills["agent"] += 1
            self.agent.start()
        await asyncio.to_thread(self.agent.wait_until_it_answers)
        answered = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.world.outages.add(killed, answered)
        if keeper and self.world.blind is not None:
            self.world.blind.add(killed, answered)
        await self.world.reconcile()

    async def _end(self) -> None:
        """Let the clients finish, remove everything, and stop the agent: nothing is left."""
        self.world.pausing = True
        await asyncio.gather(*self._clients)
        await self.world.finish()
        await asyncio.to_thread(self.agent.stop)
        deadline = time.monotonic() + PATIENCE
        while left := self._left():
            if time.monotonic() > deadline:
                self.world.faults += left
                return
            await asyncio.sleep(0.05)

    def _left(self) -> list[str]:
        """What is there of an agent that has ended, and has no containers."""
        left = []
        if keeper := keeper_of(self.agent.run_dir):
            left.append(f"keeper {keeper} is left at the end")
        parent = cgroups.find_parent(cgroup_name(str(self.agent.state_dir)))
        if parent is not None:
            left += [f"cgroup {path} is left at the end" for path in Path(parent).glob("*/")]
            # Looking for it has made it.
            if not left:
                os.rmdir(parent)
        left += [f"{path} is left at the end" for path in self.agent.run_dir.glob("containers/*")]
        with open("/proc/self/mountinfo", encoding="utf-8") as table:
            left += [f"a mount is left at the end: {line}" for line in table if str(self.agent.directory) in line]
        return left

    def report(self) -> str:
        counts = self.world.counts
        kills = ", ".join(f"{victim} {self.kills[victim]}" for victim in VICTIMS)
        return (
            f"{sum(self.kills.values())} kills ({kills}), {len(self.world.faults)} faults; "
            f"ended unseen with both dead, and told as lost: {counts['codes lost with both']}; "
            f"{counts['start']} starts, {counts['wait']} codes, {counts['log lines']} log lines judged, "
            f"{counts['exec']} commands, {counts['follows']} follows, {counts['keepers replaced']} keepers replaced"
        )


def keeper_of(run_dir: Path) -> int:
    """The keeper that listens in that run directory; 0: there is none."""
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as table:
        rows = [line.split() for line in table]
    inodes = {row[6] for row in rows if len(row) > 7 and row[7].startswith(f"{run_dir}/keeper")}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            name = Path(f"/proc/{pid}/comm").read_text()
            if name.startswith("arcbox-keeper") and os.readlink(f"/proc/{pid}/fd/0")[8:-1] in inodes:
                return int(pid)
        except OSError:
            continue  # it has ended meanwhile
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=86400.0, help="end after this time, whatever was killed")
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().getrandbits(32)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="arcbox-") as name:
        run = FaultRun(Path(name), seed)
        try:
            asyncio.run(run.run(arguments.kills, arguments.seconds))
        finally:
            if run.agent.running:
                run.agent.kill()
            run.world.end_all_processes()
        print(run.report())
        if run.world.faults:
            print("\n".join([*run.world.faults[:20], run.agent.log()]))
        return 1 if run.world.faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""The cut run: executions through a proxy that cuts its connections, under an agent that is killed.

    python -m tools.cuts --commands 1000 --cuts 10000 --kills 200 --seed 7

Each command is given input, echoes it, and ends with a code of its own.  Meanwhile a proxy closes each of its
connections after a random number of bytes, in the middle of frames, and the agent, the keeper or both are
killed.  At the end each command must have been started once, and must have got its input and given its output
and its exit code byte by byte.  A code may be `unknown` only where the keeper was killed.  Ends with 0 if all
of that holds, and nothing is left behind.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import arcbox_agent
from arcbox_agent.errors import ArcboxError, ConnectError
from tools.faults import keeper_of
from tools.stress.agent import PATIENCE, AgentProcess

#: Commands that run at one time.
AT_ONCE = 8
#: Bytes that a connection passes on before it is cut: at most.
MOST = 60_000
#: The longest input of a command.
INPUT = 100_000
#: Seconds between two kills.
PAUSE = (0.3, 1.2)
SETTINGS = {"containers_at_exit": "leave", "max_executions": "100000"}


class Proxy:
    """Between the clients and the agent.  `cuts`: how many connections it has cut."""

    def __init__(self, agent: Path, most_cuts: int, choice: random.Random) -> None:
        self._agent = agent
        self._choice = choice
        self._most = most_cuts
        self.cuts = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # the agent is gone, or the run is over
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(str(self._agent))
        left = [self._choice.randrange(1, MOST)] if self.cuts < self._most else [1 << 62]
        try:
            ways = [asyncio.ensure_future(self._pass(*way, left)) for way in ((reader, back), (there, writer))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if left[0] <= 0:
                self.cuts += 1
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            back.transport.abort()

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: list[int]) -> None:
        while data := await reader.read(min(1 << 16, max(1, left[0]))):
            left[0] -= len(data)
            writer.write(data)
            await writer.drain()
            if left[0] <= 0:
                return

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class CutRun:
    """One run; `wrong`: what did not hold."""

    def __init__(self, directory: Path, seed: int, cuts: int) -> None:
        self.choice = random.Random(seed)
        self.directory = directory
        self.agent = AgentProcess(directory, settings=SETTINGS)
        self.proxy = Proxy(self.agent.socket_path, cuts, random.Random(seed))
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._keeper_killed = 0.0

    async def run(self, commands: int, kills: int) -> None:
        self.agent.start()
        await asyncio.to_thread(self.agent.wait_until_it_answers)
        path = self.directory / "proxy.sock"
        server = await asyncio.start_unix_server(self.proxy.serve, str(path))
        killing = asyncio.ensure_future(self._kill(kills))
        try:
            async with arcbox_agent.connect(f"unix://{path}", timeout=PATIENCE) as client:
                places = asyncio.Semaphore(AT_ONCE)

                async def one(number: int) -> None:
                    async with places:
                        await self._command(client, number)

                await asyncio.gather(*(one(number) for number in range(commands)))
            await killing
        finally:
            killing.cancel()
            await asyncio.gather(killing, return_exceptions=True)
            server.close()
            await self.proxy.close()
        self._judge(commands)

    async def _command(self, client: arcbox_agent.Client, number: int) -> None:
        code = self.choice.randrange(100)
        octets = self.choice.randbytes(self.choice.randrange(INPUT))
        script = f"echo x >>{self.directory}/started-{number}; cat; echo err >&2; exit {code}"
        began = time.monotonic()
        try:
            async with asyncio.timeout(5 * PATIENCE):
                async with client.popen(
                    ["/bin/sh", "-c", script], id=f"c{number}", stdin=True, reattach=PATIENCE, heartbeat=1.0
                ) as process:
                    assert process.stdin is not None
                    assert process.stdout is not None
                    assert process.stderr is not None
                    process.stdin.write(octets)
                    process.stdin.close()
                    out, err = await asyncio.gather(process.stdout.read(), process.stderr.read())
                    end = await process.wait()
        except (ArcboxError, TimeoutError, OSError) as error:
            self.wrong.append(f"c{number}: {type(error).__name__}: {error}")
            return
        self.counts[end.cause] += 1
        if out != octets or err != b"err\n":
            self.wrong.append(f"c{number}: {len(out)} bytes came for {len(octets)}, and {err!r}")
        if (end.cause, end.exit_code) != ("exited", code):
            lost = end.cause == "unknown" and self._keeper_killed >= began
            if not lost:
                self.wrong.append(f"c{number}: ended with {end.cause} {end.exit_code}, not {code}")

    async def _kill(self, kills: int) -> None:
        for _ in range(kills):
            await asyncio.sleep(self.choice.uniform(*PAUSE))
            victim = self.choice.choice(("agent", "agent", "agent", "keeper"))
            self.counts[f"{victim} killed"] += 1
            if victim == "keeper":
                keeper = await asyncio.to_thread(keeper_of, self.agent.run_dir)
                if keeper:
                    self._keeper_killed = time.monotonic()
                    os.kill(keeper, signal.SIGKILL)
                continue
            self.agent.kill()
            self.agent.start()
            await asyncio.to_thread(self.agent.wait_until_it_answers)

    def _judge(self, commands: int) -> None:
        for number in range(commands):
            path = self.directory / f"started-{number}"
            started = path.read_text() if path.exists() else ""
            if started != "x\n":
                self.wrong.append(f"c{number}: started {started.count('x')} times")
        give_up = time.monotonic() + PATIENCE
        while left := os.listdir(self.agent.run_dir / "executions"):
            if time.monotonic() > give_up:
                self.wrong.append(f"left in the run directory: {left[:5]}")
                break
            time.sleep(0.05)


@contextmanager
def a_run(seed: int, cuts: int) -> Iterator[CutRun]:
    with tempfile.TemporaryDirectory(prefix="arcbox-cuts-") as directory:
        run = CutRun(Path(directory), seed, cuts)
        try:
            yield run
        finally:
            try:
                run.agent.stop()
            except (OSError, ConnectError):
                run.agent.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", type=int, default=1000)
    parser.add_argument("--cuts", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    began = time.monotonic()
    with a_run(arguments.seed, arguments.cuts) as run:
        asyncio.run(run.run(arguments.commands, arguments.kills))
        shown = ", ".join(f"{count} {what}" for what, count in sorted(run.counts.items()))
        print(f"[{time.monotonic() - began:.0f} s] {run.proxy.cuts} connections cut; {shown}")
        for line in run.wrong[:50]:
            print("WRONG", line)
        if run.wrong:
            print(run.agent.log()[-4000:])
    print("verdict:", "WRONG" if run.wrong else "every byte and every code came once")
    return 1 if run.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

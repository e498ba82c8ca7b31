"""A world of containers under an agent that is hurt all the time, and the judge of it.

Clients create, start, stop, kill, wait for and remove containers, run commands
and read logs, until the agent goes away under them.  Once it is back, `reconcile`
compares what it lists with what was asked (model.py) and with what the processes
themselves left as evidence (evidence.py).  Whatever does not fit is in `faults`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arcbox_agent import connect
from arcbox_agent.errors import CallTimeoutError, RequestError, TransportError
from tools.compiled import compiled
from tools.stress import evidence
from tools.stress.agent import PATIENCE, AgentProcess
from tools.stress.evidence import STREAMS, Run
from tools.stress.model import LOST, Asked, Outages, any_kind

#: The line that stands in a log for those which could not be written to it.
_GAP = re.compile(rb"\[output lost: \d+ bytes, (\d+) lines")

WRITER = Path(__file__).resolve().parent / "writer.c"
#: Containers that one client has at a time.
CONTAINERS_EACH = 3


class RefusedError(Exception):
    """A call was refused because of trouble that there is; what it did is open until the next list."""


class World:
    def __init__(self, agent: AgentProcess, directory: Path, seed: int) -> None:
        self.agent = agent
        self.evidence = directory / "evidence"
        self.evidence.mkdir()
        # A copy of its own: who runs it belongs to this world and to no other.
        self.writer = directory / "writer"
        shutil.copy(compiled(WRITER), self.writer)
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self.outages = Outages()
        #: When neither agent nor keeper was there to see an end: with it, only then may a code or a last line be
        #: lost, and it must be told.
        self.blind: Outages | None = None
        #: May a call be refused for a reason of the machine's (full disk, no descriptors)?
        self.trouble = False
        #: The agent is being stopped in order: it may say so instead of answering.
        self.stopping = False
        #: The clients are to come to an end, though the agent is there.
        self.pausing = False
        self.every_id: set[str] = set()
        self._asked: dict[str, Asked] = {}
        self._choice = random.Random(seed)
        self._made = 0

    def fault(self, text: str) -> None:
        self.faults.append(text)

    # ---------------------------------------------------------------- clients

    async def client(self, name: str, choice: random.Random) -> None:
        """One client at work until the agent goes away."""
        own = [asked for asked in self._asked.values() if asked.id.startswith(f"{name}-")]
        try:
            async with connect(self.agent.address, timeout=PATIENCE) as client:
                while not self.pausing:
                    # A container with an open question waits for the next reconciliation.
                    own = [asked for asked in own if asked.exists and asked.running is not None]
                    try:
                        await self._step(client, name, own, choice)
                        self.counts["steps"] += 1
                    except RefusedError:
                        self.counts["refused"] += 1
        except CallTimeoutError as error:
            self.fault(f"{name}: {error}")
        except TransportError:
            return

    async def follower(self, choice: random.Random) -> None:
        """Follows one container after the other, now and then slowly, to the end of each."""
        try:
            async with connect(self.agent.address, timeout=PATIENCE) as client:
                while not self.pausing and self.agent.running:
                    running = [asked for asked in self._asked.values() if asked.running and not asked.kind.endless]
                    if not running:
                        await asyncio.sleep(0.02)
                        continue
                    asked = choice.choice(running)
                    run = asked.starts_sent
                    entries = []
                    try:
                        async for entry in client.logs(asked.id, follow=True):
                            entries.append((entry.stream, entry.data))
                            if choice.random() < 0.002:
                                await asyncio.sleep(choice.uniform(0, 0.1))
                    except RequestError:
                        continue  # removed meanwhile, or there is trouble
                    if asked.exists and asked.starts_sent == run:
                        self._judge_log(asked, entries)
                        self.counts["follows"] += 1
        except CallTimeoutError as error:
            self.fault(f"follower: {error}")
        except TransportError:
            return

    async def _step(self, client: Any, name: str, own: list[Asked], choice: random.Random) -> None:
        dice = choice.random()
        if dice < 0.15:
            await self._command(client, choice)
            return
        if dice < 0.2:
            reply = await client.ping(name)
            if reply.message != f"pong: {name}":
                self.fault(f"ping answered {reply.message!r}")
            return
        if len(own) < CONTAINERS_EACH and (not own or choice.random() < 0.5):
            self._made += 1
            asked = Asked(f"{name}-{self._made}", any_kind(choice))
            self._asked[asked.id] = asked
            self.every_id.add(asked.id)
            await self._create(client, asked)
            own.append(asked)
            return
        asked = choice.choice(own)
        if not asked.running:
            if asked.starts_sent < 3 and choice.random() < 0.7:
                await self._start(client, asked)
            else:
                await self._remove(client, asked, force=choice.random() < 0.3)
        elif asked.kind.endless:
            if dice < 0.5:
                await self._read_log(client, asked)
            elif dice < 0.9:
                await self._stop(client, asked, choice)
            else:
                await self._remove(client, asked, force=True)
        else:
            await self._wait(client, asked)

    async def _guarded(self, what: str, asked: Asked, call: Callable[[], Any]) -> Any:
        """The call's answer.  Raises RefusedError where it was refused because of trouble."""
        try:
            answer = await call()
        except RequestError as error:
            if not self.trouble and not (self.stopping and error.message == "the agent is stopping"):
                self.fault(f"{what} {asked.id}: error {error.code}: {error.message}")
            asked.interrupted = True
            raise RefusedError from error
        except TransportError:
            asked.interrupted = True
            raise
        self.counts[what] += 1
        return answer

    async def _create(self, client: Any, asked: Asked) -> None:
        asked.exists = None
        cmd = [str(self.writer), str(self.evidence), asked.id, *asked.kind.arguments()]
        reply = await self._guarded("create", asked, lambda: client.create_container(id=asked.id, cmd=cmd))
        asked.exists = True
        if reply.id != asked.id:
            self.fault(f"create {asked.id} answered with the id {reply.id!r}")

    async def _start(self, client: Any, asked: Asked) -> None:
        asked.start_sent()
        asked.running = None
        await self._guarded("start", asked, lambda: client.start_container(asked.id))
        asked.starts_answered += 1
        asked.running = True

    async def _stop(self, client: Any, asked: Asked, choice: random.Random) -> None:
        asked.signalled = True
        asked.running = None
        if "stubborn" in asked.kind.options or choice.random() < 0.2:
            await self._guarded("kill", asked, lambda: client.kill_container(asked.id, signal="KILL"))
            await self._wait(client, asked)
            return
        # What is left behind ignores SIGTERM, and is killed when the time is up.
        timeout = 1 if "brood" in asked.kind.options else 20
        await self._guarded("stop", asked, lambda: client.stop_container(asked.id, timeout=timeout))
        asked.running = False
        self._nothing_lives(asked, "stop was answered")

    async def _wait(self, client: Any, asked: Asked) -> None:
        asked.running = None
        reply = await self._guarded("wait", asked, lambda: client.wait_container(asked.id))
        asked.running = False
        self._nothing_lives(asked, "wait was answered")
        self._judge_code(asked, reply.status_code, reply.error)

    async def _remove(self, client: Any, asked: Asked, *, force: bool) -> None:
        asked.exists = None
        asked.signalled |= force
        await self._guarded("remove", asked, lambda: client.remove_container(asked.id, force=force))
        asked.exists = False
        self._nothing_lives(asked, "remove was answered")
        del self._asked[asked.id]
        # Its id is never used again, and each look reads all the evidence that there is.
        for path in self.evidence.glob(f"{asked.id}.*"):
            path.unlink()

    async def _command(self, client: Any, choice: random.Random) -> None:
        text, code = f"{choice.getrandbits(64):x}", choice.randrange(100)
        asked = Asked("(exec)", any_kind(choice))
        script = f"echo {text}; echo {text[::-1]} >&2; exit {code}"
        result = await self._guarded("exec", asked, lambda: client.exec(["/bin/sh", "-c", script]))
        seen = (result.exit_code, result.stdout, result.stderr)
        if seen != (code, text.encode() + b"\n", text[::-1].encode() + b"\n"):
            self.fault(f"exec of {script!r} gave {seen}")

    async def _read_log(self, client: Any, asked: Asked) -> None:
        entries = await self._guarded("logs", asked, lambda: _entries(client, asked.id))
        self._judge_log(asked, entries)

    # -------------------------------------------------------------- the judge

    def runs(self) -> dict[str, list[Run]]:
        found: dict[str, list[Run]] = {}
        for run in evidence.runs(self.evidence):
            found.setdefault(run.name, []).append(run)
        return found

    async def reconcile(self) -> None:
        """The agent is back: is everything as it must be?"""
        deadline = time.monotonic() + PATIENCE / 2
        async with connect(self.agent.address, timeout=PATIENCE) as client:
            while True:
                listed = {info.id: info for info in await client.list_containers(all=True)}
                # What a process or the agent is about to do right now is no fault yet.
                wrong = self._compare(listed) + self._files(set(listed))
                if not wrong or time.monotonic() > deadline:
                    break
                await asyncio.sleep(0.02)
            self.faults += wrong
            self._take_over(listed)
            self.counts["reconciled"] += 1
            for asked in list(self._asked.values()):
                if not asked.running and asked.starts_sent:
                    await self._read_log(client, asked)

    def _compare(self, listed: dict[str, Any]) -> list[str]:
        runs = self.runs()
        wrong = [f"{id} is listed, and nobody asked for it" for id in listed.keys() - self._asked.keys()]
        for asked in self._asked.values():
            info = listed.get(asked.id)
            if info is None:
                if asked.exists:
                    wrong.append(f"{asked.id} is not listed")
            elif asked.exists is False:
                wrong.append(f"{asked.id} was removed, and is listed")
            else:
                wrong += self._compare_one(asked, info, runs.get(asked.id, []))
        known = {run.pid for id in listed for run in runs.get(id, [])[-1:]}
        known |= {run.brood for id in listed for run in runs.get(id, [])[-1:]}
        running = {info.pid for info in listed.values() if info.state == "running"}
        for pid in processes_of(self.writer):
            if pid not in known and pid not in running:
                wrong.append(f"process {pid} belongs to no container that is listed")
        return wrong

    def _compare_one(self, asked: Asked, info: Any, runs: list[Run]) -> list[str]:
        id, last = asked.id, runs[-1] if runs else None
        if len(runs) > asked.starts_sent:
            return [f"{id} ran {len(runs)} times for {asked.starts_sent} starts"]
        if len(runs) + asked.silent + asked.signalled < asked.starts_answered:
            return [f"{id} ran {len(runs)} times, but {asked.starts_answered} starts were answered"]
        alive = last is not None and last.alive
        if info.state == "running":
            if last is None or not alive:
                return [f"{id} is listed as running, and no process of it is alive"]
            if info.pid != last.pid or info.status != f"Running (PID: {last.pid})":
                return [f"{id} runs as {last.pid}, and is listed with {info.pid}, {info.status!r}"]
            return []
        if alive:
            assert last is not None
            return [f"{id} is listed as {info.state}, and its process {last.pid} is alive"]
        if last is not None and last.brood and evidence.is_alive(last.brood, last.started + 1):
            return [f"{id} is listed as {info.state}, and its descendant {last.brood} is alive"]
        if info.state == "created":
            return [f"{id} is listed as created, and has run"] if runs else []
        if info.state != "stopped":
            return [f"{id} is listed as {info.state!r}"]
        if last is None or len(runs) < asked.starts_sent:
            return []  # a start that was under way: what it came to is in `error`
        return self._code_faults(asked, last, info.exit_code, info.error)

    def _code_faults(self, asked: Asked, run: Run, code: int, error: str) -> list[str]:
        if code in asked.codes(run):
            return []
        if code == LOST and "lost" in error and self.blind is not None:
            if self._unseen(run):
                self.counts["codes lost with both"] += 1
                return []
        elif code == LOST and "lost" in error:
            unseen = asked.interrupted or run.exit_code is None or self.outages.cover(run.exit_time)
            if unseen:
                self.counts["lost codes"] += 1
                return []
        return [
            f"{asked.id} ended with {run.exit_code} (signalled: {asked.signalled}), "
            f"and is said to have ended with {code} {error!r}"
        ]

    def _unseen(self, run: Run) -> bool:
        """Whether it ended while neither agent nor keeper was there, as far as it can say when it ended."""
        if self.blind is None:
            return False
        return self.blind.since(run.started) if run.exit_code is None else self.blind.cover(run.exit_time)

    def _judge_code(self, asked: Asked, code: int, error: str) -> None:
        runs = self.runs().get(asked.id, [])
        if runs and len(runs) == asked.starts_sent:
            self.faults += self._code_faults(asked, runs[-1], code, error)

    def _nothing_lives(self, asked: Asked, when: str) -> None:
        for run in self.runs().get(asked.id, []):
            for pid in (run.pid, run.brood):
                if pid and evidence.is_alive(pid, run.started + 1):
                    self.fault(f"{asked.id}: process {pid} is alive after {when}")

    def _judge_log(self, asked: Asked, entries: list[tuple[str, bytes]]) -> None:
        """Each run's lines, all of them, once, in order, in their stream.

        What was dropped while the disk was full must be told: a gap, with the number of lines.
        """
        runs = self.runs().get(asked.id, [])
        for stream in STREAMS:
            lines = [data for kind, data in entries if kind == stream]
            at = 0
            for run in runs:
                number = 0
                while at < len(lines):
                    if lines[at] == evidence.line(run.name, run.run, number):
                        number += 1
                    elif gap := _GAP.match(lines[at]):
                        number += int(gap[1])
                        self.counts["lines in gaps"] += int(gap[1])
                    else:
                        break
                    at += 1
                least = 0 if run.alive or self._unseen(run) else run.written[stream]
                # A line that was intended may be in the pipe though its writer was
                # killed before it could say so.
                if not least <= number <= run.intended[stream]:
                    seen = lines[at][:60] if at < len(lines) else b"the end"
                    self.fault(
                        f"log of {asked.id}, {stream}, run {run.run}: {number} lines and then {seen!r}, "
                        f"but {run.written[stream]} were written ({run.intended[stream]} intended); {run}"
                    )
                    return
            if at < len(lines):
                self.fault(f"log of {asked.id}, {stream}: more than was written: {lines[at][:60]!r}")
                return
        self.counts["log lines"] += len(entries)

    def _take_over(self, listed: dict[str, Any]) -> None:
        """What the agent lists is now what is so."""
        for asked in list(self._asked.values()):
            info = listed.get(asked.id)
            if info is None:
                del self._asked[asked.id]
                continue
            asked.exists = True
            asked.running = info.state == "running"

    def _files(self, listed: set[str]) -> list[str]:
        """Files of the state and run directories that should not be there, or are broken."""
        wrong = []
        for path in self.agent.state_dir.glob("containers/*"):
            if path.suffix != ".json" or path.stem not in listed:
                wrong.append(f"{path.name} is left in the state directory")
                continue
            try:
                json.loads(path.read_bytes())
            except ValueError as error:
                wrong.append(f"{path.name} is half written: {error}")
        for path in self.agent.run_dir.glob("containers/*"):
            if path.name not in listed:
                wrong.append(f"{path.name} is left in the run directory")
        return wrong

    # ----------------------------------------------------------------- the end

    async def finish(self) -> None:
        """Stop, judge and remove everything; nothing may be left."""
        await self.reconcile()
        async with connect(self.agent.address, timeout=PATIENCE) as client:
            for asked in list(self._asked.values()):
                if asked.running:
                    asked.signalled = True
                    await client.kill_container(asked.id, signal="KILL")
                    await self._wait(client, asked)
                if asked.starts_sent:
                    await self._read_log(client, asked)
                await self._remove(client, asked, force=False)
            left = await client.list_containers(all=True)
        if left:
            self.fault(f"still listed at the end: {[info.id for info in left]}")
        self.faults += [f"process {pid} is left at the end" for pid in processes_of(self.writer)]
        self.faults += self._files(set())
        self.faults += [f"{path.name} is left at the end" for path in self.agent.state_dir.glob("logs/*")]

    def end_all_processes(self) -> None:
        """For a test that failed: leave nothing running behind."""
        for pid in processes_of(self.writer):
            os.kill(pid, signal.SIGKILL)


async def _entries(client: Any, id: str) -> list[tuple[str, bytes]]:
    return [(entry.stream, entry.data) async for entry in client.logs(id)]


def processes_of(program: Path) -> list[int]:
    """Every live process that runs the program."""
    wanted = os.stat(program)
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            seen = os.stat(f"/proc/{entry.name}/exe")
        except OSError:
            continue  # gone, or a zombie, or a kernel thread
        if (seen.st_dev, seen.st_ino) == (wanted.st_dev, wanted.st_ino):
            found.append(int(entry.name))
    return found

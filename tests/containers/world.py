"""A supervisor in this process, with all that it works with: what runs in it, and on its disk, is real.

What an agent would hide stands open here: the states between two calls, the events, each write of a
record.  What the machine seldom does is brought about, not imitated: the disk is a small tmpfs that a
test fills, a start hangs as somebody has a lease of its program, a process cannot be killed in a frozen cgroup of the
old kind.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from arcbox_agent.agent.config.table import Settings
from arcbox_agent.agent.containers.events import Event, Events, Exit
from arcbox_agent.agent.containers.journal import Journal
from arcbox_agent.agent.containers.lifecycle import State
from arcbox_agent.agent.containers.model import Container
from arcbox_agent.agent.containers.output.capture import Capture
from arcbox_agent.agent.containers.record import Record
from arcbox_agent.agent.containers.runtimes.choose import Runtimes
from arcbox_agent.agent.containers.store import Store
from arcbox_agent.agent.containers.supervisor import Supervisor
from arcbox_agent.agent.containers.waiting import wait
from arcbox_agent.agent.metrics import Metrics
from arcbox_agent.agent.processes import cgroups
from arcbox_agent.agent.processes.children import Processes
from arcbox_agent.agent.processes.lanes import Lanes
from arcbox_agent.agent.processes.scopes import cgroup_name
from tools.pace import patience
from tools.soak import small_disk

from .support import alive, children, eventually, leased, run

#: Ends with the code that it is told (World.tell).
OBEDIENT = "read code; exit $code"
#: The same, and SIGTERM does not end it.
DEAF = "trap '' TERM; echo ready; read code; exit $code"


#: For `leaving`: it does not end by itself.
FOR_EVER = "while :; do sleep 1000; done"


def leaving(what: str, main: str = OBEDIENT) -> str:
    """A script that leaves a process in a session of its own, deaf to SIGTERM, which says `left PID` first."""
    return f"setsid sh -c 'trap \"\" TERM; echo left $$; {what}' & {main}"


class Disk(Store):
    """The store, which notes each write: the state, and whether it is synced; and can be slow."""

    def __init__(self, state_dir: str, run_dir: str) -> None:
        super().__init__(state_dir, run_dir)
        #: Of which container a write was begun, and what was written.
        self.attempts: list[str] = []
        self.written: list[tuple[str, bool]] = []
        self.on_write: Callable[[str], None] = lambda state: None

    def write(self, record: Record, durable: bool = True) -> None:
        self.attempts.append(record.id)
        self.on_write(record.state)
        super().write(record, durable)
        self.written.append((record.state, durable))


class World:
    """One container `x`, and all that it needs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.events = Events()
        self.published: list[Event] = []
        self.events.subscribe(self.published.append)
        self.metrics = Metrics()
        self.events.subscribe(Journal(self.metrics))
        self.containers: list[Container] = []
        self.forgotten: list[Container] = []
        self._hanging = ExitStack()
        self.release: Callable[[], object] = self._hanging.close
        parent = cgroups.find_parent(cgroup_name(str(directory / "disk")))
        assert parent is not None, "these tests need cgroup2, writable"
        self.cgroup = Path(parent)
        self._strangers = set(children())

    # ------------------------------------------------------------ begin and end

    async def open(self) -> None:
        """As at the start of an agent."""
        settings = Settings()
        settings.state_dir, settings.run_dir = str(self.directory / "disk"), str(self.directory / "run")
        settings.late_output = 0.3
        self.lanes = Lanes()
        self.processes = Processes(asyncio.get_running_loop(), self.lanes, self.metrics)
        self.capture = Capture(settings, self.metrics)
        await self.capture.start()
        self.disk = Disk(settings.state_dir, settings.run_dir)
        self.disk.prepare()
        self.runtimes = Runtimes(settings, self.metrics, self.disk, self.processes, self.lanes, self.capture)
        await self.runtimes.open()
        self.supervisor = Supervisor(self.disk, self.runtimes, self.lanes, settings.late_output)
        self.stopper = self.supervisor.stopper

    async def leave(self) -> None:
        """As at the end of an agent that leaves its containers running."""
        self.supervisor.closing = True
        await self.supervisor.close([])
        await self.runtimes.close()
        await self.processes.close()
        await self.capture.close()
        self.lanes.close()

    async def restarted(self, **fields: Any) -> Container:
        """As the next agent: the container as its record has it; `fields`: what the record says instead."""
        await self.leave()
        return await self.opened_again(**fields)

    async def opened_again(self, **fields: Any) -> Container:
        """The same, after `leave`."""
        if fields:
            path = Path(self.disk.records_dir, "x.json")
            path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
        await self.open()
        (record,) = self.disk.load()
        self.container = Container.load(record, self.disk.log_path("x"), self.events)
        return self.container

    async def end(self) -> None:
        """Nothing is left of it."""
        self._hanging.close()
        await self.leave()
        # An agent's keepers outlive it; here they would stay this process's children, those that have ended too.
        for pid in sorted(set(children()) - self._strangers):
            assert Path(f"/proc/{pid}/comm").read_text() == "arcbox-keeper\n"
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        eventually(self._killed)
        for path in sorted(self.cgroup.glob("*/"), reverse=True):
            path.rmdir()
        if self.cgroup.exists():
            self.cgroup.rmdir()

    def _killed(self) -> bool:
        # Again each time: what a keeper had just made is there only after it.
        for pid in (pids := self.pids()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    def pids(self) -> list[int]:
        return [int(pid) for file in self.cgroup.rglob("cgroup.procs") for pid in file.read_text().split()]

    # ------------------------------------------------------------ containers

    def make(self, id: str, script: str = OBEDIENT) -> Container:
        # bash, and not sh, where there is something that passes the output on.
        shell = "bash" if ">(" in script else "sh"
        record = Record(id, command=[shell, "-c", script], open_stdin=True)
        self.containers.append(Container(record, self.disk.log_path(id), self.events))
        return self.containers[-1]

    async def created(self, script: str = OBEDIENT) -> Container:
        self.container = self.make("x", script)
        await self.supervisor.create(self.container)
        return self.container

    async def started(self, script: str = OBEDIENT) -> Container:
        """It runs, and has said that it and what it leaves are ready."""
        if not hasattr(self, "container"):
            await self.created(script)
        said = len(self.lines())
        words = [word for word in ("left", "ready") if f"echo {word}" in self.container.record.command[2]]
        await self.supervisor.start(self.container)
        await until(lambda: all(any(line.startswith(word) for line in self.lines()[said:]) for word in words))
        return self.container

    def tell(self, code: int, id: str = "x") -> None:
        """Its main process ends with `code`."""
        Path(self.disk.run_path(id), "stdin").write_text(f"{code}\n")

    async def over(self) -> None:
        assert self.container.watcher is not None
        await asyncio.wait_for(asyncio.shield(self.container.watcher), patience(20))

    async def ended(self, code: int) -> None:
        self.tell(code)
        await self.over()

    async def remove(self, force: bool = False) -> None:
        await self.supervisor.remove(self.container, force, self.forgotten.append)

    def waiting(self, condition: str) -> asyncio.Task[Exit]:
        return asyncio.get_running_loop().create_task(wait(self.container, condition, self.events))

    # ------------------------------------------------------------ what is to be seen

    def kinds(self) -> list[str]:
        return [event.kind.value for event in self.published]

    def saved(self, id: str = "x") -> dict[str, Any]:
        return json.loads(Path(self.disk.records_dir, f"{id}.json").read_text())  # type: ignore[no-any-return]

    def records(self) -> list[str]:
        return os.listdir(self.disk.records_dir)

    def needs(self) -> bool:
        """Whether what a run needs is still there: it tells the next agent how the run ended."""
        return Path(self.disk.run_path("x"), "pid").exists()

    def lines(self) -> list[str]:
        """What the container has said."""
        path = Path(self.disk.log_path("x"))
        return [line.split(" ", 3)[3] for line in path.read_text().splitlines()] if path.exists() else []

    def left(self) -> int:
        """The process that the main process left behind."""
        return int([line for line in self.lines() if line.startswith("left ")][-1].split()[1])

    # ------------------------------------------------------------ what the machine does

    def fill_disk(self) -> None:
        with open(self.directory / "disk" / "ballast", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 12))
            except OSError:
                pass

    def free_disk(self) -> None:
        (self.directory / "disk" / "ballast").unlink()

    async def starting(self, program: str = "/bin/busybox") -> asyncio.Task[None]:
        """A start that hangs, as on a disk that does not answer, until `release`."""
        place = Path(tempfile.mkdtemp(dir=self.directory), "sh")
        self.release = self._hanging.enter_context(leased(place, program))
        self.container.record.command[0] = str(place)
        start = self.supervisor.tasks.spawn(self.supervisor.start(self.container))
        await until(lambda: self.pids())
        assert self.container.life.state is State.STARTING
        return start

    def unkillable(self, pid: int) -> None:
        """It cannot be killed, as where a disk hangs, until `release`."""
        self.release = self._hanging.enter_context(unkillable(pid))

    @contextmanager
    def busy_log(self) -> Iterator[None]:
        """Its log cannot be removed: EBUSY, as of all that something is mounted on."""
        path = self.disk.log_path("x")
        subprocess.run(["mount", "--bind", path, path], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", path], check=True)


def in_world(test: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        world = World(directory)
        await world.open()
        try:
            await test(world)
        finally:
            await world.end()

    # Not tmp_path: a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="arcbox-") as name:
        directory = Path(name)
        with small_disk(directory / "disk", "256k"):
            run(main(), timeout=30)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(patience(20)):
        while not condition():
            await asyncio.sleep(0.005)


def in_line(lock: asyncio.Lock) -> int:
    """How many wait for it."""
    return len(lock._waiters or ())


def slow(held: threading.Event, state: str) -> Callable[[str], None]:
    """For Disk.on_write: a write of that state waits for `held`."""
    return lambda written: None if written != state else _wait(held)


def _wait(held: threading.Event) -> None:
    assert held.wait(patience(20))


@contextmanager
def unkillable(pid: int) -> Iterator[Callable[[], None]]:
    """That process cannot be killed, as where a disk hangs, until the function given is called, or the end.

    It is in a cgroup of the old kind, in which SIGKILL waits while it is frozen.
    """
    with tempfile.TemporaryDirectory(prefix="arcbox-") as hierarchy:
        subprocess.run(["mount", "-t", "cgroup", "-o", "freezer", "none", hierarchy], check=True)
        group = Path(hierarchy, f"arcbox-test-{pid}")
        group.mkdir()
        state = group / "freezer.state"

        def thaw() -> None:
            state.write_text("THAWED")

        try:
            (group / "cgroup.procs").write_text(str(pid))
            state.write_text("FROZEN")
            eventually(lambda: state.read_text() == "FROZEN\n")
            yield thaw
        finally:
            thaw()
            if alive(pid):
                Path(hierarchy, "cgroup.procs").write_text(str(pid))
            eventually(lambda: (group / "cgroup.procs").read_text() == "")
            group.rmdir()
            subprocess.run(["umount", hierarchy], check=True)

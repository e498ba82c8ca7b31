"""Supervisor, stopping, writing and waiting, clause by clause: with a runtime that does what a test says."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent.agent.config import budget
from arcbox_agent.agent.containers import persist
from arcbox_agent.agent.containers.events import Event, Events, Exit
from arcbox_agent.agent.containers.journal import Journal
from arcbox_agent.agent.containers.lifecycle import Kind, State, Trigger
from arcbox_agent.agent.containers.model import Container, Stop
from arcbox_agent.agent.containers.record import Record
from arcbox_agent.agent.containers.runtimes.protocol import NotStarted, StartError
from arcbox_agent.agent.containers.store import Store
from arcbox_agent.agent.containers.supervisor import Supervisor
from arcbox_agent.agent.containers.waiting import wait
from arcbox_agent.agent.processes.helpers import HELPERS, NOBODY, OTHERS
from arcbox_agent.agent.processes.lanes import Lanes
from arcbox_agent.agent.processes.status import ExitStatus
from arcbox_agent.errors import AgentFailedError, ConflictError, NotFoundError

from .support import Counts, run

FULL = OSError(errno.ENOSPC, "No space left on device")


class Disk(Store):
    """A store that can be full, and that notes what is written: the state, and whether it is to be synced."""

    full = False
    keeps_files = False

    def __init__(self, path: Path) -> None:
        super().__init__(str(path / "state"), str(path / "run"))
        self.prepare()
        self.written: list[tuple[str, bool]] = []
        self.attempts: list[str] = []

    def write(self, record: Record, durable: bool = True) -> None:
        self.attempts.append(record.id)
        if self.full:
            raise FULL
        super().write(record, durable)
        self.written.append((record.state, durable))

    def remove(self, id: str) -> None:
        if self.keeps_files:
            raise OSError(errno.EBUSY, "Device or resource busy")
        super().remove(id)

    def saved(self, id: str = "x") -> dict[str, Any]:
        return json.loads(Path(self.records_dir, f"{id}.json").read_text())  # type: ignore[no-any-return]


class Run:
    """A run whose processes do what a test says."""

    def __init__(self, pid: int) -> None:
        self.pid, self.start_time = pid, 1000 + pid
        self.ended: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self.left = False  # a process that the main process left behind
        self.holders, self.written = NOBODY, 0
        self.heeds = {signal.SIGTERM, signal.SIGKILL}
        self.heeds_kill_all = True
        self.faults: dict[str, Exception] = {}
        self.complete = True
        self.gate = asyncio.Event()  # for `close`
        self.gate.set()
        self.calls: list[Any] = []

    def end(self, code: int = 0, signal: int = 0, lost: bool = False) -> None:
        if not self.ended.done():
            self.ended.set_result(ExitStatus(code, signal, lost))

    def fail(self, what: str) -> None:
        if what in self.faults:
            raise self.faults[what]

    async def wait(self) -> ExitStatus:
        return await asyncio.shield(self.ended)

    def send_signal(self, sig: int) -> bool:
        self.calls.append(("main", int(sig)))
        if self.ended.done():
            return False
        if sig in self.heeds:
            self.end(signal=sig)
        return True

    async def signal_all(self, sig: int) -> None:
        self.calls.append(("all", int(sig)))
        self.fail("signal_all")
        if sig in self.heeds:
            self.end(signal=sig)

    async def kill_all(self) -> None:
        self.calls.append("kill_all")
        if "kill_all" in self.faults:
            raise self.faults.pop("kill_all")
        if self.heeds_kill_all:
            self.left = False

    async def alive(self) -> bool:
        self.fail("alive")
        return self.left or not self.ended.done()

    async def output_holders(self) -> tuple[int, int]:
        self.fail("output_holders")
        return self.holders if self.left else NOBODY, self.written

    async def finish_output(self, timeout: float) -> bool:
        self.calls.append(("finish_output", timeout))
        self.fail("finish_output")
        return self.complete

    async def close(self) -> None:
        await self.gate.wait()
        self.calls.append("close")
        self.fail("close")


class Runtime:
    """A runtime that starts such runs."""

    name = "test"
    boot_id = "this boot"

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.error: BaseException | None = None
        self.found: Any = None
        self.calls: list[str] = []
        self.gate = asyncio.Event()  # for `start`
        self.gate.set()

    def of(self, record: Record) -> Runtime:
        """Every record is of this runtime."""
        return self

    async def start(self, record: Record) -> Run:
        self.calls.append("start")
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.runs.append(Run(100 + len(self.runs)))
        return self.runs[-1]

    async def recover(self, record: Record) -> Any:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    async def recover_output(self, record: Record) -> None:
        self.calls.append("recover_output")

    async def release(self, record: Record) -> None:
        self.calls.append("release")

    async def remove(self, record: Record) -> None:
        self.calls.append("remove")
        if self.error is not None:
            raise self.error


class World:
    """One container `x`, and all that it needs."""

    def __init__(self, path: Path) -> None:
        self.disk, self.runtime, self.counts = Disk(path), Runtime(), Counts()
        self.events, self.lanes = Events(), Lanes()
        self.published: list[Event] = []
        self.events.subscribe(self.published.append)
        self.events.subscribe(Journal(self.counts))
        self.supervisor = Supervisor(self.disk, self.runtime, self.lanes, 0.3)  # type: ignore[arg-type]
        self.stopper = self.supervisor.stopper
        self.container = self.make("x")
        self.forgotten: list[Container] = []

    def make(self, id: str) -> Container:
        return Container(Record(id, command=["true"]), self.disk.log_path(id), self.events)

    def load(self, **fields: Any) -> Container:
        record = Record("x", command=["true"], **fields)
        self.disk.write(record)
        self.disk.written.clear()
        return Container.load(record, self.disk.log_path("x"), self.events)

    async def started(self) -> Run:
        if self.container.life.state is State.NEW:
            await self.supervisor.create(self.container)
        await self.supervisor.start(self.container)
        return self.runtime.runs[-1]

    async def over(self) -> None:
        assert self.container.watcher is not None
        await asyncio.wait_for(asyncio.shield(self.container.watcher), 20)

    async def remove(self, force: bool = False) -> None:
        await self.supervisor.remove(self.container, force, self.forgotten.append)

    def kinds(self) -> list[str]:
        return [event.kind.value for event in self.published]

    def waiting(self, condition: str) -> asyncio.Task[Exit]:
        return asyncio.get_running_loop().create_task(wait(self.container, condition, self.events))


@asynccontextmanager
async def world_in(path: Path) -> AsyncIterator[World]:
    world = World(path)
    try:
        yield world
    finally:
        world.supervisor.closing = True
        await world.supervisor.close([])
        world.lanes.close()


def in_world(path: Path, test: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        async with world_in(path) as world:
            await test(world)

    run(main(), timeout=30)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


# ------------------------------------------------------------ start and end


def test_a_life_is_written_and_published_step_by_step(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        run = await world.started()
        record = world.container.record
        assert (record.run, record.pid, record.start_time, record.boot_id) == (1, 100, 1100, "this boot")
        assert world.disk.saved()["pid"] == 100
        run.end(code=7)
        await world.over()
        assert (record.exit_code, record.signal, record.stopped, record.lost) == (7, 0, False, False)
        assert 0 < record.started_ns < record.finished_ns
        assert (world.container.run, world.container.stop) == (None, None)
        assert run.calls == [("finish_output", budget.OUTPUT_DRAINED), "close"]
        await world.remove()
        # Durable but for the start that has happened: after a power failure nothing runs.
        assert world.disk.written == [
            ("created", True),
            ("starting", True),
            ("running", False),
            ("stopped", True),
            ("removing", True),
        ]
        assert world.kinds() == ["create", "start", "die", "remove"]
        assert [(event.number, event.run) for event in world.published] == [(0, 0), (1, 1), (2, 1), (3, 1)]
        assert world.counts == {"containers_started": 1, "containers_exited": 1, "containers_removed": 1}
        assert world.forgotten == [world.container]

    in_world(tmp_path, test)


def test_a_start_forgets_how_the_last_run_ended(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        run = await world.started()
        run.end(lost=True)
        await world.over()
        record = world.container.record
        assert (record.exit_code, record.lost) == (255, True)
        assert record.error.startswith("its end was not seen")
        assert world.counts["exits_lost"] == 1
        record.stopped, record.signal = True, 9
        await world.started()
        assert (record.exit_code, record.signal, record.lost, record.stopped, record.error) == (0, 0, False, False, "")
        assert (record.run, record.finished_ns) == (2, 0)
        assert world.counts["exits_lost"] == 1

    in_world(tmp_path, test)


def test_a_start_whose_intent_cannot_be_written_did_not_happen(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (await world.started()).end(code=3)
        await world.over()
        world.disk.full = True
        with pytest.raises(AgentFailedError, match=r"^the start cannot be recorded: No space left on device$"):
            await world.supervisor.start(world.container)
        record = world.container.record
        assert (record.run, record.pid, record.start_time, record.state) == (1, 100, 1100, "stopped")
        assert (world.container.life.state, world.container.status) == (State.STOPPED, "Exited (3)")
        assert world.runtime.calls == ["start"]
        world.disk.full = False
        await world.started()
        assert record.run == 2

    in_world(tmp_path, test)


@pytest.mark.parametrize(
    ("error", "raised"), [(StartError("no"), AgentFailedError), (RuntimeError("no"), RuntimeError)]
)
def test_a_start_that_fails_leaves_the_container_as_it_was(
    tmp_path: Path, error: Exception, raised: type[Exception]
) -> None:
    async def test(world: World) -> None:
        (await world.started()).end(code=3)
        await world.over()
        world.runtime.error = error
        with pytest.raises(raised, match=r"^no$"):
            await world.supervisor.start(world.container)
        saved = world.disk.saved()
        assert (saved["run"], saved["pid"], saved["start_time"], saved["state"]) == (1, 100, 1100, "stopped")
        assert saved["error"] == "no"
        assert world.kinds() == ["create", "start", "die", "start-failed"]
        assert world.counts["container_start_failures"] == 1
        assert not world.container.active

    in_world(tmp_path, test)


def test_a_start_that_the_end_of_the_agent_cuts_off_leaves_its_intent_on_disk(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (await world.started()).end()
        await world.over()
        world.runtime.gate.clear()
        start = world.supervisor.tasks.spawn(world.supervisor.start(world.container))
        await until(lambda: world.runtime.calls == ["start", "start"])
        await world.supervisor.close([world.container])
        assert start.cancelled()
        saved = world.disk.saved()
        assert (saved["state"], saved["run"], saved["boot_id"]) == ("starting", 2, "this boot")
        # Nothing of the last run, which the next agent could take for this one.
        assert (saved["pid"], saved["start_time"]) == (0, 0)

    in_world(tmp_path, test)


def test_nothing_is_started_when_the_agent_stops(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.supervisor.create(world.container)
        await world.supervisor.settle([world.container])
        with pytest.raises(AgentFailedError, match=r"^the agent is stopping$"):
            await world.supervisor.start(world.container)
        assert world.runtime.calls == []

    in_world(tmp_path, test)


def test_a_container_is_not_started_twice(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.started()
        with pytest.raises(ConflictError, match=r"^container is already running$"):
            await world.supervisor.start(world.container)
        assert world.container.record.run == 1

    in_world(tmp_path, test)


@pytest.mark.parametrize("fault", ["alive", "finish_output", "close"])
def test_a_container_is_stopped_whatever_goes_wrong_at_its_end(
    tmp_path: Path, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test(world: World) -> None:
        run = await world.started()
        run.faults[fault] = RuntimeError("a fault")
        run.end(code=5)
        await world.over()
        assert (world.container.status, world.kinds()[-1]) == ("Exited (5)", "die")
        assert "close" in run.calls

    in_world(tmp_path, test)
    log = capfd.readouterr().err
    assert "a fault" in log
    assert ("not all output of a container could be read" in log) == (fault == "finish_output")


def test_output_that_is_not_complete_is_said_to_be_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def test(world: World) -> None:
        run = await world.started()
        run.complete = False
        run.end()
        await world.over()

    in_world(tmp_path, test)
    assert "not all output of a container could be read container=x" in capfd.readouterr().err


def test_a_container_is_running_until_its_end_is_on_disk(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        run = await world.started()
        states: list[tuple[str, str]] = []
        write = world.disk.write

        def watched(record: Record, durable: bool = True) -> None:
            states.append((world.container.state, record.state))
            write(record, durable)

        world.disk.write = watched  # type: ignore[method-assign]
        run.end()
        await world.over()
        assert states == [("running", "stopped")]
        assert world.container.state == "stopped"

    in_world(tmp_path, test)


# ---------------------------------------------------------------- the disk


def test_a_container_whose_record_cannot_be_written_is_not_created(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.disk.full = True
        with pytest.raises(OSError, match="No space left"):
            await world.supervisor.create(world.container)
        assert world.published == []
        world.disk.full = False
        # As where the record has its name, and its directory cannot be synced.
        world.disk._sync_directory = lambda: (_ for _ in ()).throw(FULL)  # type: ignore[method-assign]
        with pytest.raises(OSError, match="No space left"):
            await world.supervisor.create(world.make("y"))
        assert list(Path(world.disk.records_dir).iterdir()) == []

    in_world(tmp_path, test)


def test_an_end_that_cannot_be_written_is_written_when_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(persist, "RETRY", 0.02)

    async def test(world: World) -> None:
        run = await world.started()
        world.disk.full = True
        run.end(code=4)
        await world.over()
        assert (world.container.status, world.kinds()[-1]) == ("Exited (4)", "die")
        # The next agent would learn the exit code from what the run needed.
        assert ("close" in run.calls, world.runtime.calls) == (False, ["start"])
        await asyncio.sleep(0.1)
        assert world.disk.saved()["state"] == "running"
        world.disk.full = False
        await until(lambda: "release" in world.runtime.calls)
        assert (world.disk.saved()["state"], world.disk.saved()["exit_code"]) == ("stopped", 4)
        assert world.disk.written[-1] == ("stopped", True)
        written = len(world.disk.written)
        await asyncio.sleep(0.1)
        assert len(world.disk.written) == written

    in_world(tmp_path, test)
    log = capfd.readouterr().err
    assert log.count("the state of containers cannot be written, and is tried again") == 1
    assert log.count("the state of containers is written again") == 1


def test_a_full_disk_is_tried_with_one_record_at_a_time_and_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(persist, "RETRY", 0.02)

    async def test(world: World) -> None:
        other = world.make("y")
        await world.supervisor.create(other)
        await world.supervisor.create(world.container)
        for _ in range(2):  # and once more when the disk is full again
            for each in (other, world.container):
                await world.supervisor.start(each)
            world.disk.full = True
            for each, last in zip((other, world.container), world.runtime.runs[-2:], strict=True):
                last.end()
                assert each.watcher is not None
                await each.watcher
            world.disk.attempts.clear()
            await until(lambda: len(world.disk.attempts) >= 6)
            assert len(set(world.disk.attempts)) == 1
            world.disk.full = False
            await until(lambda: {world.disk.saved(id)["state"] for id in "xy"} == {"stopped"})
            await asyncio.sleep(0.05)

    in_world(tmp_path, test)
    log = capfd.readouterr().err
    assert log.count("the state of containers cannot be written") == 2
    assert log.count("the state of containers is written again") == 2


def test_a_record_that_is_deleted_while_its_write_waits_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persist, "RETRY", 0.02)

    async def test(world: World) -> None:
        run = await world.started()
        world.disk.full = True
        run.end()
        await world.over()
        async with world.container.lock:
            await asyncio.sleep(0.1)  # the write that is repeated waits for the lock
            world.disk.full = False
            await world.supervisor._remove(world.container, world.forgotten.append, Trigger.REMOVE_FAILED)
        await asyncio.sleep(0.05)
        assert list(Path(world.disk.records_dir).iterdir()) == []

    in_world(tmp_path, test)


def test_a_run_keeps_what_it_needs_when_its_start_is_written_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persist, "RETRY", 0.02)

    async def test(world: World) -> None:
        await world.supervisor.create(world.container)
        world.runtime.gate.clear()
        start = asyncio.create_task(world.supervisor.start(world.container))
        await until(lambda: world.runtime.calls == ["start"])
        world.disk.full = True
        world.runtime.gate.set()
        await start
        assert world.disk.saved()["state"] == "starting"
        world.disk.full = False
        await until(lambda: world.disk.saved()["state"] == "running")
        await asyncio.sleep(0.05)
        assert "release" not in world.runtime.calls

    in_world(tmp_path, test)


def test_before_a_start_the_end_of_the_last_run_is_written(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        run = await world.started()
        world.disk.full = True
        run.end(code=4)
        await world.over()
        with pytest.raises(AgentFailedError, match=r"^the last run's end cannot be recorded: No space left on device$"):
            await world.supervisor.start(world.container)
        assert (world.container.record.run, world.runtime.calls) == (1, ["start"])
        world.disk.full = False
        world.disk.written.clear()
        await world.supervisor.start(world.container)
        assert world.runtime.calls == ["start", "release", "start"]
        assert [state for state, _ in world.disk.written] == ["stopped", "starting", "running"]
        await world.stopper.stop(world.container, 0)
        await world.supervisor.start(world.container)
        assert world.runtime.calls == ["start", "release", "start", "start"]  # nothing was pending then

    in_world(tmp_path, test)


def test_a_container_can_be_removed_from_a_full_disk_and_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persist, "RETRY", 0.02)

    async def test(world: World) -> None:
        run = await world.started()
        world.disk.full = True
        run.end()
        await world.over()
        await world.remove()
        assert world.kinds()[-1] == "remove"
        world.disk.full = False
        await asyncio.sleep(0.1)
        assert list(Path(world.disk.records_dir).iterdir()) == []

    in_world(tmp_path, test)


# -------------------------------------------------------------------- stop


def test_a_stop_asks_the_main_process_then_what_it_left_and_returns_when_the_end_is_recorded(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        run = await world.started()
        await world.stopper.stop(world.container, 20)
        assert run.calls == [
            *(("main", signal.SIGTERM), ("all", signal.SIGTERM)),
            *(("finish_output", budget.OUTPUT_DRAINED), "close"),
        ]
        assert (world.container.status, world.disk.saved()["stopped"]) == ("Stopped", True)
        with pytest.raises(ConflictError, match=r"^container is not running$"):
            await world.stopper.stop(world.container, 20)

    in_world(tmp_path, test)


def test_a_stop_kills_when_its_time_is_over_and_at_once_where_it_has_none(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        loop = asyncio.get_running_loop()
        for timeout, first in ((0.1, [("main", signal.SIGTERM)]), (0, [])):
            run = await world.started()
            run.heeds = {signal.SIGKILL}
            began = loop.time()
            await world.stopper.stop(world.container, timeout)
            assert loop.time() - began >= timeout - 0.01
            assert run.calls[: len(first) + 2] == [*first, ("main", signal.SIGKILL), "kill_all"]
            assert world.container.record.signal == signal.SIGKILL

    in_world(tmp_path, test)


def test_what_cannot_be_asked_to_end_has_its_time_and_is_killed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test(world: World) -> None:
        run = await world.started()
        run.left = True
        run.faults["signal_all"] = OSError(errno.EMFILE, "Too many open files")
        await world.stopper.stop(world.container, 0.1)
        assert run.calls[:3] == [("main", signal.SIGTERM), ("all", signal.SIGTERM), ("main", signal.SIGKILL)]
        assert "kill_all" in run.calls

    in_world(tmp_path, test)
    assert "what a container left is not asked to end container=x" in capfd.readouterr().err


def test_a_stop_sends_the_containers_own_signal(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.container.record.stop_signal = signal.SIGUSR2
        run = await world.started()
        run.heeds = {signal.SIGUSR2}
        await world.stopper.stop(world.container, 20)
        assert run.calls[:2] == [("main", signal.SIGUSR2), ("all", signal.SIGUSR2)]

    in_world(tmp_path, test)


@pytest.mark.parametrize(
    ("milliseconds", "seconds"), [(0, None), (1, 0.001), (1500, 1.5), (-1, 0xFFFFFFFF), (1 << 62, 0xFFFFFFFF)]
)
def test_the_time_of_a_containers_own(tmp_path: Path, milliseconds: int, seconds: float | None) -> None:
    async def test(world: World) -> None:
        world.container.record.stop_timeout_ms = milliseconds
        assert world.container.stop_timeout == seconds

    in_world(tmp_path, test)


def test_where_all_are_stopped_a_container_has_no_longer_than_its_own_time(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        loop = asyncio.get_running_loop()
        for milliseconds, timeout in ((100, 60), (-1, 0.1)):
            world.container.record.stop_timeout_ms = milliseconds
            run = await world.started()
            run.heeds = {signal.SIGKILL}
            began = loop.time()
            await world.stopper.stop_all([world.container], timeout)
            assert 0.09 <= loop.time() - began < 30
            assert world.container.status == "Stopped"

    in_world(tmp_path, test)


def test_a_second_stop_joins_the_first_and_only_shortens_it(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        run = await world.started()
        run.heeds = {signal.SIGKILL}
        first = asyncio.create_task(world.stopper.stop(world.container, 100))
        await until(lambda: run.calls == [("main", signal.SIGTERM)])
        longer = asyncio.create_task(world.stopper.stop(world.container, 200))
        await asyncio.sleep(0.05)
        pending = world.container.stop
        assert pending is not None
        assert pending.deadline < asyncio.get_running_loop().time() + 101
        shorter = asyncio.create_task(world.stopper.stop(world.container, 50))
        await until(lambda: pending.deadline < asyncio.get_running_loop().time() + 51)
        await asyncio.sleep(0.02)
        assert not pending.shortened.is_set()  # it waits again, and does not spin
        await world.stopper.stop(world.container, 0.05)
        await asyncio.gather(first, longer, shorter)
        assert run.calls[:3] == [("main", signal.SIGTERM), ("main", signal.SIGKILL), "kill_all"]

    in_world(tmp_path, test)


def test_a_deadline_that_is_no_earlier_shortens_nothing() -> None:
    async def main() -> None:
        stop = Stop(5.0)
        for deadline in (5.0, 6.0):
            stop.shorten(deadline)
            assert (stop.deadline, stop.shortened.is_set()) == (5.0, False)
        stop.shorten(4.0)
        assert (stop.deadline, stop.shortened.is_set()) == (4.0, True)

    run(main())


def test_what_the_main_process_left_has_the_time_of_the_stop(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        run = await world.started()
        run.left = True
        stop = asyncio.create_task(world.stopper.stop(world.container, 100))
        await until(lambda: world.container.life.state is State.STOPPING_ENDING)
        await asyncio.sleep(0.1)
        assert "kill_all" not in run.calls
        run.left = False  # it has ended by itself
        await stop
        assert "kill_all" not in run.calls
        run = await world.started()
        run.left, run.heeds_kill_all = True, False
        stop = asyncio.create_task(world.stopper.stop(world.container, 0.1))
        # Killed again and again, not once.
        await until(lambda: run.calls.count("kill_all") >= 3)
        run.heeds_kill_all = True
        await stop
        assert run.calls[0] == ("main", signal.SIGTERM)
        assert world.container.status == "Stopped"

    in_world(tmp_path, test)


def test_what_the_main_process_left_is_killed_where_nobody_stops_it(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        run = await world.started()
        run.left = True
        run.faults["kill_all"] = OSError(errno.EMFILE, "Too many open files")  # once
        run.end(code=1)
        await world.over()
        assert run.calls[:2] == ["kill_all", "kill_all"]
        assert world.container.status == "Exited (1)"

    in_world(tmp_path, test)


def test_helpers_end_by_themselves_where_they_do_so_in_time(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        run = await world.started()
        run.left, run.holders = True, HELPERS
        run.end(code=1)
        await asyncio.sleep(0.1)
        assert not run.calls
        run.left = False
        await world.over()
        assert "kill_all" not in run.calls
        assert not world.container.last_exit().output_cut
        # They write: the time begins anew, but not for ever.
        run = await world.started()
        loop = asyncio.get_running_loop()
        run.left, run.holders = True, HELPERS
        before = loop.time()
        run.end(code=1)
        while not run.calls:
            run.written += 1
            await asyncio.sleep(0.01)
        assert 1.4 < loop.time() - before < 10
        await world.over()
        assert world.container.last_exit().output_cut
        # They are silent.
        run = await world.started()
        run.left, run.holders = True, HELPERS
        before = loop.time()
        run.end(code=1)
        await world.over()
        assert 0.3 < loop.time() - before < 1.4
        assert world.container.last_exit().output_cut

    in_world(tmp_path, test)


def test_what_holds_the_output_and_is_no_helper_is_killed_soon(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        for holders in (OTHERS, NOBODY):
            run = await world.started()
            run.left, run.holders = True, holders
            run.end(code=1)
            await world.over()
            assert "kill_all" in run.calls
            assert not world.container.last_exit().output_cut
        # Nobody can look: it is as if there were none.
        run = await world.started()
        run.left, run.faults["output_holders"] = True, OSError(errno.EMFILE, "Too many open files")
        run.end(code=1)
        await world.over()
        assert "kill_all" in run.calls

    in_world(tmp_path, test)


def test_a_stop_ends_the_patience_with_helpers(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.stopper._late = 100.0
        run = await world.started()
        run.left, run.holders = True, HELPERS
        run.end(code=1)
        await until(lambda: world.container.life.state is State.ENDING)
        await world.stopper.stop(world.container, 0)
        assert "kill_all" in run.calls
        assert world.container.status == "Stopped"

    in_world(tmp_path, test)


def test_a_stop_during_the_end_makes_it_a_stopped_container(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        run = await world.started()
        run.left, run.heeds_kill_all = True, False
        run.end(code=1)
        await until(lambda: world.container.life.state is State.ENDING)
        stop = asyncio.create_task(world.stopper.stop(world.container, 100))
        await until(lambda: world.container.life.state is State.STOPPING_ENDING)
        run.heeds_kill_all = True
        await stop
        assert world.container.status == "Stopped"

    in_world(tmp_path, test)


def test_what_cannot_be_killed_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(budget, "CONTAINERS_KILLED", 0.2)

    async def test(world: World) -> None:
        run = await world.started()
        run.left, run.heeds_kill_all = True, False
        began = asyncio.get_running_loop().time()
        run.end()
        await world.over()
        assert asyncio.get_running_loop().time() - began >= 0.19
        assert world.container.state == "stopped"

    in_world(tmp_path, test)
    assert "something of a container cannot be killed container=x" in capfd.readouterr().err


def test_a_kill_reaches_the_main_process_and_sigkill_ends_the_patience_of_a_stop(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        with pytest.raises(ConflictError, match=r"^container is not running: x$"):
            world.stopper.kill(world.container, signal.SIGKILL)
        run = await world.started()
        run.heeds, run.left = {signal.SIGKILL}, True
        world.stopper.kill(world.container, signal.SIGUSR1)
        assert run.calls == [("main", signal.SIGUSR1)]
        stop = asyncio.create_task(world.stopper.stop(world.container, 100))
        await until(lambda: ("main", signal.SIGTERM) in run.calls)
        world.stopper.kill(world.container, signal.SIGUSR1)
        await asyncio.sleep(0.05)
        assert world.container.life.state is State.STOPPING
        world.stopper.kill(world.container, signal.SIGKILL)
        await stop
        assert "kill_all" in run.calls

    in_world(tmp_path, test)


def test_a_main_process_that_has_ended_is_not_killed(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        run = await world.started()
        run.left = True
        run.heeds = {signal.SIGKILL}
        stop = asyncio.create_task(world.stopper.stop(world.container, 100))
        await until(lambda: ("main", signal.SIGTERM) in run.calls)
        run.end()
        for state in (State.STOPPING, State.STOPPING_ENDING):  # before the agent knows, and after
            await until(lambda state=state: world.container.life.state is state)  # type: ignore[misc]
            with pytest.raises(ConflictError, match=r"^container is not running: x$"):
                world.stopper.kill(world.container, signal.SIGKILL)
        await asyncio.sleep(0.05)
        assert not stop.done()  # and the Stop is as patient as before
        run.left = False
        await stop

    in_world(tmp_path, test)


# ---------------------------------------------------------------- stop all


def test_all_are_stopped_the_last_started_first(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        first = world.container
        second, idle = world.make("y"), world.make("z")
        for each in (first, second, idle):
            await world.supervisor.create(each)
        for each in (first, second):
            await world.supervisor.start(each)
        order: list[int] = []
        for started in world.runtime.runs:
            started.ended.add_done_callback(lambda _, pid=started.pid: order.append(pid))  # type: ignore[misc]
        await world.stopper.stop_all([first, second, idle], 20)
        assert order == [101, 100]
        assert [each.status for each in (first, second, idle)] == ["Stopped", "Stopped", "Created"]
        await world.stopper.stop_all([first, second, idle], 20)  # nothing runs any more

    in_world(tmp_path, test)


def test_one_that_ignores_sigterm_has_its_share_of_the_time_alone(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        second = world.make("y")
        await world.supervisor.create(second)
        await world.started()
        await world.supervisor.start(second)
        gentle, deaf = world.runtime.runs
        deaf.heeds = {signal.SIGKILL}
        loop = asyncio.get_running_loop()
        began = loop.time()
        stopping = asyncio.create_task(world.stopper.stop_all([world.container, second], 1.0))
        await until(lambda: gentle.ended.done())
        assert 0.4 < loop.time() - began < 0.95
        assert not deaf.ended.done()
        await stopping
        assert loop.time() - began >= 0.98
        assert world.container.record.signal == signal.SIGTERM
        assert second.record.signal == signal.SIGKILL

    in_world(tmp_path, test)


def test_a_container_that_cannot_be_ended_is_left_and_not_waited_for_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(budget, "CONTAINERS_KILLED", 0.2)

    async def test(world: World) -> None:
        run = await world.started()
        run.heeds = set()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await world.stopper.stop_all([world.container], 0.1)
        assert 0.28 <= loop.time() - began < 5
        assert run.calls == [("main", signal.SIGTERM), ("main", signal.SIGKILL), "kill_all"]
        began = loop.time()
        await world.stopper.stop_all([world.container], 100)
        assert loop.time() - began < 5

    in_world(tmp_path, test)
    assert "containers that cannot be ended are left containers=1" in capfd.readouterr().err


# ------------------------------------------------------------------ remove


def test_a_running_container_is_removed_by_force_only(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        run = await world.started()
        with pytest.raises(ConflictError, match=r"^cannot remove running container \(use force=true\)$"):
            await world.remove()
        assert (run.calls, world.container.state) == ([], "running")
        await world.remove(force=True)
        assert ("main", signal.SIGTERM) not in run.calls
        assert world.container.life.state is State.REMOVED
        with pytest.raises(NotFoundError, match=r"^container not found: x$"):
            await world.remove(force=True)
        with pytest.raises(NotFoundError, match=r"^container not found: x$"):
            await world.supervisor.start(world.container)

    in_world(tmp_path, test)


def test_one_that_is_started_while_it_is_removed_is_stopped_too(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.supervisor.create(world.container)
        for force in (False, True):
            world.runtime.gate.clear()
            start = asyncio.create_task(world.supervisor.start(world.container))
            await until(lambda: world.container.life.state is State.STARTING)
            remove = asyncio.create_task(world.remove(force))
            await asyncio.sleep(0.02)
            world.runtime.gate.set()
            await start
            if not force:
                with pytest.raises(ConflictError, match="cannot remove running container"):
                    await remove
                await world.stopper.stop(world.container, 0)
        await remove
        assert world.forgotten == [world.container]

    in_world(tmp_path, test)


def test_one_that_ends_by_itself_while_it_is_to_be_stopped_is_removed(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        run = await world.started()
        async with world.container.lock:
            run.end(code=3)
            await until(lambda: ("finish_output", budget.OUTPUT_DRAINED) in run.calls)
            await asyncio.sleep(0.02)  # its end waits for the lock, and the Stop of the removal after it
            remove = asyncio.create_task(world.remove(force=True))
            await asyncio.sleep(0.02)
        await remove
        assert (world.kinds()[-2:], world.container.record.stopped) == (["die", "remove"], False)

    in_world(tmp_path, test)


@pytest.mark.parametrize("whose", ["runtime", "store"])
def test_a_removal_that_fails_leaves_the_container_as_it_was(tmp_path: Path, whose: str) -> None:
    async def test(world: World) -> None:
        (await world.started()).end(code=3)
        await world.over()
        busy = OSError(errno.EBUSY, "Device or resource busy", "/a/file")
        world.runtime.error = busy if whose == "runtime" else None
        world.disk.keeps_files = whose == "store"
        with pytest.raises(AgentFailedError, match=r"^its files cannot be removed: .*Device or resource busy$"):
            await world.remove()
        assert (world.container.status, world.disk.saved()["state"], world.forgotten) == ("Exited (3)", "stopped", [])
        assert world.kinds()[-1] == "die"
        world.runtime.error, world.disk.keeps_files = None, False
        await world.remove()
        assert world.kinds()[-1] == "remove"

    in_world(tmp_path, test)


# ----------------------------------------------------------------- recover


def test_a_run_that_is_found_is_adopted(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        for state, began in (("running", 5), ("starting", 0)):
            world.container = container = world.load(
                state=state, run=2, pid=7, started_ns=5, finished_ns=6, exit_code=9, stopped=True, error="old"
            )
            assert (container.state, container.life.state) == ("running", State.ORPHANED)
            world.runtime.found = found = Run(300)
            await world.supervisor.recover(container, world.forgotten.append)
            record = container.record
            assert (container.life.state, record.state, record.pid, record.start_time) == (
                State.RUNNING,
                "running",
                300,
                1300,
            )
            if began:
                assert (record.started_ns, record.exit_code, record.error) == (5, 9, "old")
            else:
                assert (record.started_ns > 6, record.finished_ns, record.exit_code, record.error) == (True, 0, 0, "")
            assert world.disk.written == [("running", False)]
            found.end(code=2)
            await world.over()
            assert (container.status, record.run) == ("Exited (2)", 2)
        assert world.kinds() == ["adopt", "die"] * 2
        assert world.counts["containers_recovered"] == 2

    in_world(tmp_path, test)


@pytest.mark.parametrize(("finished", "state"), [(0, "created"), (6, "stopped")])
def test_a_start_that_did_not_happen_is_taken_back(
    tmp_path: Path, finished: int, state: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test(world: World) -> None:
        for number, left in ((2, 1), (0, 0)):
            container = world.load(state="starting", run=number, finished_ns=finished)
            world.runtime.found = NotStarted("why")
            await world.supervisor.recover(container, world.forgotten.append)
            assert (container.state, container.record.run, container.record.error) == (state, left, "why")
            assert world.disk.written == [(state, True)]
        assert world.runtime.calls == ["recover_output"] * 2

    in_world(tmp_path, test)
    assert "a start did not happen container=x error=why" in capfd.readouterr().err


def test_a_run_that_cannot_be_adopted_stays_an_orphan(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        container = world.load(state="running", run=1, pid=7)
        world.runtime.found = OSError(errno.EMFILE, "Too many open files")
        with pytest.raises(OSError, match="Too many"):
            await world.supervisor.recover(container, world.forgotten.append)
        assert (container.life.state, container.status) == (State.ORPHANED, "Running (PID: 7)")
        assert world.disk.written == []

    in_world(tmp_path, test)


@pytest.mark.parametrize("state", ["created", "stopped"])
def test_a_container_at_rest_has_its_pending_output_written(tmp_path: Path, state: str) -> None:
    async def test(world: World) -> None:
        container = world.load(state=state)
        await world.supervisor.recover(container, world.forgotten.append)
        assert (container.state, world.runtime.calls, world.disk.written) == (state, ["recover_output"], [])

    in_world(tmp_path, test)


def test_a_removal_goes_on_and_where_it_fails_the_next_agent_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persist, "RETRY", 0.02)

    async def test(world: World) -> None:
        for full in (False, True):
            container = world.load(state="removing", finished_ns=6)
            world.disk.keeps_files, world.disk.full = True, full
            await world.supervisor.recover(container, world.forgotten.append)
            world.disk.full = False
            await asyncio.sleep(0.1)
            assert (container.state, world.disk.saved()["state"], world.forgotten) == ("stopped", "removing", [])
        world.disk.keeps_files = False
        container = world.load(state="removing")
        await world.supervisor.recover(container, world.forgotten.append)
        assert (container.life.state, world.forgotten) == (State.REMOVED, [container])

    in_world(tmp_path, test)


# ------------------------------------------------------- the end of the agent


def test_at_the_agents_end_changes_are_waited_for_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test(world: World) -> None:
        await world.supervisor.create(world.container)
        world.runtime.gate.clear()
        start = asyncio.create_task(world.supervisor.start(world.container))
        await until(lambda: world.runtime.calls == ["start"])
        settle = asyncio.create_task(world.supervisor.settle([world.container]))
        await asyncio.sleep(0.05)
        assert not settle.done()
        world.runtime.gate.set()
        await settle
        assert start.done() or world.container.active
        assert "left to the next agent" not in capfd.readouterr().err
        monkeypatch.setattr(budget, "CONTAINERS_SETTLED", 0.05)
        async with world.container.lock:
            await world.supervisor.settle([world.container])

    in_world(tmp_path, test)
    assert "a start, a removal or a record hangs: left to the next agent" in capfd.readouterr().err


def test_at_the_agents_end_a_run_whose_main_process_ended_is_seen_to_its_end(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        run = await world.started()
        run.left = True
        world.supervisor.tasks.spawn(world.stopper.stop(world.container, 100))
        await until(lambda: world.container.winding_up)
        await world.supervisor.close([world.container])
        assert "kill_all" in run.calls
        assert (world.container.status, world.disk.saved()["state"]) == ("Stopped", "stopped")

    in_world(tmp_path, test)


def test_at_the_agents_end_an_end_that_hangs_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(budget, "CONTAINERS_ENDED", 0.1)

    async def test(world: World) -> None:
        run = await world.started()
        run.left, run.heeds_kill_all = True, False
        run.end()
        await until(lambda: world.container.winding_up)
        world.supervisor.closing = True
        await world.supervisor.close([world.container])
        assert world.disk.saved()["state"] == "running"

    in_world(tmp_path, test)
    assert "the end of a container hangs: left to the next agent" in capfd.readouterr().err


def test_at_the_agents_end_a_container_that_runs_goes_on(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        run = await world.started()
        await world.supervisor.settle([world.container])
        await world.supervisor.close([world.container])
        assert (run.calls, world.disk.saved()["state"]) == ([], "running")

    in_world(tmp_path, test)


# -------------------------------------------------------------------- wait


def test_waits_for_an_exit_are_answered_when_what_the_run_needed_is_released(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.supervisor.create(world.container)
        assert (await world.waiting("not-running")).code == 0
        early = world.waiting("next-exit")
        await asyncio.sleep(0)
        run = await world.started()
        waits = [early, world.waiting("next-exit"), world.waiting("not-running")]
        removed = world.waiting("removed")
        run.gate.clear()
        run.end(signal=15)
        await until(lambda: world.container.state == "stopped")
        late = [world.waiting("next-exit"), world.waiting("not-running")]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in (*waits, *late))
        run.gate.set()
        assert [((await each).code, (await each).signal) for each in (*waits, late[1])] == [(143, 15)] * 4
        await asyncio.sleep(0.05)
        assert not late[0].done()  # the exit that is over is not its own
        (await world.started()).end(code=4)
        assert (await late[0]).code == 4
        gone = world.waiting("next-exit")
        await asyncio.sleep(0)
        await world.over()
        await world.remove()
        assert (await removed).code == 4
        with pytest.raises(NotFoundError, match=r"^container was removed: x$"):
            await gone

    in_world(tmp_path, test)


def test_a_wait_during_a_start_is_for_the_run_that_comes_of_it(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.supervisor.create(world.container)
        world.runtime.gate.clear()
        start = asyncio.create_task(world.supervisor.start(world.container))
        await until(lambda: world.runtime.calls == ["start"])
        waits = [world.waiting("next-exit"), world.waiting("not-running")]
        await asyncio.sleep(0.02)
        world.runtime.gate.set()
        await start
        await asyncio.sleep(0.02)
        assert not any(each.done() for each in waits)
        world.runtime.runs[0].end(code=6)
        assert [(await each).code for each in waits] == [6, 6]
        # Of a start that fails the one knows that nothing runs, and the other waits for the next run.
        world.runtime.gate.clear()
        start = asyncio.create_task(world.supervisor.start(world.container))
        await until(lambda: world.container.life.state is State.STARTING)
        waits = [world.waiting("next-exit"), world.waiting("not-running")]
        await asyncio.sleep(0.02)
        world.runtime.error = StartError("no")
        world.runtime.gate.set()
        with pytest.raises(AgentFailedError):
            await start
        assert (await waits[1]).code == 6
        world.runtime.error = None
        (await world.started()).end(code=8)
        assert (await waits[0]).code == 8

    in_world(tmp_path, test)


def test_a_wait_ends_with_the_agent(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.started()
        waits = [world.waiting(condition) for condition in ("not-running", "next-exit", "removed")]
        await asyncio.sleep(0)
        world.events.close(AgentFailedError("the agent is stopping"))
        for each in (*waits, world.waiting("removed")):
            with pytest.raises(AgentFailedError, match=r"^the agent is stopping$"):
                await each
        await world.stopper.stop(world.container, 0)
        assert (await world.waiting("not-running")).signal == 9  # it has its answer already

    in_world(tmp_path, test)


@pytest.mark.parametrize("condition", ["next-exit", "removed"])
def test_a_wait_that_the_ring_has_left_behind_asks_the_container(tmp_path: Path, condition: str) -> None:
    async def test(world: World) -> None:
        run = await world.started()
        waiter = world.waiting(condition)
        await asyncio.sleep(0)
        run.end(code=3)
        await world.over()
        if condition == "removed":
            await world.remove()
        # Between the event and the waiter's turn, more events than the ring holds.
        other = world.make("y")
        for _ in range(2000):
            world.events.publish(Event(Kind.CREATE, other.id, "", 0, 0, other.last_exit()))
        assert (await waiter).code == 3

    in_world(tmp_path, test)


def test_a_listener_of_the_output_is_called_when_it_is_over_and_when_its_container_is_removed(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        over: list[bool] = []

        def listener() -> None:
            over.append(world.container.output_is_over())

        world.container.add_output_listener(listener)
        assert world.container.output_is_over()
        (await world.started()).end()
        await world.over()
        assert over == [True, False, True]  # created, started, ended
        await world.remove()
        assert len(over) == 4
        world.container.remove_output_listener(listener)
        world.container.remove_output_listener(listener)

    in_world(tmp_path, test)


def test_a_transition_is_spelled_in_the_record(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        container = world.container
        for trigger, spelling in (
            (Trigger.CREATE, "created"),
            (Trigger.START, "starting"),
            (Trigger.STARTED, "running"),
        ):
            container.move(trigger)
            assert container.record.state == spelling
        with pytest.raises(ConflictError):
            container.move(Trigger.START)
        assert container.record.state == "running"

    in_world(tmp_path, test)

"""The supervisor: create, start, the end of a run, and what of them is written, counted and published."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from arcbox_agent.agent.config import budget
from arcbox_agent.agent.containers.lifecycle import State, Trigger
from arcbox_agent.agent.processes.stat_line import start_time_of
from arcbox_agent.errors import AgentFailedError, ConflictError

from .world import World, in_world, until

BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_a_life_is_written_and_published_step_by_step() -> None:
    async def test(world: World) -> None:
        container = await world.started()
        record = container.record
        assert (record.run, record.start_time, record.boot_id) == (1, start_time_of(record.pid), BOOT)
        assert world.saved()["pid"] == record.pid
        assert world.needs()
        await world.ended(7)
        assert (record.exit_code, record.signal, record.stopped, record.lost) == (7, 0, False, False)
        assert 0 < record.started_ns < record.finished_ns
        assert (container.run, container.stop) == (None, None)
        assert not world.needs()
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
        counted = {name: number for name, number in world.metrics.counters.items() if name.startswith("containers_")}
        assert counted == {
            "containers_started": 1,
            "containers_exited": 1,
            "containers_removed": 1,
            "containers_recovered": 0,
        }
        assert world.forgotten == [container]

    in_world(test)


def test_a_start_forgets_how_the_last_run_ended() -> None:
    async def test(world: World) -> None:
        record = (await world.started()).record
        await world.stopper.stop(world.container, 0)
        assert (record.exit_code, record.signal, record.stopped) == (137, 9, True)
        record.lost, record.error = True, "an error of the last run"
        await world.started()
        assert (record.exit_code, record.signal, record.lost, record.stopped, record.error) == (0, 0, False, False, "")
        assert (record.run, record.finished_ns) == (2, 0)

    in_world(test)


def test_a_start_whose_intent_cannot_be_written_did_not_happen() -> None:
    async def test(world: World) -> None:
        record = (await world.started()).record
        await world.ended(3)
        before, spawned = (record.pid, record.start_time), world.metrics.counters["processes_spawned"]
        world.fill_disk()
        with pytest.raises(AgentFailedError, match=r"^the start cannot be recorded: No space left on device$"):
            await world.supervisor.start(world.container)
        assert (record.run, record.pid, record.start_time, record.state) == (1, *before, "stopped")
        assert (world.container.life.state, world.container.status) == (State.STOPPED, "Exited (3)")
        assert world.metrics.counters["processes_spawned"] == spawned
        world.free_disk()
        await world.started()
        assert record.run == 2

    in_world(test)


def test_a_start_that_fails_leaves_the_container_as_it_was() -> None:
    async def test(world: World) -> None:
        program = world.directory / "program"
        program.write_text("#!/bin/sh\nread code; exit $code\n")
        program.chmod(0o755)
        container = await world.created()
        container.record.command = [str(program)]
        await world.supervisor.start(container)
        before = container.record.pid, container.record.start_time
        await world.ended(3)
        program.unlink()
        with pytest.raises(AgentFailedError, match=r"/program: No such file or directory \(os error 2\)$"):
            await world.supervisor.start(container)
        saved = world.saved()
        assert (saved["run"], saved["pid"], saved["start_time"], saved["state"]) == (1, *before, "stopped")
        assert saved["error"] == f"{program}: No such file or directory (os error 2)"
        assert world.kinds() == ["create", "start", "die", "start-failed"]
        assert world.metrics.counters["container_start_failures"] == 1
        assert not container.active

    in_world(test)


def test_a_start_that_the_end_of_the_agent_cuts_off_leaves_its_intent_on_disk() -> None:
    async def test(world: World) -> None:
        await world.started()
        await world.ended(0)
        start = await world.starting()
        await world.supervisor.close([world.container])
        assert start.cancelled()
        saved = world.saved()
        assert (saved["state"], saved["run"], saved["boot_id"]) == ("starting", 2, BOOT)
        # Nothing of the last run, which the next agent could take for this one.
        assert (saved["pid"], saved["start_time"]) == (0, 0)

    in_world(test)


def test_nothing_is_started_when_the_agent_stops() -> None:
    async def test(world: World) -> None:
        container = await world.created()
        await world.supervisor.settle([container])
        with pytest.raises(AgentFailedError, match=r"^the agent is stopping$"):
            await world.supervisor.start(container)
        assert world.metrics.counters["processes_spawned"] == 0
        assert world.disk.written == [("created", True)]

    in_world(test)


def test_output_that_is_not_complete_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(budget, "OUTPUT_DRAINED", 0.1)

    async def test(world: World) -> None:
        container = await world.started()
        # By a process that the container did not start, and that is not killed with it.
        stdout = os.open(os.path.join(world.disk.run_path("x"), "stdout"), os.O_WRONLY)
        try:
            await world.ended(0)
        finally:
            os.close(stdout)
        assert container.status == "Exited (0)"

    in_world(test)
    assert "not all output of a container could be read container=x" in capfd.readouterr().err


def test_a_container_is_running_until_its_end_is_on_disk() -> None:
    async def test(world: World) -> None:
        container = await world.started()
        states: list[tuple[str, str]] = []
        world.disk.on_write = lambda state: states.append((container.state, state))
        await world.ended(0)
        assert states == [("running", "stopped")]
        assert container.state == "stopped"

    in_world(test)


def test_a_transition_is_spelled_in_the_record() -> None:
    async def test(world: World) -> None:
        container = world.make("x")
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

    in_world(test)


# ------------------------------------------------------- the end of the agent


def test_at_the_agents_end_a_start_that_is_under_way_is_waited_for_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test(world: World) -> None:
        container = await world.created()
        await world.starting()
        settle = asyncio.create_task(world.supervisor.settle([container]))
        await asyncio.sleep(0.05)  # it goes on waiting
        assert not settle.done()
        world.release()
        await settle
        assert container.active
        assert "left to the next agent" not in capfd.readouterr().err
        monkeypatch.setattr(budget, "CONTAINERS_SETTLED", 0.05)
        async with container.lock:
            await world.supervisor.settle([container])

    in_world(test)
    assert "a start, a removal or a record hangs: left to the next agent" in capfd.readouterr().err


def test_at_the_agents_end_a_container_that_runs_goes_on() -> None:
    async def test(world: World) -> None:
        container = await world.started()
        await world.supervisor.settle([container])
        await world.supervisor.close([container])
        assert world.pids() == [container.record.pid]
        assert world.saved()["state"] == "running"

    in_world(test)


# -------------------------------------------------- a start after one that hung


async def hung(world: World) -> int:
    """The pid of what is left of a start that was given up: nothing kills it yet."""
    start = await world.starting()
    [pid] = world.pids()
    world.unkillable(pid)
    with pytest.raises(AgentFailedError, match="it hangs at the step `mount or exec` and is killed"):
        await start
    world.container.record.command[0] = "sh"
    return pid


def test_a_start_waits_for_what_is_left_of_one_that_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "SPAWNED", 0.2)

    async def test(world: World) -> None:
        await world.created()
        pid = await hung(world)
        monkeypatch.setattr(budget, "SPAWNED", 10.0)
        start = asyncio.create_task(world.supervisor.start(world.container))
        await asyncio.sleep(0.1)
        assert not start.done() and world.pids() == [pid]
        world.release()
        await start
        assert world.container.life.state is State.RUNNING
        assert pid not in world.pids()
        await world.ended(4)
        assert world.container.record.exit_code == 4

    in_world(test)


@pytest.mark.parametrize("end", ["its time", "a stop"])
def test_a_start_waits_for_one_that_hung_no_longer_than_its_time_or_until_a_stop(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(budget, "SPAWNED", 0.2)
    monkeypatch.setattr(budget, "FORMER_START", 0.2 if end == "its time" else 1000.0)
    monkeypatch.setattr(budget, "HANGING_START", 0.1)

    async def test(world: World) -> None:
        await world.created()
        await hung(world)
        start = asyncio.create_task(world.supervisor.start(world.container))
        await until(lambda: world.container.life.state is State.STARTING)
        if end == "a stop":
            with pytest.raises(ConflictError):
                await world.stopper.stop(world.container, 1)
        with pytest.raises(AgentFailedError, match="its former start hangs still"):
            await start

    in_world(test)

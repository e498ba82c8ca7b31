"""The supervisor where the disk is full: what is refused, what is written late, and what is never written again."""

from __future__ import annotations

import asyncio
import os

import pytest

from arcbox_agent.agent.containers import persist
from arcbox_agent.agent.containers.lifecycle import Trigger
from arcbox_agent.agent.containers.record import Record
from arcbox_agent.agent.containers.runtimes.process.runtime import ProcessRuntime
from arcbox_agent.errors import AgentFailedError

from .world import World, in_line, in_world, until


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persist, "RETRY", 0.02)


async def nothing_waits_for_the_disk(world: World) -> None:
    """The task that repeats what could not be written has nothing left to do."""
    repeating = world.supervisor._writer._retrying
    assert repeating is not None
    await until(repeating.done)


def test_a_container_whose_record_cannot_be_written_is_not_created() -> None:
    async def test(world: World) -> None:
        world.fill_disk()
        with pytest.raises(OSError, match="No space left"):
            await world.created()
        assert world.published == []
        world.free_disk()
        # The record has its name, and its directory cannot be synced: a pipe cannot.
        pipe = os.pipe()
        os.dup2(pipe[0], world.disk._directory_fd)
        with pytest.raises(OSError, match="Invalid argument"):
            await world.supervisor.create(world.make("y"))
        assert world.records() == []
        for fd in pipe:
            os.close(fd)

    in_world(test)


def test_an_end_that_cannot_be_written_is_written_when_it_can(capfd: pytest.CaptureFixture[str]) -> None:
    async def test(world: World) -> None:
        container = await world.started()
        world.fill_disk()
        await world.ended(4)
        assert (container.status, world.kinds()[-1]) == ("Exited (4)", "die")
        world.disk.attempts.clear()
        await until(lambda: len(world.disk.attempts) >= 3)
        assert world.saved()["state"] == "running"
        # The next agent would learn the exit code from what the run needed.
        assert world.needs()
        world.free_disk()
        await until(lambda: not world.needs())
        assert (world.saved()["state"], world.saved()["exit_code"]) == ("stopped", 4)
        assert world.disk.written[-1] == ("stopped", True)
        await nothing_waits_for_the_disk(world)
        written = len(world.disk.written)
        await asyncio.sleep(0.1)  # nothing is written any more
        assert len(world.disk.written) == written

    in_world(test)
    log = capfd.readouterr().err
    assert log.count("the state of containers cannot be written, and is tried again") == 1
    assert log.count("the state of containers is written again") == 1


def test_a_full_disk_is_tried_with_one_record_at_a_time_and_logged_once(capfd: pytest.CaptureFixture[str]) -> None:
    async def test(world: World) -> None:
        both = [await world.created(), world.make("y")]
        await world.supervisor.create(both[1])
        for _ in range(2):  # and once more when the disk is full again
            for each in both:
                await world.supervisor.start(each)
            world.fill_disk()
            for each in both:
                world.tell(0, each.id)
                assert each.watcher is not None
                await each.watcher
            world.disk.attempts.clear()
            await until(lambda: len(world.disk.attempts) >= 6)
            assert len(set(world.disk.attempts)) == 1
            world.free_disk()
            await until(lambda: {world.saved(id)["state"] for id in "xy"} == {"stopped"})
            await nothing_waits_for_the_disk(world)

    in_world(test)
    log = capfd.readouterr().err
    assert log.count("the state of containers cannot be written") == 2
    assert log.count("the state of containers is written again") == 2


def test_a_record_that_is_deleted_while_its_write_waits_is_not_written() -> None:
    async def test(world: World) -> None:
        container = await world.started()
        world.fill_disk()
        await world.ended(0)
        async with container.lock:
            await until(lambda: in_line(container.lock) == 1)  # the write that is repeated
            world.free_disk()
            await world.supervisor._remove(container, world.forgotten.append, Trigger.REMOVE_FAILED)
        await nothing_waits_for_the_disk(world)
        assert world.records() == []

    in_world(test)


def test_a_run_keeps_what_it_needs_when_its_start_is_written_late() -> None:
    async def test(world: World) -> None:
        await world.created()
        start = await world.starting()
        world.fill_disk()
        world.release()
        await start
        assert world.saved()["state"] == "starting"
        world.free_disk()
        await nothing_waits_for_the_disk(world)
        assert world.saved()["state"] == "running"
        assert world.needs()
        await world.ended(5)
        assert world.container.status == "Exited (5)"

    in_world(test)


def test_before_a_start_the_end_of_the_last_run_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    release = ProcessRuntime.release

    async def noted(runtime: ProcessRuntime, record: Record) -> None:
        done.append("released")
        await release(runtime, record)

    monkeypatch.setattr(ProcessRuntime, "release", noted)
    # For the start alone.
    monkeypatch.setattr(persist, "RETRY", 1000.0)

    async def test(world: World) -> None:
        container = await world.started()
        spawned = world.metrics.counters["processes_spawned"]
        world.fill_disk()
        await world.ended(4)
        with pytest.raises(AgentFailedError, match=r"^the last run's end cannot be recorded: No space left on device$"):
            await world.supervisor.start(container)
        assert (container.record.run, world.metrics.counters["processes_spawned"], done) == (1, spawned, [])
        world.free_disk()
        world.disk.on_write = done.append
        await world.supervisor.start(container)
        assert done == ["stopped", "released", "starting", "running"]
        await world.stopper.stop(container, 0)
        done.clear()
        await world.supervisor.start(container)
        assert done == ["starting", "running"]  # nothing was pending then

    in_world(test)


def test_a_container_can_be_removed_from_a_full_disk_and_is_not_written_again() -> None:
    async def test(world: World) -> None:
        await world.started()
        world.fill_disk()
        await world.ended(0)
        await world.remove()
        assert world.kinds()[-1] == "remove"
        world.free_disk()
        await nothing_waits_for_the_disk(world)
        assert world.records() == []

    in_world(test)

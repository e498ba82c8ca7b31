"""The supervisor: removal, and what becomes of a container after a restart of the agent."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from arcbox_agent.agent.config import budget
from arcbox_agent.agent.containers import persist
from arcbox_agent.agent.containers.lifecycle import State
from arcbox_agent.agent.containers.runtimes.process.runtime import ProcessRuntime
from arcbox_agent.errors import AgentFailedError, ConflictError, NotFoundError

from .support import alive
from .world import World, in_line, in_world, slow, until

# ------------------------------------------------------------------ remove


def test_a_running_container_is_removed_by_force_only() -> None:
    async def test(world: World) -> None:
        container = await world.started()
        with pytest.raises(ConflictError, match=r"^cannot remove running container \(use force=true\)$"):
            await world.remove()
        assert (alive(container.record.pid), container.state) == (True, "running")
        await world.remove(force=True)
        assert container.record.signal == 9  # without the patience of a Stop
        assert container.life.state is State.REMOVED
        with pytest.raises(NotFoundError, match=r"^container not found: x$"):
            await world.remove(force=True)
        with pytest.raises(NotFoundError, match=r"^container not found: x$"):
            await world.supervisor.start(container)

    in_world(test)


def test_one_that_is_started_while_it_is_removed_is_stopped_too() -> None:
    async def test(world: World) -> None:
        container = await world.created()
        for force in (False, True):
            start = await world.starting()
            remove = asyncio.create_task(world.remove(force))
            await until(lambda: in_line(container.lock) == 1)
            world.release()
            await start
            if not force:
                with pytest.raises(ConflictError, match="cannot remove running container"):
                    await remove
                await world.stopper.stop(container, 0)
        await remove
        assert world.forgotten == [container]

    in_world(test)


def test_one_that_ends_by_itself_while_it_is_to_be_stopped_is_removed() -> None:
    async def test(world: World) -> None:
        container = await world.started()
        async with container.lock:
            world.tell(3)
            await until(lambda: in_line(container.lock) == 1)  # its end
            remove = asyncio.create_task(world.remove(force=True))
            await until(lambda: in_line(container.lock) == 2)  # and the Stop of the removal
        await remove
        assert (world.kinds()[-2:], container.record.stopped) == (["die", "remove"], False)

    in_world(test)


@pytest.mark.parametrize("whose", ["runtime", "store"])
def test_a_removal_that_fails_leaves_the_container_as_it_was(whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        await world.started()
        await world.ended(3)
        with monkeypatch.context() as patch, world.busy_log():
            if whose == "runtime":
                # That of processes logs what it cannot remove; another may not.
                patch.setattr(ProcessRuntime, "remove", busy)
            with pytest.raises(AgentFailedError, match=r"^its files cannot be removed: .*: Device or resource busy$"):
                await world.remove()
            assert (world.container.status, world.saved()["state"], world.forgotten) == ("Exited (3)", "stopped", [])
            assert world.kinds()[-1] == "die"
        await world.remove()
        assert world.kinds()[-1] == "remove"

    async def busy(runtime: ProcessRuntime, record: object) -> None:
        raise OSError(16, "Device or resource busy", "/a/file")

    in_world(test)


# ----------------------------------------------------------------- recover


@pytest.mark.parametrize("state", ["running", "starting"])
def test_a_run_that_is_found_is_adopted(state: str) -> None:
    async def test(world: World) -> None:
        await world.started()
        await world.ended(9)
        pid = (await world.started()).record.pid
        began = world.container.record.started_ns
        container = await world.restarted(state=state, started_ns=5, finished_ns=6, exit_code=9, error="old", pid=7)
        assert (container.state, container.life.state) == ("running", State.ORPHANED)
        await world.supervisor.recover(container, world.forgotten.append)
        record = container.record
        assert (container.life.state, record.state, record.pid, record.run) == (State.RUNNING, "running", pid, 2)
        if state == "running":
            assert (record.started_ns, record.finished_ns, record.exit_code, record.error) == (5, 6, 9, "old")
        else:
            # Its start was not noted before: it is now.
            assert record.started_ns > began
            assert (record.finished_ns, record.exit_code, record.error) == (0, 0, "")
        assert world.disk.written == [("running", False)]
        await world.ended(2)
        assert (container.status, record.run) == ("Exited (2)", 2)
        assert world.kinds()[-2:] == ["adopt", "die"]
        assert world.metrics.counters["containers_recovered"] == 1

    in_world(test)


def test_the_end_of_a_run_is_written_and_told_after_its_adoption() -> None:
    async def test(world: World) -> None:
        await world.started()
        container = await world.restarted()
        held = threading.Event()
        world.disk.on_write = slow(held, "running")
        recover = asyncio.create_task(world.supervisor.recover(container, world.forgotten.append))
        try:
            await until(lambda: world.disk.attempts == ["x"])
            world.tell(4)
            await until(lambda: container.life.state is State.ENDING)
            await until(lambda: in_line(container.lock) == 1)
        finally:
            held.set()
        await recover
        await world.over()
        assert [state for state, _ in world.disk.written] == ["running", "stopped"]
        assert (world.saved()["state"], world.saved()["exit_code"]) == ("stopped", 4)
        assert world.kinds()[-2:] == ["adopt", "die"]

    in_world(test)


def test_after_a_restart_of_the_guest_a_run_is_lost() -> None:
    async def test(world: World) -> None:
        await world.started()
        container = await world.restarted(boot_id="another boot")
        await world.supervisor.recover(container, world.forgotten.append)
        await world.over()
        record = container.record
        assert (record.exit_code, record.lost, container.status) == (255, True, "Exited (255)")
        assert record.error.startswith("its end was not seen")
        assert world.metrics.counters["exits_lost"] == 1

    in_world(test)


@pytest.mark.parametrize(("finished", "state"), [(0, "created"), (6, "stopped")])
@pytest.mark.parametrize(("run", "left"), [(2, 1), (0, 0)])
def test_a_start_that_did_not_happen_is_taken_back(
    finished: int, state: str, run: int, left: int, capfd: pytest.CaptureFixture[str]
) -> None:
    why = "the agent was killed while it started the container"

    async def test(world: World) -> None:
        await world.created()
        boot = world.runtimes.boot_id
        container = await world.restarted(state="starting", run=run, boot_id=boot, finished_ns=finished)
        await world.supervisor.recover(container, world.forgotten.append)
        assert (container.state, container.record.run, container.record.error) == (state, left, why)
        assert world.disk.written == [(state, True)]

    in_world(test)
    assert f'a start did not happen container=x error="{why}"' in capfd.readouterr().err


def test_a_run_that_cannot_be_adopted_stays_an_orphan() -> None:
    async def test(world: World) -> None:
        await world.started()
        pid_file = Path(world.disk.run_path("x"), "pid")
        pid_file.unlink()
        pid_file.mkdir()
        container = await world.restarted()
        with pytest.raises(IsADirectoryError):
            await world.supervisor.recover(container, world.forgotten.append)
        assert (container.life.state, container.status) == (State.ORPHANED, f"Running (PID: {container.record.pid})")
        assert world.disk.written == []
        assert alive(container.record.pid)
        pid_file.rmdir()

    in_world(test)


def test_a_container_at_rest_has_its_pending_output_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "OUTPUT_DRAINED", 0.1)

    async def test(world: World) -> None:
        await world.created("read code; echo words; exit $code")
        await world.supervisor.start(world.container)
        world.fill_disk()
        await world.ended(0)
        assert world.lines() == []
        await world.leave()
        world.free_disk()
        container = await world.opened_again(state="stopped", finished_ns=6)
        await world.supervisor.recover(container, world.forgotten.append)
        await until(lambda: world.lines() == ["words"])
        assert (container.state, world.disk.written) == ("stopped", [])

    in_world(test)


@pytest.mark.parametrize("full", [False, True])
def test_a_removal_goes_on_and_where_it_fails_the_next_agent_tries_again(
    full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persist, "RETRY", 0.02)

    async def test(world: World) -> None:
        await world.started()
        await world.ended(0)
        container = await world.restarted(state="removing")
        if full:
            world.fill_disk()
        with world.busy_log():
            await world.supervisor.recover(container, world.forgotten.append)
        if full:
            world.free_disk()
        await asyncio.sleep(0.1)  # nothing is written that takes the intent back
        assert (container.state, world.saved()["state"], world.forgotten) == ("stopped", "removing", [])
        container = await world.restarted()
        await world.supervisor.recover(container, world.forgotten.append)
        assert (container.life.state, world.forgotten) == (State.REMOVED, [container])
        assert world.records() == []

    in_world(test)

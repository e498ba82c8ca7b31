"""The end of all containers: in which order, in how much time, and what is left of those that cannot be ended."""

from __future__ import annotations

import asyncio
import signal

import pytest

from arcbox_agent.agent.config import budget
from arcbox_agent.agent.containers.lifecycle import State

from .world import DEAF, World, in_world, unkillable, until


def test_all_that_run_are_stopped_the_last_started_first() -> None:
    async def test(world: World) -> None:
        told = world.directory / "told"
        containers = []
        for id in ("first", "second"):
            script = f"trap 'echo {id} asked >>{told}; sleep 0.1; echo {id} dead >>{told}; exit 3' TERM; echo ready; "
            containers.append(world.make(id, script + "while :; do sleep 0.02; done"))
            await world.supervisor.create(containers[-1])
            await world.supervisor.start(containers[-1])
            log = world.directory / "disk" / "logs" / f"{id}.log"
            await until(lambda log=log: log.exists() and log.read_bytes())  # type: ignore[misc]
        containers.append(world.make("idle"))
        await world.supervisor.create(containers[-1])
        await world.stopper.stop_all(containers, 20)
        assert told.read_text().split("\n") == ["second asked", "second dead", "first asked", "first dead", ""]
        assert [each.status for each in containers] == ["Stopped", "Stopped", "Created"]
        await world.stopper.stop_all(containers, 20)  # nothing runs any more

    in_world(test)


def test_one_that_ignores_sigterm_has_its_share_of_the_time_alone_and_idle_ones_take_none() -> None:
    async def test(world: World) -> None:
        gentle, deaf, *idle = containers = [world.make("gentle"), world.make("x", DEAF)]
        idle += [world.make(f"idle{number}") for number in range(10)]
        for each in (*containers, *idle):
            await world.supervisor.create(each)
        await world.supervisor.start(gentle)
        world.container = deaf
        await world.started()
        loop = asyncio.get_running_loop()
        began = loop.time()
        stopping = asyncio.create_task(world.stopper.stop_all([*containers, *idle], 1.0))
        await until(lambda: not gentle.active)
        # A half of the time: of twelve parts, one for each container, it would be one.
        assert loop.time() - began > 0.4
        assert deaf.active
        await stopping
        assert loop.time() - began >= 0.98
        assert (gentle.record.signal, deaf.record.signal) == (signal.SIGTERM, signal.SIGKILL)

    in_world(test)


def test_a_container_that_cannot_be_ended_is_left_and_not_waited_for_twice(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(budget, "CONTAINERS_KILLED", 0.2)

    async def test(world: World) -> None:
        container = await world.started()
        loop = asyncio.get_running_loop()
        with unkillable(container.record.pid):
            began = loop.time()
            await world.stopper.stop_all([container], 0.1)
            assert loop.time() - began >= 0.28
            assert container.life.state is State.STOPPING
            capfd.readouterr()
            await world.stopper.stop_all([container], 100)
            assert capfd.readouterr().err == ""
            assert container.life.state is State.STOPPING

    in_world(test)


def test_what_cannot_be_ended_is_told_of(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(budget, "CONTAINERS_KILLED", 0.2)

    async def test(world: World) -> None:
        container = await world.started()
        with unkillable(container.record.pid):
            await world.stopper.stop_all([container], 0)

    in_world(test)
    assert "containers that cannot be ended are left containers=1" in capfd.readouterr().err


@pytest.mark.parametrize(("milliseconds", "timeout"), [(100, 60.0), (-1, 0.1)])
def test_where_all_are_stopped_a_container_has_no_longer_than_its_own_time(milliseconds: int, timeout: float) -> None:
    async def test(world: World) -> None:
        container = await world.started(DEAF)
        container.record.stop_timeout_ms = milliseconds
        loop = asyncio.get_running_loop()
        began = loop.time()
        await world.stopper.stop_all([container], timeout)
        assert 0.09 <= loop.time() - began < 30
        assert container.status == "Stopped"

    in_world(test)

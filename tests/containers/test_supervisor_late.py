"""The end of a run whose output is still passed on by a helper: how long that is waited for."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import pytest

from arcbox_agent.agent.containers.lifecycle import State
from arcbox_agent.agent.containers.runtimes.process.run import ProcessRun
from tools.pace import patience

from .world import OBEDIENT, World, in_world, until

#: Says nothing and does not end.
SILENT = f"exec > >(exec sleep 1000); {OBEDIENT}"


async def seconds_to_the_end(world: World) -> float:
    began = asyncio.get_running_loop().time()
    await world.ended(1)
    return asyncio.get_running_loop().time() - began


def test_a_helper_ends_by_itself_where_it_does_so_in_time() -> None:
    async def test(world: World) -> None:
        world.stopper._late = 100.0
        go = world.directory / "go"
        container = await world.created(
            f"exec > >(until test -e {go}; do sleep 0.02; done; cat); echo words; {OBEDIENT}"
        )
        await world.supervisor.start(container)
        world.tell(1)
        await until(lambda: container.life.state is State.ENDING)
        await asyncio.sleep(0.2)  # it is not killed
        assert container.life.state is State.ENDING
        go.touch()
        await world.over()
        assert world.lines() == ["words"]
        assert not container.last_exit().output_cut

    in_world(test)


def test_a_helper_that_writes_has_its_time_anew_but_not_for_ever() -> None:
    async def test(world: World) -> None:
        await world.started(f"exec > >(while echo words; do sleep 0.02; done); {OBEDIENT}")
        assert await seconds_to_the_end(world) > 1.4  # five times late_output
        assert world.container.last_exit().output_cut

    in_world(test)


def test_a_helper_that_is_silent_has_its_time_once() -> None:
    async def test(world: World) -> None:
        await world.supervisor.start(await world.created(SILENT))
        assert 0.3 < await seconds_to_the_end(world) < patience(1.4)
        assert world.container.last_exit().output_cut

    in_world(test)


@pytest.mark.parametrize("output", ["", ">/dev/null 2>&1"])
def test_what_is_no_helper_is_killed_soon_whether_it_has_the_output_open_or_not(output: str) -> None:
    async def test(world: World) -> None:
        world.stopper._late = 100.0
        await world.supervisor.start(await world.created(f"sleep 1000 {output} & {OBEDIENT}"))
        await until(lambda: len(world.pids()) == 2)
        await world.ended(1)
        assert world.pids() == []
        assert not world.container.last_exit().output_cut

    in_world(test)


def test_where_nobody_can_look_it_is_as_if_there_were_no_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    async def out_of_descriptors(run: ProcessRun) -> NoReturn:
        raise OSError(24, "Too many open files")

    async def test(world: World) -> None:
        world.stopper._late = 100.0
        await world.supervisor.start(await world.created(SILENT))
        # For the look alone: without any descriptor the end is not seen either.
        monkeypatch.setattr(ProcessRun, "output_holders", out_of_descriptors)
        await world.ended(1)
        assert world.container.status == "Exited (1)"

    in_world(test)


def test_a_stop_ends_the_patience_with_helpers() -> None:
    async def test(world: World) -> None:
        world.stopper._late = 100.0
        container = await world.created(SILENT)
        await world.supervisor.start(container)
        world.tell(1)
        await until(lambda: container.life.state is State.ENDING)
        await world.stopper.stop(container, 0)
        assert container.status == "Stopped"

    in_world(test)

"""Waits for a container, and listeners of its output: answered when the supervisor is done with a run."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from arcbox_agent.agent.containers.events import Event
from arcbox_agent.agent.containers.lifecycle import Kind
from arcbox_agent.errors import AgentFailedError, NotFoundError

from .support import keeper_of
from .world import World, in_world, until


async def listening(world: World, count: int) -> None:
    """Until so many waits have looked at the container, and wait for its events."""
    await until(lambda: len(world.events._listeners.get("x", ())) == count)


def test_waits_for_an_exit_are_answered_when_what_the_run_needed_is_released() -> None:
    async def test(world: World) -> None:
        container = await world.created()
        assert (await world.waiting("not-running")).code == 0
        early = world.waiting("next-exit")
        await listening(world, 1)
        await world.started()
        waits = [early, world.waiting("next-exit"), world.waiting("not-running")]
        removed = world.waiting("removed")
        await listening(world, 4)
        keeper = keeper_of(world.directory)
        os.kill(keeper, signal.SIGSTOP)  # which is asked to let go of what it keeps
        try:
            world.stopper.kill(container, signal.SIGTERM)
            await until(lambda: container.state == "stopped")
            late = [world.waiting("next-exit"), world.waiting("not-running")]
            await asyncio.sleep(0.05)  # none is answered
            assert not any(task.done() for task in (*waits, *late))
        finally:
            os.kill(keeper, signal.SIGCONT)
        assert [((await each).code, (await each).signal) for each in (*waits, late[1])] == [(143, 15)] * 4
        await asyncio.sleep(0.05)  # the exit that is over is not its own
        assert not late[0].done()
        await world.started()
        world.tell(4)
        assert (await late[0]).code == 4
        gone = world.waiting("next-exit")
        await world.over()
        await listening(world, 2)
        await world.remove()
        assert (await removed).code == 4
        with pytest.raises(NotFoundError, match=r"^container was removed: x$"):
            await gone

    in_world(test)


def test_a_wait_during_a_start_is_for_the_run_that_comes_of_it() -> None:
    async def test(world: World) -> None:
        await world.created()
        start = await world.starting()
        waits = [world.waiting("next-exit"), world.waiting("not-running")]
        await listening(world, 1)
        world.release()
        await start
        await listening(world, 2)
        assert not any(each.done() for each in waits)
        world.tell(6)
        assert [(await each).code for each in waits] == [6, 6]

    in_world(test)


def test_of_a_start_that_fails_one_wait_knows_that_nothing_runs_and_the_other_waits_for_the_next_run() -> None:
    async def test(world: World) -> None:
        container = await world.started()
        await world.ended(6)
        no_program = world.directory / "no-program"
        no_program.write_bytes(b"no program")
        no_program.chmod(0o755)
        start = await world.starting(str(no_program))
        waits = [world.waiting("next-exit"), world.waiting("not-running")]
        await listening(world, 1)
        world.release()
        with pytest.raises(AgentFailedError, match="Exec format error"):
            await start
        assert (await waits[1]).code == 6
        container.record.command[0] = "sh"
        await world.started()
        world.tell(8)
        assert (await waits[0]).code == 8

    in_world(test)


def test_a_wait_ends_with_the_agent() -> None:
    async def test(world: World) -> None:
        container = await world.started()
        waits = [world.waiting(condition) for condition in ("not-running", "next-exit", "removed")]
        await listening(world, 3)
        world.events.close(AgentFailedError("the agent is stopping"))
        for each in (*waits, world.waiting("removed")):
            with pytest.raises(AgentFailedError, match=r"^the agent is stopping$"):
                await each
        await world.stopper.stop(container, 0)
        assert (await world.waiting("not-running")).signal == 9  # it has its answer already

    in_world(test)


@pytest.mark.parametrize("condition", ["next-exit", "removed"])
def test_a_wait_that_the_ring_has_left_behind_asks_the_container(condition: str) -> None:
    async def test(world: World) -> None:
        await world.started()
        waiter = world.waiting(condition)
        await listening(world, 1)
        await world.ended(3)
        if condition == "removed":
            await world.remove()
        # Between the event and the waiter's turn, more events than the ring holds.
        other = world.make("y")
        for _ in range(2000):
            world.events.publish(Event(Kind.CREATE, other.id, "", 0, 0, other.last_exit()))
        assert (await waiter).code == 3

    in_world(test)


def test_a_listener_of_the_output_is_called_when_it_is_over_and_when_its_container_is_removed() -> None:
    async def test(world: World) -> None:
        container = world.make("x")
        over: list[bool] = []

        def listener() -> None:
            over.append(container.output_is_over())

        container.add_output_listener(listener)
        assert container.output_is_over()
        world.container = container
        await world.supervisor.create(container)
        await world.started()
        await world.ended(0)
        assert over == [True, False, True]  # created, started, ended
        await world.remove()
        assert len(over) == 4
        container.remove_output_listener(listener)
        container.remove_output_listener(listener)

    in_world(test)

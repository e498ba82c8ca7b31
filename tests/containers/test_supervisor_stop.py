"""Stop and kill of one container: what is sent to whom, how long it may take, and how it ends."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import signal

import pytest

from arcbox_agent.agent.config import budget
from arcbox_agent.agent.containers.events import Events
from arcbox_agent.agent.containers.lifecycle import State
from arcbox_agent.agent.containers.model import Container, Stop
from arcbox_agent.agent.containers.record import Record
from arcbox_agent.agent.containers.runtimes.process.run import ProcessRun
from arcbox_agent.errors import ConflictError

from .support import alive, run
from .world import DEAF, FOR_EVER, World, in_world, leaving, unkillable, until


def test_a_stop_returns_when_the_end_is_recorded() -> None:
    async def test(world: World) -> None:
        container = await world.started()
        await world.stopper.stop(container, 20)
        assert (container.status, container.record.signal) == ("Stopped", signal.SIGTERM)
        assert world.saved()["stopped"]
        with pytest.raises(ConflictError, match=r"^container is not running$"):
            await world.stopper.stop(container, 20)

    in_world(test)


def test_a_stop_kills_when_its_time_is_over() -> None:
    async def test(world: World) -> None:
        container = await world.started(DEAF)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await world.stopper.stop(container, 0.1)
        assert loop.time() - began >= 0.09
        assert container.record.signal == signal.SIGKILL

    in_world(test)


def test_a_stop_that_has_no_time_sends_no_sigterm() -> None:
    async def test(world: World) -> None:
        container = await world.started()
        await world.stopper.stop(container, 0)
        assert container.record.signal == signal.SIGKILL

    in_world(test)


def test_a_stop_asks_the_main_process_and_then_what_it_left() -> None:
    child = "setsid sh -c 'trap \"echo child; exit\" TERM; echo left $$; while :; do sleep 0.02; done'"
    script = f"trap 'sleep 0.1; echo main; exit 3' TERM; {child} & echo ready; while :; do sleep 0.02; done"

    async def test(world: World) -> None:
        container = await world.started(script)
        await world.stopper.stop(container, 20)
        assert [line for line in world.lines() if line in ("main", "child")] == ["main", "child"]
        assert container.record.exit_code == 3

    in_world(test)


def test_what_cannot_be_asked_to_end_has_its_time_and_is_killed(capfd: pytest.CaptureFixture[str]) -> None:
    async def test(world: World) -> None:
        container = await world.started(leaving(FOR_EVER))
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = next(fd for fd in itertools.count() if not os.path.lexists(f"/proc/self/fd/{fd}"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        said = ""
        try:
            stop = asyncio.create_task(world.stopper.stop(container, 0.3))
            while "what a container left is not asked to end container=x" not in said:
                await asyncio.sleep(0.005)
                said += capfd.readouterr().err
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await stop
        assert (container.status, container.record.signal) == ("Stopped", signal.SIGTERM)
        assert not alive(world.left())

    in_world(test)


def test_a_stop_sends_the_containers_own_signal() -> None:
    async def test(world: World) -> None:
        container = await world.created()
        container.record.stop_signal = signal.SIGUSR2
        await world.started()
        await world.stopper.stop(container, 20)
        assert container.record.signal == signal.SIGUSR2

    in_world(test)


@pytest.mark.parametrize(
    ("milliseconds", "seconds"), [(0, None), (1, 0.001), (1500, 1.5), (-1, 0xFFFFFFFF), (1 << 62, 0xFFFFFFFF)]
)
def test_the_time_of_a_containers_own(milliseconds: int, seconds: float | None) -> None:
    container = Container(Record("x", command=["true"], stop_timeout_ms=milliseconds), "/no/log", Events())
    assert container.stop_timeout == seconds


def test_a_second_stop_joins_the_first_and_only_shortens_it() -> None:
    async def test(world: World) -> None:
        container = await world.started(DEAF)
        loop = asyncio.get_running_loop()
        first = asyncio.create_task(world.stopper.stop(container, 100))
        await until(lambda: container.stop is not None)
        pending = container.stop
        assert pending is not None
        longer = asyncio.create_task(world.stopper.stop(container, 200))
        await asyncio.sleep(0.05)  # it changes nothing
        assert pending.deadline < loop.time() + 101
        shorter = asyncio.create_task(world.stopper.stop(container, 50))
        await until(lambda: pending.deadline < loop.time() + 51)
        await until(lambda: not pending.shortened.is_set())  # it waits again, and does not spin
        assert container.life.state is State.STOPPING
        await world.stopper.stop(container, 0.05)
        await asyncio.gather(first, longer, shorter)
        assert (container.status, container.record.signal) == ("Stopped", signal.SIGKILL)

    in_world(test)


def test_a_deadline_that_is_no_earlier_shortens_nothing() -> None:
    async def main() -> None:
        stop = Stop(5.0)
        for deadline in (5.0, 6.0):
            stop.shorten(deadline)
            assert (stop.deadline, stop.shortened.is_set()) == (5.0, False)
        stop.shorten(4.0)
        assert (stop.deadline, stop.shortened.is_set()) == (4.0, True)

    run(main())


# ------------------------------------------------------------ what the main process left


def test_what_the_main_process_left_has_the_time_of_the_stop() -> None:
    async def test(world: World) -> None:
        go = world.directory / "go"
        patient = f"until test -e {go}; do sleep 0.02; done; echo done"
        container = await world.started(leaving(patient))
        stop = asyncio.create_task(world.stopper.stop(container, 100))
        await until(lambda: container.life.state is State.STOPPING_ENDING)
        await asyncio.sleep(0.1)  # it is not killed
        assert alive(world.left())
        go.touch()
        await stop
        assert world.lines()[-1] == "done"
        assert container.status == "Stopped"

    in_world(test)


def test_what_the_main_process_left_is_killed_when_the_time_of_the_stop_is_over() -> None:
    async def test(world: World) -> None:
        container = await world.started(leaving(FOR_EVER))
        await world.stopper.stop(container, 0.1)
        assert not alive(world.left())
        assert (container.status, container.record.signal) == ("Stopped", signal.SIGTERM)

    in_world(test)


def test_what_the_main_process_left_is_killed_again_and_again_where_nobody_stops_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kills: list[str] = []
    kill_all = ProcessRun.kill_all

    async def counted(run: ProcessRun) -> None:
        kills.append(run._record.id)
        if len(kills) == 1:
            raise OSError(24, "Too many open files")
        await kill_all(run)

    monkeypatch.setattr(ProcessRun, "kill_all", counted)

    async def test(world: World) -> None:
        container = await world.started(leaving(FOR_EVER))
        with unkillable(world.left()) as thaw:
            world.tell(1)
            await until(lambda: len(kills) >= 4)
            assert container.life.state is State.ENDING
            thaw()
            await world.over()
        assert container.status == "Exited (1)"

    in_world(test)


def test_a_stop_during_the_end_makes_it_a_stopped_container() -> None:
    async def test(world: World) -> None:
        container = await world.started(leaving(FOR_EVER))
        with unkillable(world.left()) as thaw:
            world.tell(1)
            await until(lambda: container.life.state is State.ENDING)
            stop = asyncio.create_task(world.stopper.stop(container, 0))
            await until(lambda: container.life.state is State.STOPPING_ENDING)
            thaw()
            await stop
        assert (container.status, container.record.exit_code) == ("Stopped", 1)

    in_world(test)


def test_what_cannot_be_killed_is_given_up(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(budget, "CONTAINERS_KILLED", 0.2)
    monkeypatch.setattr(budget, "LEFTOVERS_KILLED", 0.1)
    monkeypatch.setattr(budget, "OUTPUT_DRAINED", 0.1)  # which it holds open

    async def test(world: World) -> None:
        container = await world.started(leaving(FOR_EVER))
        with unkillable(world.left()):
            began = asyncio.get_running_loop().time()
            await world.ended(0)
            assert asyncio.get_running_loop().time() - began >= 0.19
            assert container.state == "stopped"

    in_world(test)
    assert "something of a container cannot be killed container=x" in capfd.readouterr().err


# ------------------------------------------------------------------ kill


def test_a_kill_reaches_the_main_process_and_sigkill_ends_the_patience_of_a_stop() -> None:
    loud = "trap '' TERM; trap 'echo got' USR1; echo ready; while :; do read code && exit $code; done"

    async def test(world: World) -> None:
        container = await world.created(leaving('trap "echo child got" USR1; while :; do sleep 0.02; done', loud))
        with pytest.raises(ConflictError, match=r"^container is not running: x$"):
            world.stopper.kill(container, signal.SIGKILL)
        await world.supervisor.start(container)
        await until(lambda: len(world.lines()) == 2)
        world.stopper.kill(container, signal.SIGUSR1)
        await until(lambda: world.lines()[2:] == ["got"])
        assert alive(world.left())
        stop = asyncio.create_task(world.stopper.stop(container, 100))
        await until(lambda: container.life.state is State.STOPPING)
        world.stopper.kill(container, signal.SIGUSR1)
        await until(lambda: world.lines()[2:] == ["got", "got"])
        assert container.life.state is State.STOPPING
        world.stopper.kill(container, signal.SIGKILL)
        await stop
        assert not alive(world.left())

    in_world(test)


def test_a_main_process_that_has_ended_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        go = world.directory / "go"
        patient = f"until test -e {go}; do sleep 0.02; done"
        container = await world.started(leaving(patient, DEAF))
        stop = asyncio.create_task(world.stopper.stop(container, 100))
        await until(lambda: container.life.state is State.STOPPING)
        with monkeypatch.context() as patch:
            # As where another process, whose child it is, has reaped it before the agent's loop knows.
            patch.setattr(ProcessRun, "send_signal", lambda run, sig: False)
            with pytest.raises(ConflictError, match=r"^container is not running: x$"):
                world.stopper.kill(container, signal.SIGKILL)
        world.tell(0)
        await until(lambda: container.life.state is State.STOPPING_ENDING)
        with pytest.raises(ConflictError, match=r"^container is not running: x$"):
            world.stopper.kill(container, signal.SIGKILL)
        await asyncio.sleep(0.05)  # the Stop is as patient as before
        assert not stop.done()
        go.touch()
        await stop

    in_world(test)


# ------------------------------------------------------------ the end of the agent


def test_at_the_agents_end_a_run_whose_main_process_ended_is_seen_to_its_end() -> None:
    async def test(world: World) -> None:
        container = await world.started(leaving(FOR_EVER))
        world.supervisor.tasks.spawn(world.stopper.stop(container, 100))
        await until(lambda: container.winding_up)
        await world.supervisor.close([container])
        assert not alive(world.left())
        assert (container.status, world.saved()["state"]) == ("Stopped", "stopped")

    in_world(test)


def test_at_the_agents_end_an_end_that_hangs_is_left(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(budget, "CONTAINERS_ENDED", 0.1)

    async def test(world: World) -> None:
        container = await world.started(leaving(FOR_EVER))
        with unkillable(world.left()):
            world.tell(0)
            await until(lambda: container.winding_up)
            world.supervisor.closing = True
            await world.supervisor.close([container])
            assert world.saved()["state"] == "running"

    in_world(test)
    assert "the end of a container hangs: left to the next agent" in capfd.readouterr().err

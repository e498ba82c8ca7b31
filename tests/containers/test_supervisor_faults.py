"""The supervisor where the runtime raises what it should not: a container comes to its end all the same.

No input and no state of the machine is known that makes the runtime of processes raise these, which is
why each is put into it here.  What runs is real.
"""

from __future__ import annotations

from typing import Any, NoReturn

import pytest

from arcbox_agent.agent.containers.runtimes.process.run import ProcessRun
from arcbox_agent.agent.containers.runtimes.process.runtime import ProcessRuntime

from .world import World, in_world


async def fault(*arguments: Any) -> NoReturn:
    raise RuntimeError("a fault")


def test_a_start_that_fails_by_a_fault_leaves_the_container_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        record = (await world.started()).record
        before = record.pid, record.start_time
        await world.ended(3)
        with monkeypatch.context() as patch:
            patch.setattr(ProcessRuntime, "start", fault)
            with pytest.raises(RuntimeError, match=r"^a fault$"):
                await world.supervisor.start(world.container)
        saved = world.saved()
        assert (saved["run"], saved["pid"], saved["start_time"], saved["state"]) == (1, *before, "stopped")
        assert saved["error"] == "a fault"
        assert world.kinds() == ["create", "start", "die", "start-failed"]
        assert not world.container.active

    in_world(test)


@pytest.mark.parametrize("where", ["alive", "finish_output", "close"])
def test_a_container_is_stopped_whatever_goes_wrong_at_its_end(
    where: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test(world: World) -> None:
        await world.started()
        monkeypatch.setattr(ProcessRun, where, fault)
        await world.ended(5)
        assert (world.container.status, world.kinds()[-1]) == ("Exited (5)", "die")
        assert world.needs() == (where == "close")

    in_world(test)
    log = capfd.readouterr().err
    assert "a fault" in log
    assert ("not all output of a container could be read" in log) == (where == "finish_output")

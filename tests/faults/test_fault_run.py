"""The fault run, in short: `make faults` is the long one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tools.faults import FaultRun
from tools.pace import patience

#: ARCBOX_KILLS=2000 for a long night.
KILLS = int(os.environ.get("ARCBOX_KILLS", "40"))
SEED = int(os.environ.get("ARCBOX_SEED", "1"))


@pytest.fixture
def faults() -> Iterator[FaultRun]:
    with TemporaryDirectory(prefix="arcbox-") as name:
        run = FaultRun(Path(name), SEED)
        try:
            yield run
        finally:
            if run.agent.running:
                run.agent.kill()
            run.world.end_all_processes()


@pytest.mark.slow
@pytest.mark.timeout(patience(1200))
def test_nothing_is_lost_whoever_is_killed(faults: FaultRun) -> None:
    asyncio.run(faults.run(KILLS, patience(900)))
    assert not faults.world.faults, "\n".join([f"seed {SEED}", *faults.world.faults[:10], faults.agent.log()])
    assert sum(faults.kills.values()) >= KILLS
    # That the work which was interrupted was really going on.
    for what in ("create", "start", "stop", "wait", "remove", "exec", "logs", "keepers replaced"):
        assert faults.world.counts[what] > 0, f"no {what}"


@pytest.mark.slow
def test_the_judge_sees_a_code_that_is_told_as_lost(faults: FaultRun) -> None:
    """One kill of both, which the judge is not told of: what ended meanwhile is a fault then."""

    async def main() -> None:
        faults.agent.start()
        await asyncio.to_thread(faults.agent.wait_until_it_answers)
        for _ in range(40):
            faults._put_to_work()
            await asyncio.sleep(0.2)
            await faults._kill_agent(with_keeper=True)
            assert faults.world.blind is not None
            if faults.world.faults:
                return
            faults.world.blind._spans.clear()

    faults.world.blind.add = lambda *_: None  # type: ignore[method-assign, union-attr]
    asyncio.run(main())
    assert any("lost" in fault or "were written" in fault for fault in faults.world.faults)

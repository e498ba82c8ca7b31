"""A stream has four ends: the client's and the process's of input and of output.  They close in any order."""

from __future__ import annotations

import asyncio
import itertools
import os
import pathlib
import time

import pytest

from arcbox_agent import connect
from arcbox_agent.client import Process
from tests.conftest import PATIENCE, RunAsync, RunningAgent

#: Does what it reads from a pipe of its own, word by word.
SCRIPT = """
exec 3<"$0"
while read -r word <&3; do
    case $word in
        process-in) exec 0<&- ;;
        process-out) exec 1>&- 2>&- ;;
        end) exit 7 ;;
    esac
done
"""

ORDERS = list(itertools.permutations(("client-in", "client-out", "process-in", "process-out")))


@pytest.fixture(scope="module")
def orders_of() -> dict[str, list[tuple[str, ...]]]:
    """By what closes first: a test each would be mostly the start of agents."""
    return {first: [order for order in ORDERS if order[0] == first] for first in ORDERS[0]}


@pytest.mark.parametrize("first", ORDERS[0])
@pytest.mark.parametrize("how", ["wait", "context"])
def test_whatever_closes_first_the_end_comes_and_is_right(
    agent: RunningAgent,
    run_async: RunAsync,
    tmp_path: pathlib.Path,
    orders_of: dict[str, list[tuple[str, ...]]],
    first: str,
    how: str,
) -> None:
    async def work() -> None:
        async with connect(agent.address) as client:
            for number, order in enumerate(orders_of[first]):
                pipe = tmp_path / f"pipe{number}"
                if not pipe.exists():
                    os.mkfifo(pipe)
                process = await client.popen(["sh", "-c", SCRIPT, str(pipe)], stdin=True, remove=True)
                words = await asyncio.to_thread(open, pipe, "w", 1)
                with words:
                    for step in order:
                        await close(process, step, words)
                        # The next one is to meet it closed.
                        await asyncio.sleep(0.02)
                    words.write("end\n")
                    begun = time.monotonic()
                    if how == "context":
                        await process.__aexit__(None, None, None)
                    ended = await process.wait(PATIENCE)
                assert (ended.cause, ended.exit_code) == ("exited", 7), order
                assert time.monotonic() - begun < PATIENCE / 2
                if how == "wait":
                    await process.remove()
                    await process.aclose()
            assert await client.executions(all=True) == []

    run_async(work())


async def close(process: Process, step: str, words: object) -> None:
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    if step == "client-in":
        process.stdin.close()
    elif step == "client-out":
        process.stdout.discard()
        process.stderr.discard()
    else:
        words.write(f"{step}\n")  # type: ignore[attr-defined]

"""Where the system gives no thread more: a container that forks without end sees to that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src"

#: Any user's processes are counted but root's.  What is imported is imported before.
AS_ANOTHER = """
import asyncio, errno, os, resource, sys, threading, time
from arcbox_agent._spawn import SpawnError
from arcbox_agent.agent.processes.children import Processes
from arcbox_agent.agent.processes.spec import SpawnSpec
from arcbox_agent.agent.processes.lanes import Lanes, Threads

os.setresuid(*[0x5A5A0000 + os.getpid()] * 3)
_, most = resource.getrlimit(resource.RLIMIT_NPROC)

def processes_allowed(count):
    resource.setrlimit(resource.RLIMIT_NPROC, (count, most))
"""

FEWER = """
pool = Threads(4)
assert pool.submit(int).result() == 0
processes_allowed(0)
together = [pool.submit(time.sleep, 0.05) for _ in range(8)]
assert [each.result(30) for each in together] == [None] * 8
assert threading.active_count() == 2
"""

NONE = """
pool, done = Threads(4), []
processes_allowed(0)
for _ in range(2):
    try:
        pool.submit(done.append, "refused")
    except OSError as error:
        assert error.errno == errno.EAGAIN
    else:
        raise AssertionError("nobody can have done it")
processes_allowed(most)
pool.submit(done.append, "taken").result(30)
assert done == ["taken"]
"""

SPAWN = """
async def main():
    processes = Processes(asyncio.get_running_loop(), Lanes())
    null = os.open("/dev/null", os.O_RDWR)
    def spec(program):
        return SpawnSpec([program], stdio=(os.dup(null),) * 3)
    processes_allowed(0)
    for start in (processes.spawn(spec("/bin/false")), processes.spawn_by(spec("/bin/false").run)):
        try:
            await start
        except SpawnError as error:
            assert (error.errno, error.step) == (errno.EAGAIN, "clone")
        else:
            raise AssertionError("nothing can have been started")
    processes_allowed(most)
    assert (await (await processes.spawn(spec("/bin/true"))).wait()).code == 0
    try:
        os.waitpid(-1, 0)
    except ChildProcessError:
        return await processes.close()
    raise AssertionError("what was refused was started")

asyncio.run(main())
"""


def as_another(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER + script],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_threads_there_are_do_all_the_work() -> None:
    as_another(FEWER)


def test_what_no_thread_could_be_had_for_is_not_done_later() -> None:
    as_another(NONE)


def test_a_spawn_without_a_thread_fails_and_is_not_made_up_for() -> None:
    as_another(SPAWN)

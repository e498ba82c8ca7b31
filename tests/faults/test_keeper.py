"""The keeper: descriptors that outlive the agent."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from arcbox_agent._spawn import exit_status
from arcbox_agent.agent.keeper import Keeper
from arcbox_agent.agent.processes import Processes


@asynccontextmanager
async def agents() -> AsyncIterator[tuple[Callable[[], Awaitable[Keeper]], Processes]]:
    """`next_agent()`: the keeper's other side, anew, as each agent makes it."""
    processes = Processes(asyncio.get_running_loop())
    with tempfile.TemporaryDirectory(prefix="arcbox-") as directory:
        keepers: list[Keeper] = []

        async def next_agent() -> Keeper:
            if keepers:
                await keepers[-1].close()
            keepers.append(Keeper(str(Path(directory) / "keeper.sock"), processes))
            return keepers[-1]

        try:
            yield next_agent, processes
        finally:
            await keepers[-1].close()
            await until(lambda: not len(processes))  # nothing is kept: it ends
            await processes.close()


async def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.01)


def test_what_was_written_into_a_pipe_outlives_both_of_its_ends() -> None:
    async def run() -> None:
        async with agents() as (next_agent, _):
            keeper = await next_agent()
            assert await keeper.start() == []
            reading, writing = os.pipe()
            os.write(writing, b"the last words")
            await keeper.keep("container", [reading, writing])
            os.close(reading)
            os.close(writing)

            keeper = await next_agent()
            assert await keeper.start() == ["container"]
            fds = await keeper.fetch("container")
            assert os.read(fds[0], 100) == b"the last words"
            for fd in fds:
                os.close(fd)
            await keeper.drop("container")
            assert await keeper.fetch("container") == []

    asyncio.run(run())


def test_the_status_of_a_process_that_ended_while_there_was_no_agent_can_be_read() -> None:
    async def run() -> None:
        async with agents() as (next_agent, _):
            keeper = await next_agent()
            pid = os.posix_spawn("/bin/sh", ["sh", "-c", "kill -STOP $$; exit 7"], {})
            pidfd = os.pidfd_open(pid)
            await keeper.keep("container", [pidfd])
            os.close(pidfd)

            keeper = await next_agent()
            os.kill(pid, signal.SIGCONT)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7  # its parent takes it
            assert await keeper.start() == ["container"]
            (pidfd,) = await keeper.fetch("container")
            assert exit_status(pidfd) == 7 << 8
            os.close(pidfd)
            await keeper.drop("container")

    asyncio.run(run())


def test_a_keeper_that_was_killed_is_missed_but_not_needed() -> None:
    async def run() -> None:
        async with agents() as (next_agent, processes):
            keeper = await next_agent()
            reading, writing = os.pipe()
            await keeper.keep("first", [reading, writing])
            (pid,) = [process.pid for process in processes._owned.values()]
            os.kill(pid, signal.SIGKILL)
            await until(lambda: not len(processes))
            await keeper.keep("second", [reading, writing])  # finds it gone
            await keeper.keep("third", [reading, writing])  # and has started another
            assert len(processes) == 1
            assert len(await keeper.fetch("third")) == 2
            await keeper.drop("third")

    asyncio.run(run())


def test_a_keeper_whose_socket_was_removed_ends_though_it_keeps_something() -> None:
    async def run() -> None:
        async with agents() as (next_agent, processes):
            keeper = await next_agent()
            reading, writing = os.pipe()
            await keeper.keep("container", [reading, writing])
            os.close(writing)
            os.unlink(keeper._path)
            await keeper.close()
            await until(lambda: not len(processes))
            assert os.read(reading, 1) == b""  # the last to hold the other end was the keeper
            os.close(reading)

    asyncio.run(run())


def test_it_keeps_what_came_in_several_calls_and_no_more_than_it_may() -> None:
    async def run() -> None:
        async with agents() as (next_agent, _):
            keeper = await next_agent()
            reading, writing = os.pipe()
            for _ in range(20):
                await keeper.keep("container", [reading])
            fds = await keeper.fetch("container")
            assert len(fds) == 8
            for fd in (*fds, reading, writing):
                os.close(fd)
            await keeper.drop("container")

    asyncio.run(run())

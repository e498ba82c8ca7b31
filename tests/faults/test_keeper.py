"""The keeper: descriptors that outlive the agent."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent import connect, sync
from arcbox_agent._spawn import exit_status
from arcbox_agent.agent.config import budget
from arcbox_agent.agent.processes.children import Processes
from arcbox_agent.agent.processes.keeper import Keeper
from arcbox_agent.agent.processes.lanes import Lanes
from tests.containers.support import alive, eventually
from tools.stress.agent import PATIENCE, AgentProcess


@asynccontextmanager
async def agents() -> AsyncIterator[tuple[Callable[[], Awaitable[Keeper]], Processes]]:
    """`next_agent()`: the keeper's other side, anew, as each agent makes it."""
    lanes = Lanes()
    processes = Processes(asyncio.get_running_loop(), lanes)
    with tempfile.TemporaryDirectory(prefix="arcbox-") as directory:
        keepers: list[Keeper] = []

        async def next_agent() -> Keeper:
            if keepers:
                await keepers[-1].close()
            keepers.append(Keeper(str(Path(directory) / "keeper-2.sock"), processes, lanes))
            return keepers[-1]

        try:
            yield next_agent, processes
        finally:
            await keepers[-1].close()
            await until(lambda: not len(processes))  # nothing is kept: it ends
            await processes.close()


def copies(*fds: int) -> list[int]:
    """For the keeper, which takes over what it is given."""
    return [os.dup(fd) for fd in fds]


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
            await keeper.keep("container", copies(reading, writing))
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
            await keeper.keep("container", copies(pidfd))
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
            await keeper.keep("first", copies(reading, writing))
            (pid,) = [process.pid for process in processes._owned.values()]
            os.kill(pid, signal.SIGKILL)
            await until(lambda: not len(processes))
            await keeper.keep("second", copies(reading, writing))  # finds it gone, and has started another
            assert len(processes) == 1
            assert len(await keeper.fetch("second")) == 2
            await keeper.drop("second")

    asyncio.run(run())


def test_what_no_keeper_could_be_started_for_is_kept_as_soon_as_there_are_descriptors() -> None:
    async def run() -> None:
        async with agents() as (next_agent, processes):
            keeper = await next_agent()
            assert await keeper.start() == []  # its thread is there now
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            pipes = {key: os.pipe() for key in ("first", "ended", "second")}
            highest = max(int(name) for name in os.listdir("/proc/self/fd"))
            fillers = [os.open("/dev/null", os.O_RDONLY)]
            while fillers[-1] < highest:
                fillers.append(os.open("/dev/null", os.O_RDONLY))
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1, limits[1]))
                for key, fds in pipes.items():
                    await keeper.keep(key, fds, anew=True)
                assert len(processes) == 0
                await keeper.drop("ended")
            finally:
                for fd in fillers:
                    os.close(fd)
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            await until(lambda: not keeper._put_by)
            for key, kept in (("first", 2), ("ended", 0), ("second", 2)):
                fetched = await keeper.fetch(key)
                assert len(fetched) == kept
                for fd in fetched:
                    os.close(fd)
                await keeper.drop(key)

    asyncio.run(run())


def test_a_run_whose_keeper_was_out_of_reach_does_not_join_the_one_before_it() -> None:
    async def run() -> None:
        async with agents() as (next_agent, _):
            keeper = await next_agent()
            reading, writing = os.pipe()
            await keeper.keep("container", copies(reading, writing), anew=True)
            # Too slow once, and found again a moment later.
            await keeper._in_thread(keeper.line.disconnect)
            keeper._not_before = asyncio.get_running_loop().time() + 0.3
            await keeper.keep("container", copies(reading), anew=True)
            await keeper.keep("container", copies(writing))
            await until(lambda: not keeper._put_by)
            fds = await keeper.fetch("container")
            assert len(fds) == 2
            await keeper.drop("container")
            for fd in (*fds, reading, writing):
                os.close(fd)

    asyncio.run(run())


def test_what_was_put_by_does_not_take_the_place_of_what_came_after_it() -> None:
    async def run() -> None:
        async with agents() as (next_agent, _):
            keeper = await next_agent()
            reading, writing = os.pipe()
            keeper._not_before = asyncio.get_running_loop().time() + 60
            await keeper.keep("container", copies(reading, writing), anew=True)
            keeper._not_before = 0.0
            await keeper.keep("container", copies(writing))  # which can be started only now
            await until(lambda: not keeper._put_by)
            await asyncio.sleep(0.5)  # for an offer that is under way
            fds = await keeper.fetch("container")
            assert len(fds) == 3
            await keeper.drop("container")
            for fd in (*fds, reading, writing):
                os.close(fd)

    asyncio.run(run())


def test_a_keeper_whose_socket_was_removed_ends_though_it_keeps_something() -> None:
    async def run() -> None:
        async with agents() as (next_agent, processes):
            keeper = await next_agent()
            reading, writing = os.pipe()
            await keeper.keep("container", copies(reading, writing))
            os.close(writing)
            os.unlink(keeper.line._path)
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
                await keeper.keep("container", copies(reading))
            fds = await keeper.fetch("container")
            assert len(fds) == 8
            for fd in (*fds, reading, writing):
                os.close(fd)
            await keeper.drop("container")

    asyncio.run(run())


def test_a_keeper_that_was_slow_once_still_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        monkeypatch.setattr(budget, "KEEPER_REPLY", 0.5)
        async with agents() as (next_agent, processes):
            keeper = await next_agent()
            reading, writing = os.pipe()
            await keeper.keep("first", copies(reading))
            (pid,) = [process.pid for process in processes._owned.values()]
            os.kill(pid, signal.SIGSTOP)
            await keeper.keep("missed", copies(reading))
            os.kill(pid, signal.SIGCONT)
            await keeper.keep("second", copies(writing))
            assert len(processes) == 1
            for key in ("first", "second"):
                (fd,) = await keeper.fetch(key)
                os.close(fd)
                await keeper.drop(key)
            await keeper.drop("missed")
            os.close(reading)
            os.close(writing)

    asyncio.run(run())


def test_a_keeper_without_room_keeps_what_it_has_and_finds_the_next_agent() -> None:
    async def run() -> None:
        async with agents() as (next_agent, processes):
            keeper = await next_agent()
            reading, writing = os.pipe()
            await keeper.keep("first", copies(reading, writing))
            (pid,) = [process.pid for process in processes._owned.values()]
            room = len(os.listdir(f"/proc/{pid}/fd")) + 1
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (room, room))
            await keeper.keep("two", copies(reading, writing))
            await keeper.keep("one", copies(reading))
            keeper = await next_agent()
            assert await keeper.start() == ["first", "one"]
            for key, many in (("first", 2), ("two", 0), ("one", 1)):
                fds = await keeper.fetch(key)
                assert len(fds) == many
                for fd in fds:
                    os.close(fd)
                await keeper.drop(key)
            os.close(reading)
            os.close(writing)

    asyncio.run(run())


def test_more_containers_than_the_agent_was_given_descriptors_outlive_it() -> None:
    with tempfile.TemporaryDirectory(prefix="arcbox-") as name:
        agent = AgentProcess(Path(name), settings={"containers_at_exit": "leave"})
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        try:
            agent.start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        try:
            agent.wait_until_it_answers()
            asyncio.run(_outlived(agent, 40))
        finally:
            if agent.running:
                agent.kill()


async def _outlived(agent: AgentProcess, many: int) -> None:
    ids = [f"c{number}" for number in range(many)]
    go = agent.directory / "go"
    script = f"while ! [ -e {go} ]; do sleep 0.1; done; echo last words; exit 7"
    async with connect(agent.address, timeout=PATIENCE) as client:
        for id in ids:
            await client.create_container(id=id, cmd=["/bin/sh", "-c", script])
            await client.start_container(id)
        pids = [each.pid for each in await client.list_containers()]
    agent.kill()
    go.touch()
    await until(lambda: not any(map(alive, pids)))
    agent.start()
    agent.wait_until_it_answers()
    async with connect(agent.address, timeout=PATIENCE) as client:
        ends = [await client.wait_container(id) for id in ids]
        assert [(end.status_code, end.error) for end in ends] == [(7, "")] * many
        for id in ids:
            assert [entry.data async for entry in client.logs(id)] == [b"last words"]
            await client.remove_container(id)


def test_the_exit_code_of_a_run_is_not_that_of_one_before_it(start_agent: Callable[..., Any]) -> None:
    agent = start_agent(containers_at_exit="leave")
    go = agent.directory / "go"
    script = f"while ! [ -e {go} ]; do sleep 0.05; done; exit 9"
    with sync.connect(agent.address) as client:
        client.create_container(id="other", cmd=["sleep", "1000"])
        client.start_container("other")  # so that there is a keeper
        client.create_container(id="c", cmd=["/bin/sh", "-c", script])
    # What is left where the agent is killed after the end of a run is on disk, and before the
    # keeper is told of it.
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 5"], {})
    pidfd = os.pidfd_open(pid)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    agent.kill()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as keeper:
        keeper.settimeout(PATIENCE)
        keeper.connect(str(agent.run_dir / "keeper-2.sock"))
        socket.send_fds(keeper, [b"kc"], [pidfd])
        assert keeper.recv(100) == b"ok"
    os.close(pidfd)
    agent.restart()
    with sync.connect(agent.address) as client:
        client.start_container("c")
        (info,) = [each for each in client.list_containers() if each.id == "c"]
    agent.kill()
    go.touch()
    eventually(lambda: not alive(info.pid))
    agent.restart()
    with sync.connect(agent.address) as client:
        assert client.wait_container("c").status_code == 9
        for id in ("c", "other"):
            client.remove_container(id, force=True)

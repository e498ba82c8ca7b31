"""The keeper as the parent of containers, and what is left of them where it is killed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent import connect, sync
from arcbox_agent._spawn import SpawnError
from arcbox_agent.agent.containers.runtimes.process import pid_file
from arcbox_agent.agent.containers.runtimes.process.spawning import Spawning
from arcbox_agent.agent.metrics import Metrics
from arcbox_agent.agent.processes.children import Process, Processes
from arcbox_agent.agent.processes.keeper import Keeper
from arcbox_agent.agent.processes.lanes import Lanes
from arcbox_agent.agent.processes.spec import SpawnSpec
from arcbox_agent.agent.processes.stat_line import PPID, STATE, stat_fields
from arcbox_agent.errors import ArcboxError
from tests.containers.support import alive, eventually, lines_of, null, open_descriptors, run
from tools.faults import keeper_of


def parent_of(pid: int) -> int:
    fields = stat_fields(pid)
    assert fields is not None
    return int(fields[PPID])


def is_zombie(pid: int) -> bool:
    fields = stat_fields(pid)
    return fields is not None and fields[STATE] == b"Z"


class World:
    """A keeper, and what it is used with."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.metrics = Metrics()
        self.lanes = Lanes()
        self.processes = Processes(asyncio.get_running_loop(), self.lanes)
        self.keeper = Keeper(str(directory / "keeper-2.sock"), self.processes, self.lanes, self.metrics)

    async def spawn(self, *argv: str, key: str = "c", **options: Any) -> Process:
        path = str(self.directory / f"{key}.pid")
        streams = [null() for _ in range(3)]
        spec = SpawnSpec(argv, stdio=(streams[0], streams[1], streams[2]), pid_fd=pid_file.create(path), **options)
        return await Spawning(self.keeper, key, spec, path).run(self.processes)

    async def begin(self) -> None:
        """Have a keeper, with something to keep."""
        reading, writing = os.pipe()
        await self.keeper.keep("first", [reading, writing])

    async def next_agent(self) -> None:
        """The keeper's other side, anew, as each agent makes it."""
        await self.keeper.close()
        self.keeper = Keeper(str(self.directory / "keeper-2.sock"), self.processes, self.lanes, self.metrics)


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory(prefix="arcbox-") as name:
        world = World(Path(name))
        try:
            yield world
        finally:
            for key in await world.keeper.start() if not world.keeper.line.open else ["first", "c"]:
                await world.keeper.drop(key)
            await world.keeper.close()
            await world.processes.close()
            world.lanes.close()


async def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.01)


def test_what_it_starts_is_its_child_until_the_key_is_dropped() -> None:
    async def main() -> None:
        async with world() as w:
            await w.begin()
            process = await w.spawn("sh", "-c", "exit 7", programs=["/bin/sh"])
            assert parent_of(process.pid) == w.keeper._pid
            assert (await process.wait()).code == 7
            assert is_zombie(process.pid)  # its status is still there, for a later agent
            assert await w.keeper.exit_of("c", process.pid) == 7 << 8
            assert await w.keeper.exit_of("c", process.pid + 1) is None
            await w.keeper.drop("c")
            assert not os.path.exists(f"/proc/{process.pid}")
            assert await w.keeper.exit_of("c", process.pid) is None

    run(main())


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("kill -9 $$", 9), ("exit 255", 255 << 8)])
def test_a_later_agent_learns_how_it_ended(script: str, status: int) -> None:
    async def main() -> None:
        async with world() as w:
            await w.begin()
            process = await w.spawn("sh", "-c", script, programs=["/bin/sh"])
            w.processes.release(process)
            await w.next_agent()
            assert set(await w.keeper.start()) == {"first", "c"}
            await until(lambda: is_zombie(process.pid))
            assert await w.keeper.exit_of("c", process.pid) == status
            adopted = w.processes.adopt(process.pid, process.start_time, lambda pid: w.keeper.exit_of("c", pid))
            assert adopted is not None
            assert (await adopted.wait()).wait_status == status

    run(main())


def test_a_child_whose_key_is_given_anew_is_still_known() -> None:
    """As by an agent that took a slow keeper for a dead one."""

    async def main() -> None:
        async with world() as w:
            await w.begin()
            process = await w.spawn("sh", "-c", "exit 7", programs=["/bin/sh"])
            reading, writing = os.pipe()
            await w.keeper.keep("c", [reading, writing], anew=True)
            assert (await process.wait()).code == 7
            assert await w.keeper.exit_of("c", process.pid) == 7 << 8
            later = await w.spawn("sh", "-c", "exit 8", programs=["/bin/sh"])
            assert (await later.wait()).code == 8
            assert await w.keeper.exit_of("c", process.pid) is None
            await until(lambda: not os.path.exists(f"/proc/{process.pid}"))

    run(main())


def test_a_spawn_that_fails_says_why_and_leaves_nothing() -> None:
    async def main() -> None:
        async with world() as w:
            await w.begin()
            missing = ("bind", "/nonexistent", "/tmp", "", False, False)
            wrong: list[tuple[dict[str, Any], str]] = [
                ({"programs": ["/nonexistent"]}, "exec"),
                ({"programs": ["/bin/sh"], "cwd": "/nonexistent"}, "working directory"),
                ({"programs": ["/bin/sh"], "mounts": [missing], "new_namespace": True}, "mount source"),
            ]
            for options, step in wrong:
                with pytest.raises(SpawnError) as caught:
                    await w.spawn("sh", **options)
                assert (caught.value.step, caught.value.errno) == (step, errno.ENOENT)
            tasks = Path(f"/proc/{w.keeper._pid}/task").glob("*/children")
            assert not any(children.read_text() for children in tasks)
            before = open_descriptors()
            with pytest.raises(SpawnError):
                await w.spawn("sh", programs=["/nonexistent"])
            assert open_descriptors() == before

    run(main())


def test_a_child_that_is_dropped_before_its_end_is_reaped_after_it() -> None:
    async def main() -> None:
        async with world() as w:
            await w.begin()
            process = await w.spawn("sleep", "1000", programs=["/bin/sleep"])
            await w.keeper.drop("c")
            process.send_signal(signal.SIGKILL)
            await until(lambda: not os.path.exists(f"/proc/{process.pid}"))

    run(main())


def test_a_child_has_the_limits_of_its_agent_and_not_those_of_the_keeper() -> None:
    async def main() -> None:
        async with world() as w:
            await w.begin()
            mine = {which: resource.getrlimit(which) for which in range(16)}
            for which, soft in ((resource.RLIMIT_NOFILE, 200), (resource.RLIMIT_STACK, 1 << 20)):
                resource.prlimit(w.keeper.pid, which, (soft, mine[which][1]))
            process = await w.spawn("sleep", "1000", programs=["/bin/sleep"])
            assert {which: resource.prlimit(process.pid, which) for which in range(16)} == mine
            process.send_signal(signal.SIGKILL)
            await process.wait()

    run(main())


def test_without_a_keeper_the_agent_is_the_parent() -> None:
    async def main() -> None:
        async with world() as w:
            process = await w.spawn("sh", "-c", "exit 7", programs=["/bin/sh"])
            assert process.start_time
            assert (await process.wait()).code == 7
            assert not os.path.exists(f"/proc/{process.pid}")  # it was reaped

    run(main())


def test_a_keeper_that_is_killed_during_a_spawn_leaves_one_child_or_none() -> None:
    """Killed at any moment of it: the child that is there is the one of the pid file, and there is no other."""

    async def main() -> None:
        async with world() as w:
            by_agent = by_keeper = 0
            for attempt in range(40):
                w.keeper._not_before = 0.0
                await w.begin()
                marker = f"1000.{os.getpid()}{attempt:03}"

                async def kill_soon(delay: float) -> None:
                    await asyncio.sleep(delay)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(w.keeper._pid, signal.SIGKILL)

                killer = asyncio.create_task(kill_soon(attempt * 0.0001))
                process = await w.spawn("sleep", marker, programs=["/bin/sleep"])
                await killer
                await until(lambda pid=process.pid: _command_line(pid))  # type: ignore[misc]
                found = [
                    pid
                    for pid in filter(str.isdigit, os.listdir("/proc"))
                    if marker.encode() in _command_line(int(pid))
                ]
                assert found == [str(process.pid)]
                by_agent += parent_of(process.pid) == os.getpid()
                by_keeper += parent_of(process.pid) != os.getpid()
                process.send_signal(signal.SIGKILL)
                assert (await process.wait()).signal == signal.SIGKILL
                await until(lambda: not alive(w.keeper._pid))
            assert by_agent
            assert by_keeper

    run(main(), timeout=120)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class Held:
    """Two ends of a pipe, and how what held it has ended."""

    def __init__(self, *fds: int, end: tuple[int, int] | None = None) -> None:
        self.fds, self.end, self.closed = fds, end, False

    def descriptors(self) -> list[int]:
        return [os.dup(fd) for fd in self.fds]

    def close(self) -> None:
        self.closed = True


def test_a_keeper_that_is_killed_is_replaced_and_given_all_again() -> None:
    async def main() -> None:
        async with world() as w:
            reading, writing = os.pipe()
            held = Held(reading, writing, end=(4711, 7 << 8))
            w.keeper.hold("c", held)
            w.keeper.hold("d", Held(reading))
            await w.keeper.keep("c", held.descriptors(), anew=True)
            first = w.keeper._pid
            os.kill(first, signal.SIGKILL)
            await until(lambda: w.keeper._pid not in (0, first))
            await until(lambda: w.keeper._replacing is not None and w.keeper._replacing.done())
            assert w.metrics.counters["keeper_deaths"] == 1
            await w.next_agent()
            assert set(await w.keeper.start()) == {"c", "d"}
            for key, many in (("c", 2), ("d", 1)):
                fds = await w.keeper.fetch(key)
                assert len(fds) == many
                for fd in fds:
                    os.close(fd)
            assert await w.keeper.exit_of("c", 4711) == 7 << 8
            await w.keeper.drop("d")
            os.close(reading)
            os.close(writing)

    run(main())


def test_a_keeper_that_had_nothing_to_keep_is_not_missed() -> None:
    async def main() -> None:
        async with world() as w:
            await w.begin()
            held = Held()
            w.keeper.hold("first", held)
            await w.keeper.drop("first")
            assert held.closed
            os.kill(w.keeper._pid, signal.SIGKILL)
            await until(lambda: w.keeper._pidfd < 0)
            assert w.keeper._replacing is None
            assert w.metrics.counters["keeper_deaths"] == 0

    run(main())


def test_one_of_an_older_release_keeps_what_it_holds_until_that_is_over() -> None:
    async def main() -> None:
        async with world() as w:
            path = str(w.directory / "keeper.sock")
            former = Keeper(path, w.processes, w.lanes)
            reading, writing = os.pipe()
            os.write(writing, b"the last words")
            await former.keep("old", [reading, writing])
            former_pid = former._pid
            await former.close()
            w.keeper = Keeper(w.keeper.line._path, w.processes, w.lanes, former_path=path)
            assert await w.keeper.start() == ["old"]
            await w.begin()
            assert w.keeper._pid != former_pid
            fds = await w.keeper.fetch("old")
            assert os.read(fds[0], 100) == b"the last words"
            for fd in fds:
                os.close(fd)
            assert alive(former_pid)
            await w.keeper.drop("old")
            await until(lambda: not alive(former_pid))
            assert await w.keeper.fetch("old") == []
            kept = await w.keeper.fetch("first")
            assert len(kept) == 2
            for fd in kept:
                os.close(fd)

    run(main())


SCRIPT = "echo before; while ! [ -e {go} ]; do sleep 0.02; done; echo after; exit 7"


def _start(agent: Any, go: Path, **options: Any) -> int:
    with sync.connect(agent.address) as client:
        client.create_container(id="c", cmd=["/bin/sh", "-c", SCRIPT.format(go=go)], **options)
        client.start_container("c")
        eventually(lambda: b"before" in [line.rstrip(b"\r") for line in lines_of(client, "c")])
        return client.list_containers()[0].pid


def _holds(agent: Any, many: int) -> bool:
    """Whether there is a keeper with so many descriptors: three streams, the agent, and what it keeps."""
    keeper = keeper_of(agent.run_dir)
    return keeper != 0 and len(os.listdir(f"/proc/{keeper}/fd")) >= many


@pytest.mark.parametrize("tty", [False, True])
def test_nothing_is_lost_where_the_agent_is_killed_after_the_keeper(start_agent: Any, tty: bool) -> None:
    agent = start_agent(containers_at_exit="leave")
    go = agent.directory / "go"
    pid = _start(agent, go, tty=tty)
    first = keeper_of(agent.run_dir)
    assert parent_of(pid) == first
    os.kill(first, signal.SIGKILL)
    eventually(lambda: "another one is given what it held" in agent.log())
    eventually(lambda: _holds(agent, 6 if tty else 7))
    agent.kill()
    go.touch()
    eventually(lambda: not alive(pid))
    agent.restart()
    with sync.connect(agent.address) as client:
        assert client.wait_container("c").status_code == 7
        assert [line.rstrip(b"\r") for line in lines_of(client, "c")] == [b"before", b"after"]
        client.remove_container("c")
    agent.stop()


def test_nothing_is_lost_where_both_were_killed_and_the_agent_is_killed_again(start_agent: Any) -> None:
    agent = start_agent(containers_at_exit="leave")
    go = agent.directory / "go"
    pid = _start(agent, go)
    os.kill(keeper_of(agent.run_dir), signal.SIGKILL)
    agent.kill()
    agent.restart()
    eventually(lambda: _holds(agent, 7))
    agent.kill()
    go.touch()
    eventually(lambda: not alive(pid))
    agent.restart()
    with sync.connect(agent.address) as client:
        assert client.wait_container("c").status_code == 7
        assert lines_of(client, "c") == [b"before", b"after"]
        client.remove_container("c")
    agent.stop()


def test_a_code_is_known_whenever_the_agent_is_killed_during_a_start(start_agent: Any) -> None:
    """The container has ended before the next agent is there: nobody but its parent knows the code."""
    agent = start_agent(containers_at_exit="leave")
    with sync.connect(agent.address) as client:
        client.create_container(id="first", cmd=["/bin/true"])
        before = time.monotonic()
        client.start_container("first")
        usual = time.monotonic() - before
    ran = 0
    for attempt in range(15):
        with sync.connect(agent.address) as client:
            client.create_container(id=f"c{attempt}", cmd=["/bin/sh", "-c", f"echo line; exit {attempt + 1}"])

        async def start(id: str) -> None:
            with contextlib.suppress(ArcboxError):  # the agent goes away
                async with connect(agent.address) as client:
                    await client.start_container(id)

        async def main(id: str, delay: float) -> None:
            task = asyncio.create_task(start(id))
            await asyncio.sleep(delay)
            agent.process.kill()
            await task

        asyncio.run(main(f"c{attempt}", usual * attempt / 10))
        agent.process.wait()
        time.sleep(0.05)
        agent.restart()
        with sync.connect(agent.address) as client:
            (info,) = client.list_containers(all=True, filter=f"c{attempt}")
            if info.started_at:
                ran += 1
                end = client.wait_container(info.id)
                assert (end.status_code, end.error) == (attempt + 1, "")
                assert lines_of(client, info.id) == [b"line"]
            else:
                assert lines_of(client, info.id) == []
            client.remove_container(info.id)
    assert ran
    agent.stop()

"""What hangs in one container holds up no other, nor the guest, and is cleaned up when it is over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent import sync
from arcbox_agent._spawn import Attempt, SpawnError
from arcbox_agent.agent.processes.cgroups import Cgroup, find_parent
from arcbox_agent.agent.processes.children import Processes
from arcbox_agent.agent.processes.lanes import Lanes
from arcbox_agent.agent.processes.pool import SLOW, Pool
from arcbox_agent.agent.processes.scopes import cgroup_name
from arcbox_agent.agent.processes.spawning import HungError
from arcbox_agent.agent.processes.spec import SpawnSpec
from arcbox_agent.errors import AgentFailedError, BusyError

from .support import children, eventually, leased, null, open_descriptors, run

#: Only what hangs takes this long.
HANGS = 30.0


class Gate:
    """Work that hangs until it is let go, and how much of it hangs."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.inside = 0
        self._lock = threading.Lock()

    def hang(self) -> int:
        with self._lock:
            self.inside += 1
        self.let_go.wait(HANGS * 2)
        return 7

    async def has(self, number: int) -> None:
        async with asyncio.timeout(HANGS):
            while self.inside < number:
                await asyncio.sleep(0.001)


@contextlib.contextmanager
def pool_of(threads: int, share: int, reserved: int, waiting: int = 100) -> Iterator[tuple[Pool, Gate]]:
    pool, gate = Pool(asyncio.get_running_loop(), "test", threads, share, reserved, waiting), Gate()
    try:
        yield pool, gate
    finally:
        gate.let_go.set()
        pool.close()


# ----------------------------------------------------------------- the pool


def test_one_key_runs_no_more_at_once_than_its_share_and_the_rest_in_order() -> None:
    async def main() -> None:
        with pool_of(8, 2, 2) as (pool, gate):
            ran: list[int] = []
            hanging = [pool.submit("a", gate.hang) for _ in range(2)]
            await gate.has(2)
            later = [pool.submit("a", ran.append, number) for number in range(20)]
            await asyncio.sleep(4 * SLOW)
            assert ran == []
            assert all(pool.waits(future) for future in later) and not pool.waits(hanging[0])
            gate.let_go.set()
            assert await asyncio.gather(*hanging) == [7, 7]
            await asyncio.gather(*later)
            assert ran == list(range(20))

    run(main())


def test_many_keys_that_hang_hold_up_neither_another_key_nor_the_guest() -> None:
    async def main() -> None:
        with pool_of(8, 4, 2) as (pool, gate):
            hanging = [pool.submit(f"k{key}", gate.hang) for _ in range(6) for key in range(10)]
            async with asyncio.timeout(HANGS):
                assert await pool.submit(None, lambda: "guest") == "guest"
                assert await pool.submit("innocent", lambda: "other") == "other"
            await gate.has(40)
            async with asyncio.timeout(HANGS):
                assert await pool.submit("innocent", lambda: "again") == "again"
            assert gate.inside == 40
            gate.let_go.set()
            assert set(await asyncio.gather(*hanging)) == {7}

    run(main())


def test_while_keys_use_up_their_threads_those_reserved_serve_the_guest_at_once() -> None:
    async def main() -> None:
        with pool_of(3, 2, 1) as (pool, gate):
            for key in "ab":
                pool.submit(key, gate.hang)
            third = pool.submit("c", lambda: "c")
            assert pool.waits(third)  # nothing is slow yet
            assert not pool.waits(pool.submit(None, gate.hang))
            async with asyncio.timeout(HANGS):
                assert await third == "c"  # by now the first are

    run(main())


def test_threads_for_what_was_slow_end_when_it_is_over() -> None:
    async def main() -> None:
        before = threading.active_count()
        with pool_of(2, 9, 0) as (pool, gate):
            hanging = [pool.submit("a", gate.hang) for _ in range(9)]
            await gate.has(9)
            gate.let_go.set()
            await asyncio.gather(*hanging)
            async with asyncio.timeout(HANGS):
                while threading.active_count() > before + 2:
                    await asyncio.sleep(0.01)

    run(main())


def test_what_waits_is_bounded_for_each_key_and_closer_where_all_of_it_hangs() -> None:
    async def main() -> None:
        with pool_of(8, 1, 2, waiting=8) as (pool, gate):
            for key in "ab":
                pool.submit(key, gate.hang)
                await gate.has(1)
            waiting = [pool.submit("a", lambda: None) for _ in range(8)]
            with pytest.raises(BusyError, match="8 calls in container a wait already for others"):
                pool.submit("a", lambda: None)
            await asyncio.sleep(1.1)
            for _ in range(2):
                waiting.append(pool.submit("b", lambda: None))
            with pytest.raises(BusyError, match="2 calls in container b wait already for others"):
                pool.submit("b", lambda: None)
            gate.let_go.set()
            await asyncio.gather(*waiting)

    run(main())


def test_what_nobody_waits_for_never_begins_or_is_told_of_its_end() -> None:
    async def main() -> None:
        with pool_of(8, 1, 2) as (pool, gate):
            told: list[Any] = []
            begun = pool.submit("a", gate.hang, late=lambda *end: told.append(end), dropped=lambda: told.append("no"))
            await gate.has(1)
            waits = pool.submit("a", told.append, "ran", dropped=lambda: told.append("dropped"))
            failed = pool.submit("a", lambda: 1 // 0)
            waits.cancel()
            begun.set_exception(HungError(None, "", 1))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert told == ["dropped"]
            gate.let_go.set()
            with pytest.raises(ZeroDivisionError):
                await failed
            assert told == ["dropped", (7, None)]
            with pytest.raises(HungError):
                await begun

    run(main())


# ---------------------------------------------------------------- the spawn


def spec(*argv: str) -> SpawnSpec:
    return SpawnSpec(argv, stdio=(null(), null(), null()))


def test_a_spawn_that_hangs_is_given_up_and_nothing_is_left_of_it(tmp_path: Path) -> None:

    async def main() -> None:
        processes = Processes(asyncio.get_running_loop(), Lanes())
        await (await processes.spawn(spec("/bin/true"))).wait()
        before, others = open_descriptors(), children()
        over = asyncio.Event()
        with leased(tmp_path / "true"):
            with pytest.raises(HungError, match=r"not started within 0.[23]\d* s: it hangs at the step `exec`"):
                await processes.spawn(spec(f"{tmp_path}/true"), key="x", limit=0.2, late=over.set)
            async with asyncio.timeout(HANGS):
                await over.wait()
        assert set(children()) <= set(others)
        assert open_descriptors() == before
        await (await processes.spawn(spec("/bin/true"), key="x")).wait()
        await processes.close()

    run(main())


def test_a_spawn_into_a_frozen_cgroup_that_is_given_up_leaves_no_child() -> None:
    parent = find_parent(f"arcbox-tests-{os.getpid()}")
    assert parent is not None, "this test needs cgroup2"
    cgroup = Cgroup(f"{parent}/frozen")
    cgroup.create()
    Path(cgroup.path, "cgroup.freeze").write_text("1")

    async def main() -> None:
        processes = Processes(asyncio.get_running_loop(), Lanes())
        over = asyncio.Event()
        others = set(children())
        wanted = spec("/bin/true")
        wanted.cgroup_fd = cgroup.open()
        assert cgroup.frozen()
        with pytest.raises(HungError):
            await processes.spawn(wanted, limit=0.2, late=over.set)
        async with asyncio.timeout(HANGS):
            await over.wait()
        assert (set(children()) - others, cgroup.pids()) == (set(), set())
        await processes.close()

    try:
        run(main())
    finally:
        eventually(cgroup.remove)
        os.rmdir(parent)


def test_an_attempt_that_was_cancelled_makes_no_child() -> None:
    attempt = Attempt()
    others = children()
    assert (attempt.pid, attempt.step, attempt.may_own(1)) == (0, "preparation", False)
    attempt.cancel()
    with pytest.raises(SpawnError) as caught:
        spec("/bin/true").run(attempt)
    assert (caught.value.strerror, caught.value.step) == ("Operation canceled", "clone")
    assert set(children()) <= set(others)


# ---------------------------------------------------------------- the agent


def test_commands_that_hang_in_one_container_hold_up_nothing_else(
    client: sync.Client, agent: Any, tmp_path: Path
) -> None:
    for id in ("bad", "good", "new"):
        client.create_container(id=id, cmd=["sleep", "1000"])
    for id in ("bad", "good"):
        client.start_container(id)

    def hanging(_: int) -> str:
        with sync.connect(agent.address) as other, pytest.raises(AgentFailedError) as caught:
            other.exec([f"{tmp_path}/true"], container="bad", timeout=3)
        return caught.value.message

    with leased(tmp_path / "true"), ThreadPoolExecutor(12) as threads:
        begun = time.monotonic()
        refused = [threads.submit(hanging, number) for number in range(12)]
        eventually(lambda: client.agent_info().connections > 12)
        time.sleep(0.2)
        for call in (
            lambda: client.exec(["true"]),
            lambda: client.exec(["true"], container="good"),
            lambda: client.start_container("new"),
            lambda: client.stop_container("good", timeout=0),
            lambda: client.create_container(id="more", cmd=["true"]),
        ):
            call()
        assert time.monotonic() - begun < 2.5  # the others are still there
        messages = [each.result(HANGS) for each in refused]
    assert sum("exec failed: not started within 3" in each for each in messages) == 12
    # As the first four are killed, some that waited may begin; their time is over just then.
    assert sum("it hangs at the step `exec` and is killed" in each for each in messages) >= 4
    assert all("and is killed" in each or "behind others in container bad that hang" in each for each in messages)
    assert client.exec(["true"], container="bad").exit_code == 0
    parent = find_parent(cgroup_name(str(agent.state_dir)))
    eventually(lambda: [name for name in os.listdir(f"{parent}/@bad") if os.path.isdir(f"{parent}/@bad/{name}")] == [])
    assert agent.log().count("a spawn was given up") == 1  # once a minute for a container
    client.remove_container("bad", force=True)


@pytest.mark.parametrize("end", ["stop", "remove"])
def test_a_start_that_hangs_is_ended_by_a_stop_and_by_a_removal(
    client: sync.Client, agent: Any, tmp_path: Path, end: str
) -> None:
    client.create_container(id="x", cmd=[f"{tmp_path}/sleep", "1000"])

    def start() -> str:
        with sync.connect(agent.address) as other, pytest.raises(AgentFailedError) as caught:
            other.start_container("x")
        return caught.value.message

    with leased(tmp_path / "sleep"), ThreadPoolExecutor(1) as threads:
        starting = threads.submit(start)
        record = agent.state_dir / "containers" / "x.json"
        eventually(lambda: '"state": "starting"' in record.read_text())
        if end == "remove":
            client.remove_container("x", force=True)
            assert client.list_containers(all=True) == []
            client.create_container(id="x", cmd=[f"{tmp_path}/sleep", "1000"])
        else:
            with pytest.raises(AgentFailedError, match="failed to stop: container is not running"):
                client.stop_container("x")
        assert "it hangs at the step `mount or exec` and is killed" in starting.result(HANGS)
    client.start_container("x")
    assert client.exec(["true"], container="x").exit_code == 0
    client.remove_container("x", force=True)


def test_an_agent_that_was_killed_in_a_start_that_hangs_is_followed_by_one_that_ends_it(
    start_agent: Callable[..., Any], tmp_path: Path
) -> None:
    agent = start_agent(containers_at_exit="leave")
    parent = find_parent(cgroup_name(str(agent.state_dir)))
    with leased(tmp_path / "sleep"):
        with sync.connect(agent.address, wait=10) as client:
            client.create_container(id="x", cmd=[f"{tmp_path}/sleep", "1000"])
        with ThreadPoolExecutor(1) as threads:

            def start() -> None:
                with sync.connect(agent.address) as other, contextlib.suppress(Exception):
                    other.start_container("x")

            threads.submit(start)
            eventually(lambda: len(Cgroup(f"{parent}/@x").pids()) == 1)
            (hung,) = Cgroup(f"{parent}/@x").pids()
            agent.kill()
        agent.restart()
        with sync.connect(agent.address, wait=20) as client:
            (info,) = client.list_containers(all=True)
            assert (info.state, info.error) == (
                "created",
                "it hung in its start when the agent was killed, and was ended",
            )
            eventually(lambda: not os.path.exists(f"/proc/{hung}"))
            client.remove_container("x")

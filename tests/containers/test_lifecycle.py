"""From created to removed: states, exits, waits, restarts."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import arcbox_agent
from arcbox_agent import sync
from arcbox_agent.errors import AgentFailedError, BadRequestError, ConflictError, NotFoundError, RequestError

from .support import eventually, keeper_of, run, text_of


def one(client: sync.Client, ref: str) -> Any:
    (info,) = client.list_containers(all=True, filter=ref)
    return info


def test_a_container_goes_from_created_to_running_to_stopped(client: sync.Client) -> None:
    before = time.time_ns()
    client.create_container(cmd=["sh", "-c", "read x; exit 7"], name="x", open_stdin=True)
    info = one(client, "x")
    assert (info.state, info.status, info.pid, info.started_at, info.finished_at) == ("created", "Created", 0, 0, 0)
    client.start_container("x")
    info = one(client, "x")
    assert (info.state, info.status) == ("running", f"Running (PID: {info.pid})")
    assert os.path.exists(f"/proc/{info.pid}")
    assert before < info.started_at < time.time_ns()
    client.kill_container("x", signal="TERM")
    end = client.wait_container("x")
    assert (end.status_code, end.signal, end.error) == (143, 15, "")
    info = one(client, "x")
    assert (info.state, info.status, info.exit_code, info.signal, info.pid) == ("stopped", "Exited (143)", 143, 15, 0)
    assert info.started_at < info.finished_at < time.time_ns()
    client.remove_container("x")
    assert client.list_containers(all=True) == []


def test_exit_codes_are_kept(client: sync.Client) -> None:
    for code in (0, 1, 42, 255):
        id = client.create_container(cmd=["sh", "-c", f"exit {code}"]).id
        client.start_container(id)
        assert client.wait_container(id).status_code == code
        assert one(client, id).status == f"Exited ({code})"


def test_a_stopped_container_can_be_started_again_and_its_log_goes_on(client: sync.Client) -> None:
    client.create_container(cmd=["sh", "-c", "echo run; exit 3"], name="x")
    for _ in range(3):
        client.start_container("x")
        assert client.wait_container("x").status_code == 3
    assert [entry.data for entry in client.logs("x")] == [b"run"] * 3
    assert one(client, "x").status == "Exited (3)"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cmd": ["/no/such/program"]}, "failed to start: /no/such/program: No such file or directory (os error 2)"),
        ({"cmd": ["nosuchprogram"]}, "failed to start: nosuchprogram: No such file or directory (os error 2)"),
        ({"cmd": ["/etc/passwd"]}, "failed to start: /etc/passwd: Permission denied (os error 13)"),
        ({"cmd": ["true"], "working_dir": "/no/such"}, "failed to start: working directory /no/such: No such file"),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_the_container_as_it_was(
    client: sync.Client, agent: Any, options: dict[str, Any], text: str
) -> None:
    id = client.create_container(**options).id
    for _ in range(2):
        with pytest.raises(AgentFailedError) as caught:
            client.start_container(id)
        assert caught.value.message.startswith(text)
        info = one(client, id)
        assert (info.state, info.status) == ("created", "Created")
        assert info.error == text_of(caught.value).removeprefix("failed to start: ")
    assert list((agent.run_dir / "containers").iterdir()) == []
    client.remove_container(id)


def test_a_container_that_ran_and_cannot_start_again_stays_stopped(client: sync.Client, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexit 5\n")
    program.chmod(0o755)
    id = client.create_container(cmd=[str(program)]).id
    client.start_container(id)
    client.wait_container(id)
    program.unlink()
    with pytest.raises(AgentFailedError):
        client.start_container(id)
    assert (one(client, id).state, one(client, id).status) == ("stopped", "Exited (5)")
    program.write_text("#!/bin/sh\nexit 6\n")
    program.chmod(0o755)
    client.start_container(id)
    assert client.wait_container(id).status_code == 6
    assert one(client, id).error == ""


def test_the_errors_of_a_wrong_state(client: sync.Client) -> None:
    id = client.create_container(cmd=["sleep", "60"]).id
    calls: tuple[tuple[Callable[[], object], str], ...] = (
        (lambda: client.stop_container(id), "failed to stop: container is not running"),
        (lambda: client.start_container("nope"), "failed to start: container not found: nope"),
        (lambda: client.stop_container("nope"), "failed to stop: container not found: nope"),
        (lambda: client.remove_container("nope"), "failed to remove: container not found: nope"),
    )
    for call, text in calls:
        with pytest.raises(AgentFailedError) as caught:
            call()
        assert text_of(caught.value) == text
    with pytest.raises(ConflictError, match=f"container is not running: {id}"):
        client.kill_container(id)
    with pytest.raises(NotFoundError, match="container not found: nope"):
        client.kill_container("nope")
    with pytest.raises(NotFoundError, match="container not found: nope"):
        client.wait_container("nope")
    with pytest.raises(BadRequestError, match="unknown condition 'soon'"):
        client.wait_container(id, condition="soon")
    client.start_container(id)
    with pytest.raises(AgentFailedError, match="failed to start: container is already running"):
        client.start_container(id)
    with pytest.raises(AgentFailedError, match=r"failed to remove: cannot remove running .* \(use force=true\)"):
        client.remove_container(id)
    for bad in (
        *("NOSUCH", "0", "-1", "65", "-9", "999", "9999", "SIGKILL9", "SIGSIGKILL", "RTMIN+99", "RTMIN-1", "RTMIN+"),
        *("RTMAX+1", "RTMAX-31", "RTMAX-40", "RTMAX-", "RTMIN+-1", "RTMAX--1", "TERM+1", "KILL-1", "SIG", "_UNBLOCK"),
    ):
        with pytest.raises(BadRequestError, match=f"unknown signal {re.escape(repr(bad))}: a name .* or a number"):
            client.kill_container(id, signal=bad)
    client.remove_container(id, force=True)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *[("KILL", 9), ("SIGTERM", 15), ("term", 15), ("sigUsr1", 10), ("10", 10), ("", 9)],
        *[("RTMIN", 34), ("RTMIN+1", 35), ("sigrtmin+15", 49), ("RTMIN+30", 64)],
        *[("SIGRTMAX", 64), ("RTMAX-1", 63), ("sigrtmax-14", 50), ("RTMAX-30", 34), ("RTMAX-0", 64)],
    ],
)
def test_a_signal_is_sent_by_name_or_number(client: sync.Client, name: str, number: int) -> None:
    id = client.create_container(cmd=["sleep", "60"]).id
    client.start_container(id)
    client.kill_container(id, signal=name)
    assert client.wait_container(id).signal == number


def test_kill_signals_the_main_process_alone(client: sync.Client) -> None:
    script = (
        "trap 'echo got' USR1; "
        "sh -c 'trap \"echo child\" USR1; echo ready; sleep 1 & wait; wait' & "
        "while :; do wait && break; done"
    )
    id = client.create_container(cmd=["sh", "-c", script]).id
    client.start_container(id)
    eventually(lambda: b"ready" in [entry.data for entry in client.logs(id)])
    client.kill_container(id, signal="USR1")
    eventually(lambda: b"got" in [entry.data for entry in client.logs(id)])
    client.remove_container(id, force=True)


def test_waits_are_answered_when_their_condition_comes_true(agent: Any) -> None:
    async def main() -> None:
        async with arcbox_agent.connect(agent.address, wait=10) as client:
            await client.create_container(cmd=["sh", "-c", "read x; exit 4"], open_stdin=True, name="x")
            assert (await client.wait_container("x")).status_code == 0  # it does not run
            next_exit = asyncio.create_task(client.wait_container("x", condition="next-exit"))
            removed = [asyncio.create_task(client.wait_container("x", condition="removed")) for _ in range(3)]
            await client.start_container("x")
            not_running = [asyncio.create_task(client.wait_container("x", condition="not-running")) for _ in range(5)]
            await asyncio.sleep(0.2)
            assert not any(task.done() for task in (next_exit, *removed, *not_running))
            await client.kill_container("x", signal="INT")
            assert (await next_exit).status_code == 130
            assert [(await task).status_code for task in not_running] == [130] * 5
            assert (await client.wait_container("x", condition="not-running")).status_code == 130
            again = asyncio.create_task(client.wait_container("x", condition="next-exit"))
            await asyncio.sleep(0.1)
            assert not again.done()
            await client.remove_container("x")
            assert [(await task).status_code for task in removed] == [130] * 3
            with pytest.raises(NotFoundError, match="container was removed: "):
                await again

    run(main())


def test_a_wait_for_the_next_exit_is_not_told_the_one_that_is_over(agent: Any) -> None:
    with sync.connect(agent.address, wait=10) as client, sync.connect(agent.address, wait=10) as other:
        client.create_container(cmd=["sh", "-c", "read x; exit $x"], id="x", open_stdin=True)
        client.start_container("x")
        stdin = agent.run_dir / "containers" / "x" / "stdin"
        keeper = keeper_of(agent.directory)
        os.kill(keeper, signal.SIGSTOP)
        codes: list[int] = []
        try:
            stdin.write_text("3\n")
            eventually(lambda: client.list_containers() == [])
            # It is stopped, and what it needed is being let go, for which the keeper is asked.
            waiter = threading.Thread(
                target=lambda: codes.append(other.wait_container("x", condition="next-exit").status_code)
            )
            waiter.start()
            time.sleep(0.5)
        finally:
            os.kill(keeper, signal.SIGCONT)
        client.start_container("x")
        stdin.write_text("4\n")
        waiter.join(30)
        assert codes == [4]


def test_a_wait_ends_with_an_error_when_the_agent_ends(agent: Any) -> None:
    async def main() -> None:
        async with arcbox_agent.connect(agent.address, wait=10) as client:
            await client.create_container(cmd=["sleep", "60"], name="x")
            await client.start_container("x")
            wait = asyncio.create_task(client.wait_container("x", condition="removed"))
            await asyncio.sleep(0.2)
            agent.process.send_signal(signal.SIGTERM)
            with pytest.raises(arcbox_agent.errors.ArcboxError):
                await wait

    run(main())
    agent.process.wait(30)


def test_a_forced_removal_ends_the_container_and_leaves_nothing(client: sync.Client, agent: Any) -> None:
    id = client.create_container(cmd=["sh", "-c", "echo x; setsid sleep 1000 & sleep 1001"]).id
    client.start_container(id)
    pid = one(client, id).pid
    eventually(lambda: [entry.data for entry in client.logs(id)] == [b"x"])
    client.remove_container(id, force=True)
    assert not os.path.exists(f"/proc/{pid}")
    for directory in (agent.state_dir / "containers", agent.state_dir / "logs", agent.run_dir / "containers"):
        assert list(directory.iterdir()) == []
    with pytest.raises(NotFoundError):
        list(client.logs(id))


def test_changes_to_one_container_at_once_come_out_as_some_order_of_them(agent: Any) -> None:
    """Twenty starts, stops, kills and removals, again and again: each works or says why not."""

    async def main() -> None:
        async with arcbox_agent.connect(agent.address, wait=10) as client:
            for round in range(8):
                await client.create_container(cmd=["sleep", "1000"], id=f"c{round}")

                async def attempt(call: Any, *arguments: Any, **options: Any) -> str:
                    try:
                        await call(*arguments, **options)
                        return "done"
                    except RequestError as error:
                        return text_of(error)

                id = f"c{round}"
                calls = [attempt(client.start_container, id) for _ in range(5)]
                calls += [attempt(client.stop_container, id, timeout=1) for _ in range(5)]
                calls += [attempt(client.kill_container, id) for _ in range(3)]
                if round % 2:
                    calls += [attempt(client.remove_container, id, force=True) for _ in range(3)]
                results = await asyncio.gather(*calls)
                assert "done" in results[:5]
                allowed = {
                    "done",
                    "failed to start: container is already running",
                    f"failed to start: container not found: {id}",
                    "failed to stop: container is not running",
                    f"failed to stop: container not found: {id}",
                    f"failed to remove: container not found: {id}",
                    f"container is not running: {id}",
                    f"container not found: {id}",
                }
                assert set(results) <= allowed
                if round % 2:
                    assert results[-3:].count("done") == 1
            left = [each.id for each in await client.list_containers(all=True)]
            assert left == ["c0", "c2", "c4", "c6"]
            for each in left:
                await client.remove_container(each, force=True)

    run(main())


def test_two_hundred_short_containers_at_once(agent: Any) -> None:
    async def main() -> None:
        async with arcbox_agent.connect(agent.address, wait=10) as client:

            async def life(n: int) -> None:
                id = (await client.create_container(cmd=["sh", "-c", f"echo {n}; exit {n}"])).id
                await client.start_container(id)
                assert (await client.wait_container(id)).status_code == n
                lines = [entry.data async for entry in client.logs(id)]
                assert lines == [str(n).encode()]
                await client.remove_container(id)

            await asyncio.gather(*(life(n) for n in range(200)))
            assert await client.list_containers(all=True) == []

    run(main())

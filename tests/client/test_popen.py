"""popen and attach: output, input, ends, and lost connections."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pathlib
import random
import signal
import time
from collections.abc import Callable

import pytest

from arcbox_agent import connect, sync
from arcbox_agent.client import Process
from arcbox_agent.errors import (
    AgentFailedError,
    CallTimeoutError,
    ConflictError,
    ConnectionLostError,
    GapError,
    NotFoundError,
)
from tests.conftest import PATIENCE, RunAsync, RunningAgent, StartAgent

from .cut_proxy import cut_proxy, random_lives


async def until(held: Callable[[], bool], seconds: float) -> None:
    """Until `held()` is true."""
    deadline = time.monotonic() + seconds
    while not held():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def output_of(process: Process) -> bytes:
    assert process.stdout is not None
    return await process.stdout.read()


def test_output_and_end_are_the_commands_own(agent: RunningAgent, run_async: RunAsync) -> None:
    async def work() -> None:
        async with connect(agent.address) as client:
            async with client.popen(["sh", "-c", "echo out; echo err >&2; exit 3"]) as process:
                assert await process.communicate() == (b"out\n", b"err\n")
                info = await process.wait()
                assert (info.state, info.cause, info.exit_code, process.exit_code) == ("ended", "exited", 3, 3)
            async with client.popen(["sh", "-c", "kill -9 $$"], remove=True) as process:
                assert (await process.wait()).signal == 9
                assert process.exit_code == 137
            with pytest.raises(NotFoundError):
                await client.execution(process.id)
            with pytest.raises(AgentFailedError, match="exec failed: No such file"):
                await client.popen(["/no/such/command"])

    run_async(work())


def test_what_it_takes_comes_to_the_command(agent: RunningAgent, run_async: RunAsync, tmp_path: pathlib.Path) -> None:
    async def work() -> None:
        async with connect(agent.address) as client:
            script = "echo $GREETING; pwd; stty size; test -t 1 && echo terminal"
            async with client.popen(
                ["sh", "-c", script],
                env={"GREETING": "hello"},
                working_dir=str(tmp_path),
                tty=True,
                size=(33, 100),
                id="mine",
            ) as process:
                assert process.id == "mine"
                assert process.stderr is None
                shown = await output_of(process)
                assert shown.decode().split("\r\n") == ["hello", str(tmp_path), "33 100", "terminal", ""]
            async with client.popen(["sleep", "600"], timeout=0.2) as process:
                assert (await process.wait()).cause == "timeout"

    run_async(work())


def test_input_goes_through_and_has_its_end(agent: RunningAgent, run_async: RunAsync) -> None:
    data = random.Random(1).randbytes(3 << 20)

    async def work() -> None:
        async with connect(agent.address) as client, client.popen(["cat"], stdin=True) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(b"first\n")
            assert await process.stdout.readline() == b"first\n"
            assert (await process.communicate(data))[0] == data
            await process.stdin.wait_closed()
            assert process.exit_code == 0

    run_async(work())


def test_a_command_that_closes_its_input_is_told(agent: RunningAgent, run_async: RunAsync) -> None:
    async def work() -> None:
        script = "exec 0<&-; echo closed; exec sleep 600"
        async with connect(agent.address) as client, client.popen(["sh", "-c", script], stdin=True) as process:
            assert process.stdin is not None and process.stdout is not None
            await process.stdout.readline()
            with pytest.raises(BrokenPipeError):
                async with asyncio.timeout(PATIENCE):
                    while True:
                        process.stdin.write(bytes(100_000))
                        await process.stdin.drain()
            await process.kill()
            assert (await process.wait()).cause == "killed"

    run_async(work())


def test_wait_does_not_hang_behind_output_that_nobody_reads(agent: RunningAgent, run_async: RunAsync) -> None:
    async def work() -> None:
        async with connect(agent.address) as client, client.popen(["seq", "200000"]) as process:
            assert (await process.wait(PATIENCE)).exit_code == 0
            assert len(await output_of(process)) == 1288895

    run_async(work())


def test_wait_has_a_time_out_and_leaves_the_command(agent: RunningAgent, run_async: RunAsync) -> None:
    async def work() -> None:
        async with connect(agent.address) as client, client.popen(["cat"], stdin=True) as process:
            with pytest.raises(CallTimeoutError):
                await process.wait(0.1)
            assert process.exit_code is None
            assert (await process.communicate(b"x"))[0] == b"x"

    run_async(work())


def test_signals_and_the_size_of_a_terminal_reach_it(agent: RunningAgent, run_async: RunAsync) -> None:
    script = "trap 'stty size' WINCH; trap 'echo usr; exit 5' USR1; echo ready; while :; do sleep 0.02; done"

    async def work() -> None:
        async with connect(agent.address) as client, client.popen(["sh", "-c", script], tty=True) as process:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\r\n"
            process.resize(40, 90)
            assert await process.stdout.readline() == b"40 90\r\n"
            await process.send_signal("USR1")
            assert await output_of(process) == b"usr\r\n"
            assert (await process.wait()).exit_code == 5
            with pytest.raises(ConflictError):
                await process.send_signal("USR1")
            await process.kill()

    run_async(work())


@pytest.mark.parametrize(("on_cancel", "state"), [("kill", "ended"), ("leave", "running")])
def test_cancelling_ends_the_command_or_leaves_it(
    agent: RunningAgent, run_async: RunAsync, on_cancel: str, state: str
) -> None:
    async def work() -> None:
        async with connect(agent.address) as client:
            started = asyncio.Event()

            async def run() -> None:
                async with client.popen(["sleep", "600"], id=f"c-{on_cancel}", on_cancel=on_cancel) as process:  # type: ignore[arg-type]
                    started.set()
                    await process.wait()

            task = asyncio.create_task(run())
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await client.wait_execution(f"c-{on_cancel}", timeout=0.5)).state == state
            await client.remove_execution(f"c-{on_cancel}", force=True)

    run_async(work())


def test_the_same_id_is_the_same_command_and_never_another(agent: RunningAgent, run_async: RunAsync) -> None:
    async def work() -> None:
        async with connect(agent.address) as client:
            first = await client.popen(["cat"], stdin=True, id="same")
            second = await client.attach("same")
            with pytest.raises(ConflictError):
                await client.popen(["dog"], id="same")
            with pytest.raises(ConflictError, match="another client"):
                await client.attach("same", input=True, reattach=0)
            assert first.stdin is not None
            first.stdin.write(b"for both")
            first.stdin.close()
            assert await output_of(first) == await output_of(second) == b"for both"
            assert (await first.wait()).exit_code == 0
            await second.wait()
            await first.remove()
            assert await client.executions(all=True) == []
            with pytest.raises(NotFoundError):
                await client.attach("same")

    run_async(work())


def test_who_left_attaches_again_where_it_was(agent: RunningAgent, run_async: RunAsync) -> None:
    async def work() -> None:
        async with connect(agent.address) as client:
            process = await client.popen(["cat"], stdin=True)
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(b"one\ntwo\n")
            assert await process.stdout.readline() == b"one\n"
            cursors = await process.detach()
            assert cursors == {"stdout": 4, "stderr": 0}
            with pytest.raises(ConnectionLostError):
                await process.wait()
            async with client.attach(process.id[:12], input=True, cursors=cursors) as again:
                assert again.stdout is not None and again.stdin is not None
                assert await again.stdout.readline() == b"two\n"
                async with client.attach(process.id, newest=True) as watching:
                    again.stdin.write(b"three\n")
                    again.stdin.close()
                    assert await output_of(watching) == b"three\n"
                assert await output_of(again) == b"three\n"

    run_async(work())


def test_calls_by_id_do_without_a_stream(agent: RunningAgent, run_async: RunAsync) -> None:
    async def work() -> None:
        async with connect(agent.address) as client:
            process = await client.popen(["cat"], stdin=True, id="by-id")
            await process.detach()
            assert [each.id for each in await client.executions()] == ["by-id"]
            accepted = await client.write_execution("by-id", b"hello", offset=0)
            assert accepted.offset == 5
            accepted = await client.write_execution("by-id", b"hello you", offset=0, close=True)
            assert (accepted.offset, accepted.closed) == (9, True)
            assert (await client.wait_execution("by-id")).exit_code == 0
            assert await client.executions() == []
            async with client.attach("by-id") as again:
                assert await output_of(again) == b"hello you"

    run_async(work())


def test_output_that_fell_off_is_a_gap_with_its_size(agent: RunningAgent, run_async: RunAsync) -> None:
    async def work() -> None:
        async with connect(agent.address) as client:
            process = await client.popen(
                ["head", "-c", "3000000", "/dev/zero"], spool_limit=1 << 20, wait_when_full=False, window=4096
            )
            info = await client.wait_execution(process.id)
            begin = info.outputs[0].begin
            assert begin > 0
            await process.detach()
            async with client.attach(process.id) as again:
                assert again.stdout is not None
                with pytest.raises(GapError) as caught:
                    await again.stdout.read(10)
                assert (caught.value.stream, caught.value.cursor, caught.value.bytes) == ("stdout", 0, begin)
                assert len(await again.stdout.read()) == 3_000_000 - begin

    run_async(work())


def test_nothing_is_lost_or_doubled_when_the_agent_is_killed(start_agent: StartAgent, run_async: RunAsync) -> None:
    agent = start_agent()

    async def work() -> None:
        async with connect(agent.address) as client, client.popen(["cat"], stdin=True) as process:
            stdin, stdout = process.stdin, process.stdout
            assert stdin is not None and stdout is not None

            async def give() -> None:
                for number in range(40_000):
                    stdin.write(b"%d\n" % number)
                    await stdin.drain()
                stdin.close()

            giving = asyncio.create_task(give())
            expected = 0
            for kill_at in (5_000, 15_000, 30_000, 40_000):
                while expected < kill_at:
                    assert await stdout.readline() == b"%d\n" % expected
                    expected += 1
                if expected < 40_000:
                    await asyncio.to_thread(agent.kill)
                    await asyncio.to_thread(agent.restart)
            await giving
            assert await stdout.read() == b""
            assert (await process.wait()).exit_code == 0

    run_async(work())


def test_a_lost_agent_is_an_error_when_its_time_is_over(start_agent: StartAgent, run_async: RunAsync) -> None:
    agent = start_agent()

    async def work() -> None:
        async with connect(agent.address) as client:
            patient = await client.popen(["sleep", "600"], reattach=0.5)
            curt = await client.popen(["sleep", "600"], reattach=0)
            await asyncio.to_thread(agent.kill)
            begun = time.monotonic()
            with pytest.raises(ConnectionLostError):
                await curt.wait(PATIENCE)
            with pytest.raises((ConnectionLostError, OSError, Exception)) as caught:
                await patient.wait(PATIENCE)
            assert not isinstance(caught.value, CallTimeoutError)
            assert 0.3 < time.monotonic() - begun < 5
            assert patient.stdout is not None
            with pytest.raises(type(caught.value)):
                await patient.stdout.read()
        await asyncio.to_thread(agent.restart)
        async with connect(agent.address) as client:
            for process in (patient, curt):
                await client.remove_execution(process.id, force=True)

    run_async(work())


@pytest.mark.parametrize("seed", range(3))
def test_connections_that_are_cut_at_random_bytes_lose_and_double_nothing(
    agent: RunningAgent, run_async: RunAsync, seed: int
) -> None:
    data = random.Random(seed).randbytes(1 << 20)

    async def work() -> None:
        with cut_proxy(str(agent.socket_path), random_lives(seed, 200_000)) as proxy:
            async with connect(proxy.address, wait=PATIENCE) as client:
                async with client.popen(["sh", "-c", "cat; echo err >&2"], stdin=True, heartbeat=0.5) as process:
                    out, err = await process.communicate(data)
                    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()
                    assert err == b"err\n"
                    assert process.exit_code == 0
            assert proxy.cuts > 3
        async with connect(agent.address) as client:
            assert len(await client.executions(all=True)) == 1
            await client.remove_execution(process.id)

    run_async(work())


def test_what_lies_unread_when_a_connection_is_cut_is_kept_and_more_comes_behind_it(
    agent: RunningAgent, run_async: RunAsync
) -> None:
    async def work() -> None:
        with cut_proxy(str(agent.socket_path)) as proxy:
            async with connect(proxy.address) as client:
                async with client.popen(["seq", "60000"], window=50_000, remove=True) as process:
                    stdout = process.stdout
                    assert stdout is not None
                    await until(lambda: stdout.full, PATIENCE)
                    for cursor in (100_000, 150_000):
                        proxy.cut_all()
                        # A window more than what lies here.
                        await until(lambda: (stdout.cursor or 0) >= cursor, PATIENCE)
                    assert await stdout.read() == b"".join(b"%d\n" % number for number in range(1, 60_001))
                    assert proxy.cuts >= 2

    run_async(work())


def test_the_input_is_taken_again_from_a_connection_that_the_agent_still_holds(
    agent: RunningAgent, run_async: RunAsync
) -> None:
    async def work() -> None:
        with cut_proxy(str(agent.socket_path)) as proxy:
            async with connect(proxy.address) as client:
                async with client.popen(["cat"], stdin=True, remove=True) as process:
                    assert process.stdin is not None and process.stdout is not None
                    process.stdin.write(b"before\n")
                    assert await process.stdout.readline() == b"before\n"
                    proxy.told.clear()
                    proxy.cut_clients()
                    process.stdin.write(b"behind\n")
                    await until(lambda: process.reattaching, 10)
                    # In this time it is refused.
                    await asyncio.sleep(0.5)
                    assert process.reattaching
                    proxy.told.set()
                    assert await process.stdout.readline() == b"behind\n"

    run_async(work())


def test_a_client_that_is_closed_ends_its_processes_at_once(agent: RunningAgent, run_async: RunAsync) -> None:
    async def work() -> None:
        async with connect(agent.address) as client:
            process = await client.popen(["sleep", "600"])
        begun = time.monotonic()
        with pytest.raises(ConnectionLostError):
            await process.wait()
        assert time.monotonic() - begun < 5
        async with connect(agent.address) as client:
            await client.remove_execution(process.id, force=True)

    run_async(work())


def test_without_an_event_loop_it_is_the_same(agent: RunningAgent) -> None:
    with sync.connect(agent.address) as client:
        with client.popen(["cat"], stdin=True) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(b"a\nb\n")
            assert process.stdout.readline() == b"a\n"
            process.stdin.close()
            assert list(process.stdout) == [b"b\n"]
            assert (process.wait().exit_code, process.exit_code) == (0, 0)
        with pytest.raises(KeyError), client.popen(["sleep", "600"]) as process:
            assert os.path.exists(f"/proc/{process.pid}")
            raise KeyError
        assert client.wait_execution(process.id).cause == "killed"
        with client.attach(process.id) as again:
            assert again.communicate() == (b"", b"")


def test_an_agent_that_stands_still_is_noticed_and_found_again(start_agent: StartAgent, run_async: RunAsync) -> None:
    agent = start_agent()

    async def work() -> None:
        async with connect(agent.address) as client, client.popen(["cat"], stdin=True, heartbeat=0.1) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(b"before\n")
            assert await process.stdout.readline() == b"before\n"
            agent.process.send_signal(signal.SIGSTOP)
            try:
                process.stdin.write(b"meanwhile\n")
                await until(lambda: process.reattaching, 5)
            finally:
                agent.process.send_signal(signal.SIGCONT)
            assert await process.stdout.readline() == b"meanwhile\n"
            assert not process.reattaching
            process.stdin.close()
            assert await output_of(process) == b""

    run_async(work())

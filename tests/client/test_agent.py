"""The client and the real agent."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest

import arcbox_agent
from arcbox_agent import sync, wire
from arcbox_agent.client.opening import Connecting
from arcbox_agent.errors import (
    BadRequestError,
    BusyError,
    CallTimeoutError,
    CommandFailedError,
    ConnectError,
    ConnectionLostError,
    ForbiddenError,
    NotFoundError,
    OutputLimitError,
    TransportError,
)
from tests.conftest import RunAsync, RunningAgent, StartAgent


def connect(agent: RunningAgent, **options: Any) -> Connecting:
    return arcbox_agent.connect(agent.address, **options)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def mark() -> str:
    """An argument that no other process on this machine has, to find one by."""
    return f"arcbox-{os.getpid()}-{time.monotonic_ns()}"


def processes_with(word: str) -> list[int]:
    """Pids of the processes that have `word` as one of their arguments."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
                if word.encode() in cmdline.read().split(b"\0"):
                    found.append(int(pid))
        except OSError:
            continue
    return found


# ----------------------------------------------------------------------- system


@pytest.mark.parametrize("frame_version", [1, 2])
def test_ping_info_and_agent_info(agent: RunningAgent, run_async: RunAsync, frame_version: Literal[1, 2]) -> None:
    async def main() -> None:
        async with connect(agent, frame_version=frame_version) as client:
            assert (await client.ping()).message == "pong"
            assert await client.ping("hi") == wire.PingResponse(message="pong: hi", version=arcbox_agent.__version__)
            assert (await client.system_info()).hostname == socket.gethostname()
            info = await client.agent_info()
            assert info.pid == agent.process.pid
            assert [listener.address for listener in info.listeners] == [f"unix:{agent.socket_path}", *agent.listen]

    run_async(main())


def test_the_trace_id_of_a_refused_call_is_in_the_agents_log(start_agent: StartAgent, run_async: RunAsync) -> None:
    agent = start_agent(log_level="debug")

    async def main() -> None:
        async with connect(agent, trace_id="look-for-this") as client:
            with pytest.raises(NotFoundError) as caught:
                await client.exec(["true"], container="nobody")
            assert caught.value.__notes__ == ["trace id look-for-this"]

    run_async(main())
    assert "look-for-this" in agent.log()


def test_a_call_the_agent_does_not_know_is_a_bad_request(agent: RunningAgent, run_async: RunAsync) -> None:
    async def main() -> None:
        async with connect(agent) as client:
            with pytest.raises(BadRequestError):
                await client.call(wire.PauseContainerRequest(id="x"), wire.Empty)
            await client.ping()
            assert (await client.agent_info()).connections == 1

    run_async(main())


def test_a_call_that_the_listener_does_not_allow_is_forbidden(start_agent: StartAgent, run_async: RunAsync) -> None:
    agent = start_agent()
    path = agent.directory / "guarded.sock"
    guarded = start_agent(listen=[f"unix:{path}?mode=read-only"])

    async def main() -> None:
        async with arcbox_agent.connect(f"unix://{path}") as client:
            assert await client.list_containers() == []
            with pytest.raises(ForbiddenError):
                await client.exec(["true"])
            with pytest.raises(ForbiddenError):
                await client.create_container(cmd=["true"])

    run_async(main())
    guarded.stop()


def test_more_connections_than_the_agent_allows_get_a_clear_error(start_agent: StartAgent, run_async: RunAsync) -> None:
    agent = start_agent(max_connections="2")

    async def main() -> None:
        async with connect(agent) as first, connect(agent):
            with pytest.raises(BusyError, match="max_connections"):
                await connect(agent)
            await first.ping()

    run_async(main())


# -------------------------------------------------------- the agent comes and goes


def test_calls_go_on_after_a_restart_of_the_agent(agent: RunningAgent, run_async: RunAsync) -> None:
    async def main() -> None:
        async with connect(agent) as client:
            await asyncio.gather(*(client.ping() for _ in range(8)))
            agent.stop()
            with pytest.raises(ConnectError, match="there is no such socket|nobody listens"):
                await client.ping()
            agent.restart()
            assert (await client.ping()).message == "pong"
            assert (await client.agent_info()).pid == agent.process.pid

    run_async(main())


def test_a_killed_agent_ends_every_call_with_an_error(agent: RunningAgent, run_async: RunAsync) -> None:
    async def main() -> None:
        async with connect(agent) as client:
            created = await client.create_container(cmd=["sleep", "1000"])
            await client.start_container(created.id)
            calls = [
                asyncio.ensure_future(client.wait_container(created.id)),
                asyncio.ensure_future(client.exec(["sleep", "1000"])),
                asyncio.ensure_future(anext(client.logs(created.id, follow=True))),
            ]
            await asyncio.sleep(0.2)
            assert not any(call.done() for call in calls)
            agent.kill()
            for call in calls:
                with pytest.raises(TransportError):
                    await call
            agent.restart()
            await client.remove_container(created.id, force=True)

    run_async(main())


def test_wait_connects_to_an_agent_that_is_still_starting(start_agent: StartAgent, run_async: RunAsync) -> None:
    agent = start_agent()
    agent.kill()

    async def main() -> None:
        connecting = asyncio.ensure_future(open_it())
        await asyncio.sleep(0.2)
        assert not connecting.done()
        await asyncio.to_thread(agent.restart)
        client = await connecting
        assert (await client.ping()).message == "pong"
        await client.aclose()

    async def open_it() -> arcbox_agent.Client:
        return await connect(agent, wait=30)

    run_async(main())


def test_connections_that_the_agent_closes_for_idleness_cost_no_call(
    start_agent: StartAgent, run_async: RunAsync
) -> None:
    agent = start_agent(idle_timeout="0.1")

    async def main() -> None:
        async with connect(agent) as client:
            for number in range(3):
                created = await client.create_container(name=f"c{number}", cmd=["true"])
                assert created.id
                # Until it is closed for certain: a request that crosses the close is rightly lost.
                await asyncio.sleep(2.0)
            assert len(await client.list_containers(all=True)) == 3

    run_async(main())


def test_a_stopped_agent_is_a_time_out_and_a_continued_one_is_not(agent: RunningAgent, run_async: RunAsync) -> None:
    async def main() -> None:
        async with connect(agent) as client:
            agent.process.send_signal(signal.SIGSTOP)
            try:
                with pytest.raises(CallTimeoutError):
                    await client.ping(timeout=0.2)
            finally:
                agent.process.send_signal(signal.SIGCONT)
            assert (await client.ping()).message == "pong"

    run_async(main())


# ------------------------------------------------------------------- containers


def test_a_containers_life(agent: RunningAgent, run_async: RunAsync) -> None:
    async def main() -> None:
        async with connect(agent) as client:
            created = await client.create_container(
                name="web", image="nginx", cmd=["sh", "-c", 'echo "$GREETING"; exec sleep 1000'], env={"GREETING": "hi"}
            )
            # An image cannot be had from this runtime, and that is said.
            assert len(created.warnings) == 1
            (listed,) = await client.list_containers(all=True)
            assert (listed.id, listed.name, listed.image, listed.state) == (created.id, "web", "nginx", "created")
            assert await client.list_containers() == []

            await client.start_container("web")
            (running,) = await client.list_containers(filter="web")
            assert (running.state, running.pid > 0) == ("running", True)

            assert [entry.data async for entry in client.logs("web", tail=1)] in ([b"hi"], [])
            waiting = asyncio.ensure_future(client.wait_container("web"))
            await client.stop_container("web", timeout=5)
            assert ((await waiting).status_code, (await waiting).signal) == (143, 15)

            (stopped,) = await client.list_containers(all=True)
            assert (stopped.state, stopped.exit_code, stopped.signal) == ("stopped", 143, 15)
            await client.remove_container("web")
            assert await client.list_containers(all=True) == []

    run_async(main())


def test_a_container_that_is_not_there_is_an_error_with_its_name(agent: RunningAgent, run_async: RunAsync) -> None:
    async def main() -> None:
        async with connect(agent) as client:
            for call in (
                client.start_container("none"),
                client.stop_container("none"),
                client.remove_container("none"),
                client.kill_container("none"),
                client.wait_container("none"),
                anext(client.logs("none")),
                client.exec(["true"], container="none"),
            ):
                with pytest.raises(arcbox_agent.errors.RequestError, match="container not found: none"):
                    await call

    run_async(main())


def test_a_hundred_calls_run_while_a_follow_a_wait_and_a_command_do(agent: RunningAgent, run_async: RunAsync) -> None:
    async def follow(client: arcbox_agent.Client, container: str) -> list[bytes]:
        return [entry.data async for entry in client.logs(container, follow=True)]

    async def main() -> None:
        async with connect(agent) as client:
            created = await client.create_container(
                cmd=["sh", "-c", "echo begin; read line; echo end"], open_stdin=True
            )
            await client.start_container(created.id)
            following = asyncio.ensure_future(follow(client, created.id))
            waiting = asyncio.ensure_future(client.wait_container(created.id))
            endless = asyncio.ensure_future(client.exec(["cat", "/dev/zero"], timeout=600, output_limit=1 << 40))
            replies = await asyncio.gather(*(client.ping(str(number)) for number in range(100)))
            assert [reply.message for reply in replies] == [f"pong: {number}" for number in range(100)]
            assert not (following.done() or waiting.done() or endless.done())
            endless.cancel()
            await client.kill_container(created.id, signal="KILL")
            assert await following == [b"begin"]
            assert (await waiting).status_code == 137
            with pytest.raises(asyncio.CancelledError):
                await endless

    run_async(main())


def test_a_log_is_followed_to_its_end(agent: RunningAgent, run_async: RunAsync) -> None:
    async def main() -> None:
        async with connect(agent) as client:
            script = "for n in 1 2 3; do echo out$n; echo err$n >&2; sleep 0.05; done"
            created = await client.create_container(cmd=["sh", "-c", script])
            before = time.time_ns()
            await client.start_container(created.id)
            entries = [entry async for entry in client.logs(created.id, follow=True)]
            assert [e.data for e in entries if e.stream == "stdout"] == [b"out1", b"out2", b"out3"]
            assert [e.data for e in entries if e.stream == "stderr"] == [b"err1", b"err2", b"err3"]
            assert all(before <= entry.timestamp <= time.time_ns() for entry in entries)

            only = [e.data async for e in client.logs(created.id, stderr=True, tail=2)]
            assert only == [b"err2", b"err3"]
            after = entries[-1].timestamp / 1e9 + 1
            assert [e async for e in client.logs(created.id, since=after)] == []
            async with arcbox_agent.connect(agent.address, frame_version=1) as old:
                assert [e async for e in old.logs(created.id)] == [e async for e in client.logs(created.id)]

    run_async(main())


# --------------------------------------------------------------------- commands


def test_exec_in_the_guest(agent: RunningAgent, run_async: RunAsync) -> None:
    async def main() -> None:
        async with connect(agent) as client:
            result = await client.exec(
                ["sh", "-c", 'cat; echo "$A $PWD" >&2; exit 3'], stdin=b"in", env={"A": "1"}, working_dir="/tmp"
            )
            assert (result.exit_code, result.stdout, result.stderr) == (3, b"in", b"1 /tmp\n")
            with pytest.raises(CommandFailedError, match="exit code 3"):
                await client.exec(["sh", "-c", "exit 3"], check=True)
            killed = await client.exec(["sh", "-c", "kill -15 $$"])
            assert (killed.exit_code, killed.signal) == (143, 15)
            late = await client.exec(["sleep", "1000"], timeout=0.1)
            assert (late.exit_code, late.signal, late.timed_out) == (137, 9, True)
            with pytest.raises(arcbox_agent.errors.RequestError):
                await client.exec(["/no/such/command"])
            with pytest.raises(BadRequestError):
                await client.exec([])

    run_async(main())


def test_exec_collects_more_than_a_frame_holds(agent: RunningAgent, run_async: RunAsync) -> None:
    async def main() -> None:
        async with connect(agent) as client:
            result = await client.exec(["head", "-c", str(40 * 1024 * 1024), "/dev/zero"])
            assert len(result.stdout) == 40 * 1024 * 1024
            assert result.stdout.count(0) == len(result.stdout)
            endless = mark()
            with pytest.raises(OutputLimitError):
                await client.exec(["yes", endless], output_limit=1_000_000)
            await until(lambda: not processes_with(endless))

    run_async(main())


@pytest.mark.parametrize("way", ["break", "aclose", "cancel", "close the client"])
def test_leaving_a_command_early_ends_it_in_the_guest(agent: RunningAgent, run_async: RunAsync, way: str) -> None:
    command = mark()
    script = ["sh", "-c", "while :; do echo tick; sleep 0.01; done", command]

    async def main() -> None:
        async with connect(agent) as client:
            if way == "break":
                async for _ in client.exec_stream(script):
                    break
            elif way == "aclose":
                stream = client.exec_stream(script)
                await anext(stream)
                assert processes_with(command)
                await stream.aclose()
            elif way == "cancel":
                call = asyncio.ensure_future(client.exec(script))
                await until(lambda: processes_with(command))
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
            else:
                stream = client.exec_stream(script)
                await anext(stream)
                await client.aclose()
                with pytest.raises(ConnectionLostError):
                    while True:
                        await anext(stream)
            await until(lambda: not processes_with(command))

    run_async(main())


def test_a_detached_command_goes_on_without_the_client(agent: RunningAgent, run_async: RunAsync) -> None:
    async def main() -> None:
        async with connect(agent) as client:
            pid = await client.exec_detached(["sleep", "1000"])
        try:
            # The kernel shows no arguments for a moment, between one program and the next.
            await until(lambda: Path(f"/proc/{pid}/cmdline").read_bytes())
            assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\0001000\0"
        finally:
            os.kill(pid, signal.SIGKILL)

    run_async(main())


def test_a_command_whose_output_is_not_read_waits(agent: RunningAgent, run_async: RunAsync) -> None:
    async def main() -> None:
        async with connect(agent) as client:
            async with client.exec_stream(["sh", "-c", "head -c 50000000 /dev/zero; echo $?"]) as parts:
                size = len((await anext(parts)).data)
                await asyncio.sleep(0.3)
                async for part in parts:
                    size += len(part.data)
            assert size == 50_000_002
            assert (part.done, part.exit_code) == (True, 0)

    run_async(main())


# -------------------------------------------------------------------- many at once


def test_threads_share_a_client_and_each_gets_its_own_answers(agent: RunningAgent) -> None:
    with sync.connect(agent.address) as client:

        def work(number: int) -> object:
            assert client.ping(str(number)).message == f"pong: {number}"
            result = client.exec(["sh", "-c", f"echo {number}; exit {number % 7}"])
            return (result.stdout, result.exit_code)

        with ThreadPoolExecutor(8) as threads:
            results = list(threads.map(work, range(40)))
    assert results == [(b"%d\n" % number, number % 7) for number in range(40)]


def test_calls_cancelled_at_random_disturb_no_other(agent: RunningAgent, run_async: RunAsync) -> None:
    async def one(client: arcbox_agent.Client, number: int) -> bytes:
        return (await client.exec(["sh", "-c", f"sleep 0.0{number % 5}; echo {number}"])).stdout

    async def main() -> None:
        async with connect(agent, max_streams=16) as client:
            calls = [asyncio.ensure_future(one(client, number)) for number in range(60)]
            for number in range(0, 60, 3):
                await asyncio.sleep(0.003)
                calls[number].cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            for number, result in enumerate(results):
                if number % 3:
                    assert result == b"%d\n" % number
                else:
                    assert result == b"%d\n" % number or isinstance(result, asyncio.CancelledError)
            assert (await client.agent_info()).pid == agent.process.pid

    run_async(main())


def test_a_blocking_follow_is_closed_from_another_thread(agent: RunningAgent) -> None:
    with sync.connect(agent.address) as client:
        created = client.create_container(cmd=["sh", "-c", "echo begin; exec sleep 1000"])
        client.start_container(created.id)
        stream = client.logs(created.id, follow=True)
        seen = threading.Event()
        lines = []

        def read() -> None:
            for entry in stream:
                lines.append(entry.data)
                seen.set()

        with ThreadPoolExecutor(1) as thread:
            reading = thread.submit(read)
            assert seen.wait(30)
            stream.close()
            reading.result(30)
        assert lines == [b"begin"]
        client.stop_container(created.id, timeout=5)

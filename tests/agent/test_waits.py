"""WaitForRequest, by the client and a real agent: each thing that can be waited for, met and not met."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import arcbox_agent
from arcbox_agent.client.client import Client
from arcbox_agent.errors import BadRequestError, ForbiddenError, NotFoundError, WaitTimeoutError
from arcbox_agent.wire import (
    ExecRequest,
    Execution,
    StartExecutionRequest,
    StreamAccepted,
    WaitForRequest,
    WaitForResponse,
    WriteExecutionRequest,
)
from tests.conftest import RunAsync, RunningAgent, StartAgent

SHORT = 0.3


async def held_up(client: Client, waiting: Awaitable[Any], come_true: Callable[[], Any]) -> Any:
    """The result of a wait that is met only when `come_true` was called; others are served meanwhile."""
    task = asyncio.ensure_future(waiting)
    await asyncio.sleep(SHORT)
    assert not task.done()
    assert (await client.ping()).message == "pong"
    kept = come_true()
    result = await task
    if isinstance(kept, socket.socket):
        kept.close()
    return result


def listener(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def test_a_port_a_socket_and_a_file(agent: RunningAgent, run_async: RunAsync, tmp_path: Path) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        path = tmp_path / "it"
        async with arcbox_agent.connect(agent.address) as client:
            with pytest.raises(WaitTimeoutError, match=f"127.0.0.1:{port}: ECONNREFUSED: Connection refused"):
                await client.wait_for_port(port, timeout=SHORT)
            with pytest.raises(WaitTimeoutError, match="ENOENT: No such file"):
                await client.wait_for_socket(str(path), timeout=SHORT)
            with pytest.raises(WaitTimeoutError, match="there is no such file"):
                await client.wait_for_file(str(path), timeout=SHORT)
            await held_up(client, client.wait_for_port(port), lambda: socket.create_server(("127.0.0.1", port)))
            await held_up(client, client.wait_for_file(str(path)), path.touch)
            with pytest.raises(WaitTimeoutError, match="ENOTSOCK"):
                await client.wait_for_socket(str(path), timeout=SHORT)
            path.unlink()
            await held_up(client, client.wait_for_socket(str(path)), lambda: listener(path))

    run_async(main())


def test_a_file_that_changes(agent: RunningAgent, run_async: RunAsync, tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "it"
        async with arcbox_agent.connect(agent.address) as client:
            for change in (path.touch, lambda: path.write_text("more"), lambda: os.utime(path), path.unlink):
                await held_up(client, client.wait_for_file(str(path), changes=True), change)
            with pytest.raises(WaitTimeoutError, match="it has not changed"):
                await client.wait_for_file(str(path), changes=True, timeout=SHORT)

    run_async(main())


def test_a_process(agent: RunningAgent, run_async: RunAsync) -> None:
    async def main() -> None:
        async with arcbox_agent.connect(agent.address) as client:
            with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
                with pytest.raises(WaitTimeoutError, match=f"process {process.pid} runs"):
                    await client.wait_for_process(process.pid, timeout=SHORT)
                await held_up(client, client.wait_for_process(process.pid), process.kill)
            await client.wait_for_process(process.pid)

    run_async(main())


def test_a_line_of_a_log(agent: RunningAgent, run_async: RunAsync) -> None:
    async def main() -> None:
        async with arcbox_agent.connect(agent.address) as client:
            script = "echo one; read _; echo listening on port 8080; read _"
            id = (await client.create_container(cmd=["sh", "-c", script], name="c", open_stdin=True)).id
            waiting = asyncio.ensure_future(client.wait_for_log("c", r"^one$"))
            await asyncio.sleep(SHORT)
            await client.start_container(id)
            assert await waiting == "one"
            assert await client.wait_for_log(id, "o.e") == "one"
            with pytest.raises(WaitTimeoutError, match="no line of the log has matched"):
                await client.wait_for_log("c", r"port \d+", timeout=SHORT)

            def answer() -> None:
                (agent.run_dir / "containers" / id / "stdin").write_bytes(b"\n")

            assert await held_up(client, client.wait_for_log("c", r"port \d+"), answer) == "listening on port 8080"
            waiting = asyncio.ensure_future(client.wait_for_log("c", "never"))
            await asyncio.sleep(SHORT)
            await client.kill_container(id)
            with pytest.raises(WaitTimeoutError, match="has ended, and no line of its log has matched"):
                await waiting
            # What is there is enough, though it has ended; what an earlier run wrote is not.
            assert await client.wait_for_log("c", "listening") == "listening on port 8080"
            await client.start_container(id)
            assert await client.wait_for_log("c", "one") == "one"
            with pytest.raises(WaitTimeoutError):
                await client.wait_for_log("c", "listening", timeout=SHORT)
            await client.kill_container(id)

    run_async(main())


def test_an_execution_and_a_line_of_its_output(agent: RunningAgent, run_async: RunAsync) -> None:
    async def main() -> None:
        async with arcbox_agent.connect(agent.address) as client:
            script = "printf 'one\\nready: '; read _; echo 42; read _; printf last"
            command = ExecRequest(cmd=["sh", "-c", script])
            await client.call(StartExecutionRequest(id="x", command=command, open_stdin=True), Execution)

            async def answer() -> None:
                await client.call(WriteExecutionRequest(id="x", offset=next(offsets), data=b"\n"), StreamAccepted)

            offsets = iter(range(10))
            assert await client.wait_for_execution("x", "^o") == "one"
            with pytest.raises(WaitTimeoutError, match="no line of its output has matched"):
                await client.wait_for_execution("x", "ready", timeout=SHORT)
            with pytest.raises(WaitTimeoutError, match="execution x runs"):
                await client.wait_for_execution("x", timeout=SHORT)
            waiting = asyncio.ensure_future(client.wait_for_execution("x", r"ready: \d+"))
            await asyncio.sleep(SHORT)
            await answer()
            assert await waiting == "ready: 42"
            ends = [client.wait_for_execution("x", pattern) for pattern in ("", "^last$", "never")]
            waits = [asyncio.ensure_future(each) for each in ends]
            await asyncio.sleep(SHORT)
            assert not any(each.done() for each in waits)
            await answer()
            # A last line without a newline is one; and what has ended can still be asked.
            assert (await waits[0], await waits[1]) == ("", "last")
            with pytest.raises(WaitTimeoutError, match="is over, and no line of it has matched"):
                await waits[2]
            assert await client.wait_for_execution("x", "ready") == "ready: 42"
            assert await client.wait_for_execution("x") == ""
            with pytest.raises(NotFoundError):
                await client.wait_for_execution("none")

    run_async(main())


def test_a_pattern_that_backtracks_without_end_holds_up_nobody(agent: RunningAgent, run_async: RunAsync) -> None:
    async def main() -> None:
        async with arcbox_agent.connect(agent.address) as client:
            script = f"i=0; while [ $i -lt 200 ]; do echo {'a' * 40}b; i=$((i+1)); done; sleep 60"
            id = (await client.create_container(cmd=["sh", "-c", script])).id
            await client.start_container(id)
            waiting = asyncio.ensure_future(client.wait_for_log(id, "^(a+)+$", timeout=2))
            began = time.monotonic()
            while not waiting.done():
                await client.ping()
            assert time.monotonic() - began < 10
            with pytest.raises(WaitTimeoutError):
                await waiting
            await client.kill_container(id)

    run_async(main())


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "give one of port, path, file, pattern, execution, pid"),
        ({"port": 1, "file": "/x"}, "not port and file"),
        ({"port": 70000}, "above 65535"),
        ({"path": "x"}, "does not begin with /"),
        ({"file": "x"}, "does not begin with /"),
        ({"pattern": "x"}, "needs the container"),
        ({"pid": 1 << 31}, "a pid is that of a process of the guest"),
    ],
)
def test_what_cannot_be_waited_for_is_refused(
    agent: RunningAgent, run_async: RunAsync, values: dict[str, Any], text: str
) -> None:
    async def main() -> None:
        async with arcbox_agent.connect(agent.address) as client:
            with pytest.raises(BadRequestError, match=text):
                await client.call(WaitForRequest(**values), WaitForResponse)
            with pytest.raises(NotFoundError):
                await client.wait_for_log("none", "x")

    run_async(main())


def test_a_peer_that_may_only_look_waits_for_logs_and_processes(
    start_agent: StartAgent, run_async: RunAsync, tmp_path: Path
) -> None:
    agent = start_agent(listen=[f"unix:{tmp_path}/look?mode=read-only"])

    async def main() -> None:
        async with arcbox_agent.connect(f"unix://{tmp_path}/look") as client:
            for refused in (
                client.wait_for_port(1),
                client.wait_for_file("/x"),
                client.wait_for_socket("/x"),
                client.wait_for_execution("x", "secret"),
            ):
                with pytest.raises(ForbiddenError):
                    await refused
            with pytest.raises(NotFoundError):
                await client.wait_for_execution("x")
            await client.wait_for_process((1 << 22) + 1)

    run_async(main())
    agent.stop()


def test_a_wait_is_over_when_the_agent_stops(agent: RunningAgent, run_async: RunAsync) -> None:
    async def main() -> None:
        async with arcbox_agent.connect(agent.address) as client:
            waiting = asyncio.ensure_future(client.wait_for_file("/no/such/file"))
            await asyncio.sleep(SHORT)
            began = time.monotonic()
            await asyncio.to_thread(agent.stop)
            assert time.monotonic() - began < 8
            with pytest.raises(arcbox_agent.errors.ArcboxError, match="the agent is stopping"):
                await waiting

    run_async(main())

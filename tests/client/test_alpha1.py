"""The client, and an agent of 0.0.1-alpha.1 as it was recorded."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterable
from typing import Any, Literal, TypeVar

import pytest

import arcbox_agent
from arcbox_agent import sync, wire
from arcbox_agent.errors import AgentFailedError, BadRequestError, NotFoundError, UnsupportedError
from tests.conftest import RunAsync, RunningAgent

from .alpha1 import CONTAINER, EMPTY_TAIL, Alpha1
from .servers import DETAIL, PATIENCE, Serve, Server, error, frame, pong, read_request, receive, server

T = TypeVar("T")


async def collected(stream: AsyncIterable[T]) -> list[T]:
    return [item async for item in stream]


async def collected_log(client: arcbox_agent.Client, **options: Any) -> list[wire.LogEntry]:
    return await collected(client.logs("n", **options))


@pytest.mark.parametrize("frame_version", [None, 1])
def test_every_call_that_it_has(run_async: RunAsync, frame_version: Literal[1, 2]) -> None:
    async def main(address: str) -> None:
        async with arcbox_agent.connect(address, frame_version=frame_version, wait=20) as client:
            assert await client.ping() == wire.PingResponse(message="pong", version="0.1.0")
            assert (await client.ping("ping")).message == "pong: ping"
            assert (await client.system_info()).hostname == "alpha"
            assert await client.list_containers(all=True) == []

            for call in (client.start_container, client.remove_container):
                with pytest.raises(AgentFailedError, match="container not found"):
                    await call("nope")
            with pytest.raises(NotFoundError, match="container not found: nope"):
                await client.exec(["true"], container="nope")
            for follow in (False, True):
                with pytest.raises(NotFoundError, match="container not found: nope"):
                    await collected(client.logs("nope", follow=follow))
            with pytest.raises(BadRequestError, match="empty command"):
                await client.exec([])

            assert (await client.exec(["echo", "hello"])).stdout == b"hello\n"
            result = await client.exec(["sh", "-c", "printf out; exit 42"])
            assert (result.stdout, result.exit_code, result.signal) == (b"out", 42, 0)
            assert (await client.exec(["sh", "-c", "kill -9 $$"])).exit_code == -1
            assert (await client.exec(["printf", r"\000\001\377"])).stdout == b"\0\1\xff"
            with pytest.raises(AgentFailedError, match="No such file or directory"):
                await client.exec(["/no/such/program"])

            created = await client.create_container(name="n", image="img:1", cmd=["sleep", "60"])
            assert (created.id, created.warnings) == (CONTAINER, [])
            await client.start_container(CONTAINER)
            with pytest.raises(AgentFailedError, match="already running"):
                await client.start_container(CONTAINER)
            with pytest.raises(AgentFailedError, match="use force=true"):
                await client.remove_container(CONTAINER)

            entries = await collected(client.logs(CONTAINER))
            assert [(entry.stream, entry.data) for entry in entries] == [
                ("stdout", b"one"), ("stdout", b""), ("stdout", b"two"),
            ]  # fmt: skip
            assert await collected(client.logs(CONTAINER, tail=EMPTY_TAIL)) == []
            async with client.logs(CONTAINER) as left_early:
                assert (await anext(left_early)).data == b"one"
            async with client.logs(CONTAINER, follow=True) as followed:
                assert [(await anext(followed)).data, (await anext(followed)).data] == [b"one", b"two"]
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(followed), 0.05)

            await client.stop_container(CONTAINER, timeout=2)
            with pytest.raises(AgentFailedError, match="not running"):
                await client.stop_container(CONTAINER, timeout=2)
            (listed,) = await client.list_containers(all=True)
            assert (listed.id, listed.state, listed.status) == (CONTAINER, "stopped", "Stopped")
            with pytest.raises(BadRequestError, match="not running"):
                await client.exec(["true"], container=CONTAINER)
            await client.remove_container(CONTAINER)

    with server(Alpha1().serve) as agent:
        run_async(main(agent.address))


def test_what_it_would_pass_over_or_hang_up_at_is_not_sent(run_async: RunAsync) -> None:
    async def main(address: str) -> None:
        async with arcbox_agent.connect(address) as client:
            calls = {
                "WaitContainerRequest": client.wait_container("n"),
                "KillContainerRequest": client.kill_container("n"),
                "AgentInfoRequest": client.agent_info(),
                "ShutdownRequest": client.shutdown(),
                "PingRequest.timestamp_secs": client.sync_time(),
                "CreateContainerRequest.rootfs": client.create_container(rootfs="/srv/root", cmd=["sh"]),
                "CreateContainerRequest.id": client.create_container(id="mine", cmd=["sh"]),
                "CreateContainerRequest.open_stdin": client.create_container(open_stdin=True, cmd=["sh"]),
                "CreateContainerRequest.user": client.create_container(user="nobody", cmd=["sh"]),
                "CreateContainerRequest.mounts": client.create_container(mounts=[wire.Mount(target="/a")], cmd=["sh"]),
                "CreateContainerRequest.tty": client.create_container(tty=True, cmd=["sh"]),
                "ExecRequest.user": client.exec(["id"], user="nobody"),
                "ExecRequest.tty": client.exec(["tty"], tty=True),
                "LogsRequest.since": collected_log(client, since=5),
                "LogsRequest.stderr": collected_log(client, stderr=True),
                "ListContainersRequest.filter": client.list_containers(filter="n"),
                "ExecRequest.stdin": client.exec(["cat"], stdin=b"input"),
                "ExecRequest.detach": client.exec_detached(["sleep", "60"]),
                "ExecRequest.timeout_ms": client.exec(["sleep", "60"], timeout=1),
            }
            for what, call in calls.items():
                with pytest.raises(UnsupportedError) as caught:
                    await call
                assert caught.value.what == what
                assert str(caught.value) == f"the agent in the guest is too old for {what}"
            assert client.knows(wire.ExecRequest) and not client.knows(wire.WaitContainerRequest)

    served = Alpha1()
    with server(served.serve) as agent:
        run_async(main(agent.address))
        # One to learn that it speaks V1, one that served on.
        assert agent.accepted == 2


def test_an_agent_after_it_has_its_calls_and_not_our_fields(run_async: RunAsync) -> None:
    def serve(connection: socket.socket) -> None:
        request = read_request(connection)
        connection.sendall(frame(0x1001, wire.PingResponse(message="pong", version="0.3").encode(), request.trace))
        request = read_request(connection)
        assert request.type == 0x0016
        reply = wire.WaitContainerResponse(status_code=3).encode()
        connection.sendall(frame(0x1016, reply, request.trace))
        request = read_request(connection)
        assert request.type == 0x0021
        entry = wire.LogEntryV2(stream="stderr", data=b"a\nb", timestamp=wire.Timestamp(seconds=1, nanos=2))
        connection.sendall(frame(0x1021, entry.encode(), request.trace))
        assert connection.recv(1) == b""

    async def main(address: str) -> None:
        async with arcbox_agent.connect(address) as client:
            assert client.knows(wire.WaitContainerRequest)
            assert (await client.wait_container("n")).status_code == 3
            with pytest.raises(UnsupportedError):
                await client.exec(["cat"], stdin=b"input")
            assert [(entry.stream, entry.data, entry.timestamp) async for entry in client.logs("n")] == [
                ("stderr", b"a", 1_000_000_002),
                ("stderr", b"b", 1_000_000_002),
            ]

    with server(serve) as agent:
        run_async(main(agent.address))


def until_replaced(serve: Serve, replaced: threading.Event) -> Serve:
    """`serve`, for one call; the agent ends when `replaced` is set."""

    def serve_one(connection: socket.socket) -> None:
        serve(connection)
        assert replaced.wait(PATIENCE)

    return serve_one


def test_one_that_was_brought_up_to_date_under_a_client_is_asked_anew(run_async: RunAsync) -> None:
    replaced = threading.Event()

    def answers_a_v1_ping(connection: socket.socket) -> None:
        assert receive(connection, 8)[4:] == bytes.fromhex("00000001")
        receive(connection, 3)  # `detail`
        connection.sendall(wire.encode_message(wire.PingResponse(message="pong", version="0.1.0")))

    def newer(connection: socket.socket) -> None:
        request = read_request(connection)
        assert request.payload == DETAIL
        connection.sendall(pong(request))
        request = read_request(connection)
        assert request.type == 0x0016
        connection.sendall(frame(0x1016, wire.WaitContainerResponse(status_code=3).encode(), request.trace))
        assert connection.recv(1) == b""

    async def main(agent: Server) -> None:
        async with arcbox_agent.connect(agent.address) as client:
            assert not client.knows(wire.WaitContainerRequest)
            with pytest.raises(UnsupportedError):
                await client.wait_container("n")
            replaced.set()
            agent.join()
            assert (await client.wait_container("n")).status_code == 3
            assert client.knows(wire.WaitContainerRequest)

    with server(Alpha1().serve, until_replaced(answers_a_v1_ping, replaced), newer) as agent:
        run_async(main(agent))
        assert agent.accepted == 3


def test_one_that_took_the_place_of_a_newer_agent_is_known_by_its_answer_too(run_async: RunAsync) -> None:
    replaced = threading.Event()

    async def main(agent: Server) -> None:
        async with arcbox_agent.connect(agent.address) as client:
            entries, command = client.logs(CONTAINER), client.exec_stream(["cat"], stdin=b"input")
            replaced.set()
            agent.join()
            assert [entry.data async for entry in entries] == [b"one", b"", b"two"]
            with pytest.raises(UnsupportedError):
                await collected(command)
            with pytest.raises(UnsupportedError):
                await client.wait_container("n")
            assert (await client.exec(["echo", "hello"])).stdout == b"hello\n"

    def newer(connection: socket.socket) -> None:
        connection.sendall(pong(read_request(connection)))

    with server(until_replaced(newer, replaced), Alpha1().serve) as agent:
        run_async(main(agent))
        # The one before, one to learn that this one speaks V1, one that served on.
        assert agent.accepted == 3


def test_without_async_too() -> None:
    with server(Alpha1().serve) as agent, sync.connect(agent.address) as client:
        client.create_container(name="n", image="img:1", cmd=["sleep", "60"])
        assert [entry.data for entry in client.logs(CONTAINER)] == [b"one", b"", b"two"]
        assert not client.knows(wire.KillContainerRequest)


def test_an_agent_that_refuses_both_versions_is_an_error(run_async: RunAsync) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(error(400, b"not today", trace=None))
        assert connection.recv(1) == b""

    async def main(address: str) -> None:
        with pytest.raises(BadRequestError, match="^not today$"):
            await arcbox_agent.connect(address)

    with server(refuse) as agent:
        run_async(main(agent.address))
        assert agent.accepted == 2


def test_our_own_agent_is_asked_in_v2_and_knows_everything(agent: RunningAgent, run_async: RunAsync) -> None:
    async def main() -> None:
        async with arcbox_agent.connect(agent.address) as client:
            assert client.knows(wire.WaitContainerRequest)
            assert (await client.exec(["cat"], stdin=b"input", timeout=60)).stdout == b"input"

    run_async(main())

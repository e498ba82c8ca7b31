"""What a user's editor makes of the public names.  Type checkers read this file; nothing runs it.

A line with `ignore` is one that must be an error: strict mypy, and pyright as it is set
here, refuse an `ignore` where there is none.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Callable
from typing import assert_type

import arcbox_agent
from arcbox_agent import Client, connect, errors, sync, wire
from arcbox_agent import conect as misspelt  # type: ignore  # noqa: F401
from arcbox_agent.client import ClockSync, ExecResult, ReplyStream
from arcbox_agent.sync import BlockingStream
from arcbox_agent.wire import (
    ContainerInfo,
    CreateContainerResponse,
    ExecOutput,
    Frame,
    LogEntry,
    MessageType,
    Mount,
    PingRequest,
    PingResponse,
    ShutdownResponse,
    SystemInfo,
    WaitContainerResponse,
    decode_error,
    encode_message,
)


def names_of_the_package() -> None:
    print(arcbox_agent.conect)  # type: ignore
    print(wire.Mountt)  # type: ignore
    print(errors.NoSuchError)  # type: ignore
    assert_type(arcbox_agent.__version__, str)
    assert_type(Mount(source="/srv", target="/data").readonly, bool)
    assert_type(wire.Mount(), Mount)
    assert_type(PingRequest.decode(b""), PingRequest)
    assert_type(encode_message(PingRequest()), bytes)
    assert_type(decode_error(b""), wire.Error)
    assert_type(wire.FrameDecoder().next_frame(), Frame | None)
    assert_type(MessageType(0), MessageType)
    assert_type(errors.RequestError.from_reply(404, "no"), errors.RequestError)
    Mount(sorce="/srv")  # type: ignore


async def the_async_client() -> None:
    async with connect("vsock://3:1024", wait=30, timeout=None) as client:
        assert_type(client, Client)
        assert_type(await client.ping("hello"), PingResponse)
        assert_type(await client.exec(["true"], container="web", check=True), ExecResult)
        assert_type(client.exec_stream(["true"], tty=True, timeout=1), ReplyStream[ExecOutput])
        assert_type(await client.exec_detached(["true"], env={"A": "b"}), int)
        assert_type(client.logs("web", follow=True, since=1.5), ReplyStream[LogEntry])
        assert_type([entry async for entry in client.logs("web")], list[LogEntry])
        assert_type(await client.call(PingRequest(), PingResponse), PingResponse)
        client.exec(["true"], contaner="web")  # type: ignore
        client.exec(["true"], container=3)  # type: ignore
        client.exec_detached(["true"], tty=True)  # type: ignore
        client.logs("web", folow=True)  # type: ignore
        client.stop()  # type: ignore
    connect("vsock://3:1024", wiat=30)  # type: ignore


def the_blocking_client(client: sync.Client, request: PingRequest) -> None:
    with sync.connect("vsock://3:1024", wait=30) as connected:
        assert_type(connected, sync.Client)
    assert_type(client.ping("hello", timeout=1), PingResponse)
    assert_type(client.sync_time(), ClockSync)
    assert_type(client.system_info(), SystemInfo)
    assert_type(client.agent_info(), wire.AgentInfo)
    assert_type(client.ensure_runtime(start_if_needed=False), wire.RuntimeEnsureResponse)
    assert_type(client.runtime_status(), wire.RuntimeStatusResponse)
    assert_type(client.shutdown(reboot=True), ShutdownResponse)
    assert_type(client.create_container(image="i", mounts=[Mount()]), CreateContainerResponse)
    assert_type(client.wait_container("web", condition="removed"), WaitContainerResponse)
    assert_type(client.list_containers(all=True), list[ContainerInfo])
    assert_type(client.exec(["true"], check=True, stdin=b"in"), ExecResult)
    assert_type(client.exec_stream(["true"]), BlockingStream[ExecOutput])
    assert_type(client.exec_detached(["true"]), int)
    assert_type(client.logs("web", tail=10), BlockingStream[LogEntry])
    assert_type([entry.data for entry in client.logs("web")], list[bytes])
    assert_type(client.call(request, PingResponse), PingResponse)
    assert_type(client.knows(PingRequest), bool)
    without_result: list[Callable[[str], None]] = [
        client.start_container,
        client.stop_container,
        client.kill_container,
        client.remove_container,
    ]
    without_result[0]("web")
    client.ping(1)  # type: ignore
    client.exec(["true"], contaner="web")  # type: ignore
    client.exec_detached(["true"], tty=True)  # type: ignore
    client.logs("web", folow=True)  # type: ignore
    client.call(request)  # type: ignore
    client.aclose()  # type: ignore
    sync.connect("vsock://3:1024", wiat=30)  # type: ignore

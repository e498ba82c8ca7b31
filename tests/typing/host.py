"""What a program of the host may write, for the type checkers alone: nothing runs it.

pyright (strict) and mypy (--strict) read this file in `make check`.  Each line with an ignore is
one that must be an error: both checkers complain of an ignore that ignores nothing.
"""

from __future__ import annotations

from typing import assert_type

import arcbox_agent
from arcbox_agent import errors, sync, wire
from arcbox_agent.client import Client, ExecResult, ReplyStream
from arcbox_agent.wire import ContainerInfo, ExecOutput, FrameDecoder, LogEntry, MessageType, Mount, PingRequest


async def calls(address: str) -> None:
    async with arcbox_agent.connect(address, timeout=5.0, wait=30) as client:
        assert_type(client, Client)
        assert_type((await client.ping("hi")).message, str)
        made = await client.create_container(cmd=["sh"], mounts=[Mount(source="/a", target="/b")])
        await client.start_container(made.id)
        listed = await client.list_containers(all=True)
        assert_type([each.id for each in listed], list[str])
        assert_type(await client.exec(["true"], check=True, env={"A": "b"}), ExecResult)
        stream = client.logs(made.id, follow=True, tail=10)
        assert_type(stream, ReplyStream[LogEntry])
        async for entry in stream:
            assert_type(entry.data, bytes)
        async for part in client.exec_stream(["cat"]):
            assert_type(part, ExecOutput)
        await client.pingg()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        await client.exec("true", envv={})  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def blocking_calls(address: str) -> ContainerInfo | None:
    with sync.connect(address) as client:
        try:
            assert_type(client.exec(["true"]), ExecResult)
            for entry in client.logs("web"):
                assert_type(entry.timestamp, int)
        except errors.NotFoundError as error:
            assert_type(error.code, int)
        except errors.ConnectError:
            return None
        return client.list_containers()[0]


def frames(data: bytes) -> PingRequest | None:
    decoder = FrameDecoder(max_frame_size=4096)
    decoder.feed(data)
    frame = decoder.next_frame()
    if frame is None or frame.type != MessageType.PING_REQUEST:
        return None
    assert_type(frame.trace_id, str | None)
    return PingRequest.decode(frame.payload)


def misspelt() -> None:
    arcbox_agent.conect("unix:///a")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    wire.PingReqest()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    PingRequest(massage="hi")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

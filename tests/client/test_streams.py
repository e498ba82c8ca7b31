"""Calls with many replies: their end, leaving them early, and what a slow reader costs."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest

import arcbox_agent
from arcbox_agent import wire
from arcbox_agent.client import ExecResult
from arcbox_agent.errors import (
    CallTimeoutError,
    CommandFailedError,
    ConnectionLostError,
    NotFoundError,
    OutputLimitError,
)
from tests.conftest import RunAsync

from .servers import (
    EMPTY,
    PATIENCE,
    PING,
    Replies,
    Request,
    Serve,
    Server,
    answer_pings,
    closed_by_client,
    error,
    frame,
    pong,
    read_request,
    receive,
    server,
)

EXEC_OUTPUT, LOG_ENTRY = 0x1020, 0x1021


def entry(data: bytes, trace: bytes) -> bytes:
    """LogEntryV2(stream="stdout", data=data, timestamp=Timestamp(seconds=1, nanos=2))."""
    return frame(LOG_ENTRY, b"\x0a\x06stdout\x12" + bytes([len(data)]) + data + b"\x1a\x04\x08\x01\x10\x02", trace)


def output(trace: bytes, data: bytes = b"", stream: str = "stdout", **fields: Any) -> bytes:
    return frame(EXEC_OUTPUT, wire.ExecOutput(stream=stream, data=data, **fields).encode(), trace)


def to_the_next_request(connection: socket.socket, reply: Replies) -> None:
    """Answers pings, and the first other request with what `reply(request)` yields; then waits for the close."""
    while (request := read_request(connection)).type == PING:
        connection.sendall(pong(request))
    try:
        for part in reply(request):
            connection.sendall(part)
    except ConnectionError:
        return
    assert closed_by_client(connection)


def stream_of(reply: Replies) -> Serve:
    return lambda connection: to_the_next_request(connection, reply)


def forever(request: Request) -> Iterator[bytes]:
    while True:
        yield entry(b"line", request.trace)


@pytest.mark.parametrize("replies", [0, 1, 2])
def test_a_stream_that_is_cut_off_says_whether_any_of_it_had_come(run_async: RunAsync, replies: int) -> None:
    def serve(connection: socket.socket) -> None:
        while (request := read_request(connection)).type == PING:
            connection.sendall(pong(request))
        for _ in range(replies):
            connection.sendall(entry(b"line", request.trace))

    async def main(address: str) -> str:
        async with await arcbox_agent.connect(address) as client:
            # The connection has had replies before, to other calls.
            await client.ping()
            got = []
            with pytest.raises(ConnectionLostError) as caught:
                async for item in client.logs("web", follow=True):
                    got.append(item.data)
            assert got == [b"line"] * replies
            return str(caught.value)

    with server(serve) as agent:
        missing = "last reply" if replies else "reply"
        assert run_async(main(agent.address)) == f"the connection ended before the {missing} came"


def test_a_log_ends_with_empty_and_its_connection_serves_on(run_async: RunAsync) -> None:
    requests = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(pong(read_request(connection)))
        request = read_request(connection)
        requests.append(wire.LogsRequest.decode(request.payload))
        connection.sendall(entry(b"one", request.trace) + entry(b"", request.trace) + frame(EMPTY, b"", request.trace))
        answer_pings(connection)

    async def main(agent: Server) -> list[wire.LogEntry]:
        async with arcbox_agent.connect(agent.address) as client:
            entries = [item async for item in client.logs("web", tail=2, stdout=True)]
            await client.ping()
            assert agent.accepted == 1
            return entries

    with server(serve) as agent:
        entries = run_async(main(agent))
    assert [item.data for item in entries] == [b"one", b""]
    assert [(item.stream, item.timestamp) for item in entries] == [("stdout", 1_000_000_002)] * 2
    assert requests == [wire.LogsRequest(container_id="web", tail=2, stdout=True, stream=True, detail=True)]


def test_nothing_is_sent_before_the_first_item_is_asked_for(run_async: RunAsync) -> None:
    async def main(agent: Server) -> None:
        async with arcbox_agent.connect(agent.address) as client:
            client.logs("web", follow=True)
            client.exec_stream(["true"])
            await client.ping()
        assert agent.accepted == 1

    with server(answer_pings) as agent:
        run_async(main(agent))


def test_an_error_ends_the_stream_after_the_items_before_it(run_async: RunAsync) -> None:
    def serve(connection: socket.socket) -> None:
        to_the_next_request(
            connection, lambda r: [entry(b"one", r.trace) + entry(b"two", r.trace) + error(404, b"gone", r.trace)]
        )

    async def one_by_one(client: arcbox_agent.Client) -> None:
        stream = client.logs("web")
        assert (await anext(stream)).data == b"one"
        assert (await anext(stream)).data == b"two"
        with pytest.raises(NotFoundError, match="^gone"):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    async def in_a_batch(client: arcbox_agent.Client) -> None:
        stream = client.logs("web")
        assert [item.data for item in await stream.batch()] == [b"one", b"two"]
        with pytest.raises(NotFoundError, match="^gone"):
            await stream.batch()
        assert await stream.batch() == []

    async def main(address: str, use: Callable[[arcbox_agent.Client], Awaitable[None]]) -> None:
        async with arcbox_agent.connect(address) as client:
            await use(client)

    for use in (one_by_one, in_a_batch):
        with server(serve) as agent:
            run_async(main(agent.address, use))


def test_a_batch_is_bounded(run_async: RunAsync) -> None:
    async def main(address: str) -> None:
        async with arcbox_agent.connect(address) as client, client.logs("web") as stream:
            assert len(await stream.batch(1)) == 1
            assert 1 <= len(await stream.batch(3)) <= 3

    with server(stream_of(forever)) as agent:
        run_async(main(agent.address))


@pytest.mark.parametrize("way", ["aclose", "with", "break", "cancel", "client"])
def test_leaving_a_stream_early_closes_its_connection(run_async: RunAsync, way: str) -> None:
    async def leave(client: arcbox_agent.Client) -> None:
        if way == "aclose":
            stream = client.logs("web", follow=True)
            await anext(stream)
            await stream.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        elif way == "with":
            with pytest.raises(ZeroDivisionError):
                async with client.logs("web", follow=True) as stream:
                    async for _ in stream:
                        1 / 0  # noqa: B018
        elif way == "break":
            async for _ in client.logs("web", follow=True):
                break
            gc.collect()
        elif way == "cancel":
            stream = client.logs("web", follow=True)
            await anext(stream)

            async def read_on() -> None:
                async for _ in stream:
                    await asyncio.sleep(0)

            reading = asyncio.create_task(read_on())
            await asyncio.sleep(0.01)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            await stream.aclose()
        else:
            stream = client.logs("web", follow=True)
            await anext(stream)
            await client.aclose()
            with pytest.raises(ConnectionLostError, match="the client was closed"):
                while True:
                    await anext(stream)
            return
        # The other end has seen it, while the client itself lives on.
        while not left.is_set():
            await asyncio.sleep(0.001)
        assert (await client.ping()).message == "pong"

    def serve(connection: socket.socket) -> None:
        to_the_next_request(connection, forever)
        left.set()

    async def main(address: str) -> None:
        async with arcbox_agent.connect(address) as client:
            await leave(client)

    left = threading.Event()
    with server(serve, answer_pings) as agent:
        run_async(main(agent.address))
    assert left.is_set()


def test_a_reader_cancelled_while_it_waits_leaves_the_stream(run_async: RunAsync) -> None:
    waiting = threading.Event()

    def silent(request: Request) -> list[bytes]:
        waiting.set()
        return []

    async def main(address: str) -> None:
        async with arcbox_agent.connect(address) as client:
            stream = client.logs("web", follow=True)
            reading = asyncio.ensure_future(anext(stream))
            await asyncio.to_thread(waiting.wait)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

    with server(stream_of(silent)) as agent:
        run_async(main(agent.address))


def test_a_reader_that_stops_makes_the_agent_wait(run_async: RunAsync) -> None:
    sent = 0

    def count(request: Request) -> Iterator[bytes]:
        nonlocal sent
        block = entry(b"x" * 100, request.trace) * 100
        while True:
            yield block
            sent += len(block)

    async def main(address: str) -> None:
        async with arcbox_agent.connect(address) as client, client.logs("web", follow=True) as stream:
            await anext(stream)
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.3)
            # The client's own bound, a read of the loop's on top of it, and the kernel's buffers.
            assert sent < 2 * 1024 * 1024
            stopped_at = sent
            for _ in range(50_000):
                assert len((await anext(stream)).data) == 100
            assert sent > stopped_at

    with server(stream_of(count)) as agent:
        run_async(main(agent.address))


def test_a_frame_larger_than_what_is_held_back_still_comes_through(run_async: RunAsync) -> None:
    size = 4 * 1024 * 1024

    async def main(address: str) -> list[int]:
        async with arcbox_agent.connect(address) as client:
            parts = []
            async for part in client.exec_stream(["cat"]):
                await asyncio.sleep(0.05)  # The socket fills up meanwhile.
                parts.append(part)
            return [len(part.data) for part in parts]

    def serve(request: Request) -> Iterator[bytes]:
        yield output(request.trace, b"a" * 10) + output(request.trace, b"b" * size) + output(request.trace, done=True)

    with server(stream_of(serve)) as agent:
        assert run_async(main(agent.address)) == [10, size, 0]


def test_a_follow_may_be_silent_for_longer_than_any_time_out(run_async: RunAsync) -> None:
    silence = threading.Event()

    def serve(request: Request) -> Iterator[bytes]:
        silence.wait()
        yield entry(b"late", request.trace) + frame(EMPTY, b"", request.trace)

    async def main(address: str) -> list[bytes]:
        async with arcbox_agent.connect(address, timeout=0.2) as client:
            reading = asyncio.ensure_future(collect(client.logs("web", follow=True)))
            await asyncio.sleep(0.5)
            assert not reading.done()
            silence.set()
            return await reading

    async def collect(stream: AsyncIterable[wire.LogEntry]) -> list[bytes]:
        return [item.data async for item in stream]

    with server(stream_of(serve)) as agent:
        assert run_async(main(agent.address)) == [b"late"]


def test_a_log_that_is_not_followed_may_not_be_silent(run_async: RunAsync) -> None:
    async def main(address: str) -> None:
        async with arcbox_agent.connect(address, timeout=1) as client:
            stream = client.logs("web")
            assert (await anext(stream)).data == b"one"
            with pytest.raises(CallTimeoutError, match=r"logs: no reply after 1 s"):
                await anext(stream)

    with server(stream_of(lambda r: [entry(b"one", r.trace)])) as agent:
        run_async(main(agent.address))


def test_an_agent_that_dies_in_the_middle_is_an_error_after_the_last_item(run_async: RunAsync) -> None:
    def dies(connection: socket.socket) -> None:
        connection.sendall(pong(read_request(connection)))
        request = read_request(connection)
        connection.sendall(entry(b"one", request.trace) + entry(b"two", request.trace)[:-2])

    async def main(address: str) -> None:
        async with arcbox_agent.connect(address) as client:
            stream = client.logs("web", follow=True)
            assert (await anext(stream)).data == b"one"
            with pytest.raises(ConnectionLostError, match="in the middle of a reply"):
                await anext(stream)

    with server(dies) as agent:
        run_async(main(agent.address))


def test_one_stream_is_read_by_one_task(run_async: RunAsync) -> None:
    second_line = threading.Event()

    def two_lines(request: Request) -> Iterator[bytes]:
        yield entry(b"one", request.trace)
        second_line.wait()
        yield entry(b"two", request.trace)

    async def main(address: str) -> None:
        async with arcbox_agent.connect(address) as client, client.logs("web", follow=True) as stream:
            await anext(stream)
            first = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.01)
            with pytest.raises(RuntimeError, match="another task reads this stream"):
                await anext(stream)
            # The one that was there first has lost nothing by it.
            second_line.set()
            assert (await first).data == b"two"

    with server(stream_of(two_lines)) as agent:
        run_async(main(agent.address))


def test_a_stream_left_while_it_dials_leaves_no_connection(run_async: RunAsync) -> None:
    dialled, answer, closed = threading.Event(), threading.Event(), threading.Event()

    def at_once(connection: socket.socket) -> None:
        receive(connection, 13)
        connection.sendall(b"OK 1\n")
        answer_pings(connection)

    def slowly(connection: socket.socket) -> None:
        receive(connection, 13)
        dialled.set()
        answer.wait()
        connection.sendall(b"OK 1\n")
        while connection.recv(4096):
            pass
        closed.set()

    async def main(path: str) -> None:
        async with arcbox_agent.connect(f"firecracker://{path}:1024") as client:
            # The first connection is busy, so that the stream must have another.
            lease = await client._pool.lease(stream=False)
            stream = client.logs("web", follow=True)
            reading = asyncio.ensure_future(anext(stream, None))
            await asyncio.to_thread(dialled.wait)
            await stream.aclose()
            answer.set()
            assert await reading is None
            assert await asyncio.to_thread(closed.wait, PATIENCE)
            lease.release()

    with server(at_once, slowly) as agent:
        run_async(main(agent.path))


# ------------------------------------------------------------------------ exec


def exec_answered_with(run_async: RunAsync, reply: Replies, cmd: Sequence[str] = ("x",), **options: Any) -> ExecResult:
    async def main(address: str) -> ExecResult:
        async with arcbox_agent.connect(address) as client:
            return await client.exec(list(cmd), **options)

    with server(stream_of(reply)) as agent:
        return run_async(main(agent.address))


def test_exec_collects_both_streams_and_the_exit_code(run_async: RunAsync) -> None:
    result = exec_answered_with(
        run_async,
        lambda r: [
            output(r.trace, b"a"),
            output(r.trace, b"!", "stderr"),
            output(r.trace, b"b"),
            output(r.trace, exit_code=3, done=True),
        ],
    )
    assert result == arcbox_agent.sync.ExecResult(exit_code=3, signal=0, stdout=b"ab", stderr=b"!", timed_out=False)


def test_exec_understands_the_one_reply_of_an_agent_that_does_not_stream(run_async: RunAsync) -> None:
    result = exec_answered_with(run_async, lambda r: [output(r.trace, b"all", stderr=b"err", done=True)])
    assert (result.stdout, result.stderr, result.exit_code) == (b"all", b"err", 0)


def test_exec_of_a_command_that_a_signal_ended_has_the_shells_exit_code(run_async: RunAsync) -> None:
    result = exec_answered_with(
        run_async, lambda r: [output(r.trace, exit_code=-1, signal=9, timed_out=True, done=True)]
    )
    assert (result.exit_code, result.signal, result.timed_out) == (137, 9, True)


def test_exec_with_check_raises_what_the_command_wrote(run_async: RunAsync) -> None:
    def reply(request: Request) -> list[bytes]:
        return [
            output(request.trace, b"out"),
            output(request.trace, b"err", "stderr"),
            output(request.trace, exit_code=2, done=True),
        ]

    with pytest.raises(CommandFailedError) as caught:
        exec_answered_with(run_async, reply, cmd=["grep", "x"], check=True)
    failed = caught.value
    assert (failed.cmd, failed.exit_code, failed.stdout, failed.stderr) == (["grep", "x"], 2, b"out", b"err")
    assert str(failed) == "command ['grep', 'x'] ended with exit code 2: err"


def test_exec_with_more_output_than_allowed_is_ended_and_says_what_to_use(run_async: RunAsync) -> None:
    def reply(request: Request) -> Iterator[bytes]:
        while True:
            yield output(request.trace, b"x" * 1000)

    with pytest.raises(OutputLimitError, match="wrote more than 2500 bytes: raise output_limit, or use exec_stream"):
        exec_answered_with(run_async, reply, cmd=["yes"], output_limit=2500)


def test_exec_asks_for_a_stream_and_for_all_there_is_to_know(run_async: RunAsync) -> None:
    seen = []

    def reply(request: Request) -> list[bytes]:
        seen.append(wire.ExecRequest.decode(request.payload))
        return [output(request.trace, done=True)]

    exec_answered_with(
        run_async,
        reply,
        cmd=["cat"],
        container="web",
        env={"A": "1"},
        working_dir="/tmp",
        user="nobody",
        stdin=b"in",
        timeout=1.5,
    )
    assert seen == [
        wire.ExecRequest(
            container_id="web",
            cmd=["cat"],
            env={"A": "1"},
            working_dir="/tmp",
            user="nobody",
            stream=True,
            timeout_ms=1500,
            stdin=b"in",
            detail=True,
        )
    ]

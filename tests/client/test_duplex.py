"""Streams over a connection of their own: readers, writers, signs of life, refusals, and the connection afterwards."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from arcbox_agent import connect, wire
from arcbox_agent.client.byte_reader import ByteReader, Gap
from arcbox_agent.client.byte_writer import ByteWriter
from arcbox_agent.errors import (
    AgentFailedError,
    ConflictError,
    ConnectionLostError,
    FrameError,
    GapError,
    ReplyLimitError,
    UnsupportedError,
)
from tests.conftest import RunAsync, RunningAgent

from .servers import PING, answer_pings, closed_by_client, frame, read_request, server, text

CONNECTED, ALIVE = 0x1120, 0x1116
CONNECT_FEATURES = b"\x0a\x04pong\xa2\x06\x07connect"


def fed(*pieces: bytes, window: int = 100, over: bool = True) -> ByteReader:
    reader = ByteReader("stdout", window=window)
    for piece in pieces:
        reader.arrived(wire.StreamOutput(stream="stdout", cursor=reader.cursor or 0, data=piece))
    if over:
        reader.ended()
    return reader


def test_a_reader_gives_pieces_lines_and_exact_counts(run_async: RunAsync) -> None:
    async def work() -> None:
        assert [piece async for piece in fed(b"ab", b"", b"c")] == [b"abc"]
        reader = fed(b"a\nbb\nc", b"c", b"c\nd")
        assert [await reader.readline() for _ in range(5)] == [b"a\n", b"bb\n", b"ccc\n", b"d", b""]
        assert reader.at_eof()
        assert await fed(b"a\r", b"\nb").readuntil(b"\r\n") == b"a\r\n"
        reader = fed(b"abc", b"def")
        assert (await reader.readexactly(2), await reader.readexactly(3), await reader.read(9)) == (b"ab", b"cde", b"f")
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await fed(b"abc").readexactly(4)
        assert (caught.value.partial, caught.value.expected) == (b"abc", 4)
        assert await fed(b"abc", b"def").read() == b"abcdef"

    run_async(work())


def test_a_gap_is_told_once_in_its_place(run_async: RunAsync) -> None:
    def with_gap() -> ByteReader:
        reader = fed(b"a", window=2000, over=False)
        reader.lost(wire.StreamGap(stream="stdout", cursor=1, bytes=1000))
        reader.arrived(wire.StreamOutput(stream="stdout", cursor=1001, data=b"b\n"))
        reader.ended(wire.StreamEnd(stream="stdout", cursor=1003))
        return reader

    async def work() -> None:
        reader = with_gap()
        assert await reader.readline() == b"a"
        with pytest.raises(GapError, match=r"^stdout: 1000 bytes from 1 on are not kept any more$"):
            await reader.readline()
        assert await reader.readline() == b"b\n"
        assert [item async for item in with_gap().items()] == [b"a", Gap(1, 1000), b"b\n"]

    run_async(work())


def test_what_an_agent_may_make_a_reader_keep_is_bounded(run_async: RunAsync) -> None:
    async def work() -> None:
        reader = ByteReader("stdout", window=1 << 20)
        for cursor in range(5000):
            reader.arrived(wire.StreamOutput(stream="stdout", cursor=cursor, data=b"x"))
        assert len(await reader.read(1 << 20)) == 4096
        # Gaps in a row are one, and one of nothing is none.
        for cursor in range(5000, 15000):
            reader.lost(wire.StreamGap(stream="stdout", cursor=cursor, bytes=1))
            reader.lost(wire.StreamGap(stream="stdout", cursor=cursor + 1))
        assert len(await reader.read(1 << 20)) == 904
        with pytest.raises(GapError, match="10000 bytes from 5000"):
            await reader.read(1)
        with pytest.raises(FrameError, match="more than 1024 gaps"):
            for cursor in range(15000, 30000, 2):
                reader.lost(wire.StreamGap(stream="stdout", cursor=cursor, bytes=1))
                reader.arrived(wire.StreamOutput(stream="stdout", cursor=cursor + 1, data=b"x"))
        with pytest.raises(FrameError, match="no stream is so long"):
            reader.lost(wire.StreamGap(stream="stdout", cursor=reader.cursor or 0, bytes=1 << 63))
        with pytest.raises(FrameError, match="no stream is so long"):
            ByteReader("stdout", cursor=None).attached((1 << 64) - 1, lambda credit: None)
        with pytest.raises(FrameError, match="no stream is so long"):
            ByteWriter().attached(wire.StreamAccepted(offset=(1 << 64) - 1), lambda message: None)

    run_async(work())


def test_credit_is_given_as_the_reader_takes_and_never_goes_back(run_async: RunAsync) -> None:
    async def work() -> None:
        given: list[tuple[int, int]] = []
        reader = ByteReader("stdout", window=100)
        reader.attached(0, lambda credit: given.append((credit.taken, credit.until)))
        for cursor in range(0, 100, 10):
            reader.arrived(wire.StreamOutput(stream="stdout", cursor=cursor, data=bytes(10)))
        assert reader.full
        with pytest.raises(FrameError, match="up to 101, where credit was given up to 100"):
            reader.arrived(wire.StreamOutput(stream="stdout", cursor=100, data=b"x"))
        for _ in range(5):
            await reader.read(9)
        assert given == [(9, 109)]  # it was full
        await reader.read(13)
        assert given[1:] == []
        await reader.read(1)
        assert given[1:] == [(59, 159)]
        with pytest.raises(FrameError, match="goes on at 99, where 100 was expected"):
            reader.arrived(wire.StreamOutput(stream="stdout", cursor=99, data=b"x"))

    run_async(work())


def test_a_line_longer_than_the_window_comes_whole_and_one_beyond_the_limit_is_refused(run_async: RunAsync) -> None:
    async def work(limit: int) -> bytes:
        reader = ByteReader("stdout", window=10, limit=limit)

        def feed(credit: wire.StreamCredit) -> None:
            asyncio.get_running_loop().call_soon(more, credit.until)

        def more(until: int) -> None:
            cursor = reader.cursor or 0
            if cursor < 100:
                reader.arrived(wire.StreamOutput(stream="stdout", cursor=cursor, data=bytes(until - cursor)))
            elif not reader.over:
                reader.ended()

        reader.attached(0, feed)
        more(10)
        return await reader.readline()

    assert len(run_async(work(1000))) >= 100
    with pytest.raises(ReplyLimitError, match="read it in pieces"):
        run_async(work(50))


def test_a_read_that_is_cancelled_loses_nothing(run_async: RunAsync) -> None:
    async def work() -> None:
        reader = fed(b"half a ", over=False)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await reader.readline()
        reader.arrived(wire.StreamOutput(stream="stdout", cursor=7, data=b"line\n"))
        assert await reader.readline() == b"half a line\n"

    run_async(work())


def test_a_writer_sends_again_what_was_not_accepted_and_nothing_else(run_async: RunAsync) -> None:
    async def work() -> None:
        sent: list[tuple[int, bytes, bool]] = []

        def send(message: wire.Message) -> None:
            assert isinstance(message, wire.StreamInput)
            sent.append((message.offset, message.data, message.close))

        writer = ByteWriter()
        writer.write(b"abcdef")
        writer.attached(wire.StreamAccepted(offset=10, until=13), send)
        assert sent == [(10, b"abc", False)]
        writer.accepted(wire.StreamAccepted(offset=12, until=15))
        assert sent[1:] == [(13, b"de", False)]
        writer.detached()
        writer.write_eof()
        writer.attached(wire.StreamAccepted(offset=14, until=99), send)
        assert sent[2:] == [(14, b"ef", True)]
        writer.accepted(wire.StreamAccepted(offset=16, until=99, closed=True))
        await writer.wait_closed()
        await writer.flush()
        with pytest.raises(ConflictError):
            writer.attached(wire.StreamAccepted(offset=17, until=99), send)
        with pytest.raises(FrameError):
            writer.accepted(wire.StreamAccepted(offset=17))

    run_async(work())


def test_a_writer_is_told_when_nobody_reads(run_async: RunAsync) -> None:
    async def work() -> None:
        writer = ByteWriter()
        writer.attached(wire.StreamAccepted(until=1), lambda message: None)
        writer.write(bytes(1 << 20))
        draining = asyncio.create_task(writer.drain())
        await asyncio.sleep(0)
        writer.accepted(wire.StreamAccepted(until=1, closed=True))
        with pytest.raises(BrokenPipeError):
            await draining
        with pytest.raises(BrokenPipeError):
            writer.write(b"x")

    run_async(work())


def test_a_stream_lasts_over_silence_and_its_connection_is_used_again(agent: RunningAgent, run_async: RunAsync) -> None:
    async def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with connect(agent.address, max_connections=1) as client:
                request = wire.ConnectRequest(port=listener.getsockname()[1])
                call = await client.duplex(request, heartbeat=0.05)
                assert isinstance(await call.receive(), wire.Connected)
                assert isinstance(await call.receive(), wire.StreamAccepted)
                end, _ = listener.accept()
                waiting = asyncio.ensure_future(call.receive())
                await asyncio.sleep(0.5)
                assert not waiting.done()
                end.close()
                assert await waiting == wire.StreamEnd()
                call.send(wire.StreamInput(close=True))
                assert isinstance(await call.receive(), wire.StreamAccepted)
                assert isinstance(await call.receive(), wire.Empty)
                call.finish()
                before = (await client.agent_info()).connections
                with pytest.raises(AgentFailedError, match="ECONNREFUSED"):
                    await (await client.duplex(wire.ConnectRequest(port=1))).receive()
                assert (await client.agent_info()).connections == before == 1

    run_async(work())


def test_an_agent_that_is_silent_is_taken_for_lost(run_async: RunAsync) -> None:
    def silent(connection: socket.socket) -> None:
        while (request := read_request(connection)).type == PING:
            connection.sendall(frame(0x1001, CONNECT_FEATURES, request.trace))
        connection.sendall(frame(CONNECTED, text(1, b"here"), request.trace))
        for _ in range(6):
            time.sleep(0.05)
            connection.sendall(frame(ALIVE, b"", request.trace))
        while not closed_by_client(connection):
            pass

    async def work(address: str) -> None:
        async with connect(address) as client:
            call = await client.duplex(wire.ConnectRequest(port=1), heartbeat=0.1)
            assert isinstance(await call.receive(), wire.Connected)
            started = time.monotonic()
            with pytest.raises(ConnectionLostError, match="nothing was heard of the agent"):
                await call.receive()
            assert time.monotonic() - started > 0.5

    with server(silent) as where:
        run_async(work(where.address))


def test_an_agent_without_streams_is_told_before_anything_is_sent(run_async: RunAsync) -> None:
    async def work(address: str) -> None:
        async with connect(address) as client:
            assert not client.knows(wire.ConnectRequest)
            with pytest.raises(UnsupportedError, match="too old for ConnectRequest"):
                await client.duplex(wire.ConnectRequest(port=1))

    with server(answer_pings) as where:
        run_async(work(where.address))

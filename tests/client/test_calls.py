"""One call and its reply: what is sent, what comes back, and all that can come instead."""

from __future__ import annotations

import asyncio
import signal
import socket
import struct
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

import arcbox_agent
from arcbox_agent import wire
from arcbox_agent.client import calls
from arcbox_agent.errors import (
    BadRequestError,
    BusyError,
    CallTimeoutError,
    ConnectError,
    ConnectionLostError,
    DecodeError,
    EncodeError,
    ForbiddenError,
    FrameError,
    FrameTooLargeError,
    NotFoundError,
    RequestError,
)
from tests.conftest import RunAsync

from .servers import (
    EMPTY,
    PONG,
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
    text,
)

PAYLOAD_PONG = text(1, b"pong")


def once_connected(reply: Callable[[Request], bytes], then: Serve = closed_by_client) -> Serve:
    """Answers the ping of `connect`, then the next request with what `reply(request)` gives."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(pong(read_request(connection)))
        try:
            request = read_request(connection)
        except EOFError:  # `connect` of a client that uses another connection.
            return
        connection.sendall(reply(request))
        then(connection)

    return serve


def must_be_closed(connection: socket.socket) -> None:
    assert closed_by_client(connection), "the client used the connection again"


def raised_by_a_ping(run_async: RunAsync, serve: Serve, **options: Any) -> Exception:
    """What a ping raises, to a server; afterwards the client must work, if on another connection."""

    async def main(address: str) -> Exception:
        async with arcbox_agent.connect(address, **options) as client:
            try:
                await client.ping(timeout=options.get("timeout"))
            except Exception as caught:
                assert (await client.ping()).message == "pong"
                return caught
            raise AssertionError("the ping raised nothing")

    with server(serve, answer_pings) as agent:
        return run_async(main(agent.address))


def test_a_request_is_one_v2_frame_with_a_trace_id(run_async: RunAsync) -> None:
    seen = []

    def serve(connection: socket.socket) -> None:
        seen.append(read_request(connection))
        connection.sendall(pong(seen[0]))
        closed_by_client(connection)

    async def main(address: str) -> None:
        await (await arcbox_agent.connect(address, trace_id="from the test")).aclose()

    with server(serve) as agent:
        run_async(main(agent.address))
    # The first ping of a client asks for `detail`, and no other.
    assert seen == [(0x0001, b"from the test", b"\xa0\x06\x01")]


def test_each_call_has_a_trace_id_of_its_own(run_async: RunAsync) -> None:
    seen = []

    def serve(connection: socket.socket) -> None:
        try:
            while True:
                seen.append(read_request(connection))
                connection.sendall(pong(seen[-1]))
        except EOFError:
            pass

    async def main(address: str) -> None:
        async with arcbox_agent.connect(address) as client:
            await client.ping()
            await client.ping()

    with server(serve) as agent:
        run_async(main(agent.address))
    traces = [request.trace for request in seen]
    assert len(set(traces)) == 3
    assert all(len(trace) == 12 for trace in traces)


def test_frame_version_1_is_what_agents_of_2025_speak(run_async: RunAsync) -> None:
    def serve(connection: socket.socket) -> None:
        assert receive(connection, 11) == bytes.fromhex("00000007 00000001 a00601")
        connection.sendall(bytes.fromhex("0000000a 00001001 0a04706f6e67"))
        assert receive(connection, 14) == bytes.fromhex("0000000a 00000001 0a0470696e67")
        connection.sendall(bytes.fromhex("00000012 0000ffff 000001f4 00000006") + b"broken")
        closed_by_client(connection)

    async def main(address: str) -> None:
        async with arcbox_agent.connect(address, frame_version=1) as client:
            with pytest.raises(arcbox_agent.errors.AgentFailedError, match="^broken$"):
                await client.ping("ping")

    with server(serve) as agent:
        run_async(main(agent.address))


@pytest.mark.parametrize(
    ("code", "kind"),
    [(400, BadRequestError), (403, ForbiddenError), (404, NotFoundError), (429, BusyError)],
)
def test_an_error_frame_raises_the_class_of_its_code(run_async: RunAsync, code: int, kind: type[RequestError]) -> None:
    caught = raised_by_a_ping(run_async, once_connected(lambda r: error(code, b"no: \xc3\xa9", r.trace)))
    assert isinstance(caught, kind)
    assert type(caught) is kind
    assert (caught.code, caught.message, str(caught)) == (code, "no: é", "no: é")


def test_an_error_of_the_agent_carries_the_trace_id_as_a_note(run_async: RunAsync) -> None:
    serve = once_connected(lambda r: error(404, b"no", r.trace))
    caught = raised_by_a_ping(run_async, serve, trace_id="abc")
    assert getattr(caught, "__notes__", None) == ["trace id abc"]


def test_a_code_that_is_not_known_is_kept(run_async: RunAsync) -> None:
    caught = raised_by_a_ping(run_async, once_connected(lambda r: error(418, b"teapot", r.trace)))
    assert type(caught) is arcbox_agent.errors.AgentFailedError
    assert caught.code == 418


def test_a_connection_that_brought_an_error_serves_the_next_call(run_async: RunAsync) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(pong(read_request(connection)))
        request = read_request(connection)
        connection.sendall(error(404, b"no", request.trace))
        answer_pings(connection)

    async def main(agent: Server) -> None:
        async with arcbox_agent.connect(agent.address) as client:
            with pytest.raises(NotFoundError):
                await client.start_container("x")
            await client.ping()

    with server(serve) as agent:
        run_async(main(agent))
        assert agent.accepted == 1


@pytest.mark.parametrize("trace", [None, b""], ids=["V1", "V2"])
def test_an_error_about_the_connection_has_no_trace_id_and_is_understood(run_async: RunAsync, trace: bytes) -> None:
    # Too many connections: in V1, for who has not read cannot know the version.
    def serve(connection: socket.socket) -> None:
        connection.sendall(error(429, b"too many connections", trace))
        closed_by_client(connection)

    async def main(address: str) -> None:
        with pytest.raises(BusyError, match="^too many connections$"):
            await arcbox_agent.connect(address)

    with server(serve) as agent:
        run_async(main(agent.address))


@pytest.mark.parametrize(
    ("reply", "kind", "reason"),
    [
        (lambda r: frame(EMPTY, b"", r.trace), FrameError, "a frame of type 0x0000, where PingResponse was expected"),
        (lambda r: frame(PONG, PAYLOAD_PONG, b"other"), FrameError, "a reply with trace id 'other'"),
        (lambda r: frame(PONG, b"\x0a\x7f", r.trace), DecodeError, "PingResponse"),
        (lambda r: b"GET / HTTP/1.1\r\n\r\n", FrameTooLargeError, "above the limit"),
        (lambda r: b"\0\0\0\0\0\0\0\0", FrameError, "below the minimum"),
        (lambda r: struct.pack(">I", 16 * 1024 * 1024 + 1), FrameTooLargeError, "above the limit of 16777216"),
    ],
    ids=["another type", "another trace", "broken message", "another protocol", "too short", "too large"],
)
def test_a_reply_that_is_none_is_an_error_and_costs_only_its_connection(
    run_async: RunAsync, reply: Callable[[Request], bytes], kind: type[Exception], reason: str
) -> None:
    caught = raised_by_a_ping(run_async, once_connected(reply, must_be_closed))
    assert isinstance(caught, kind)
    assert reason in str(caught)


def test_an_error_that_answers_no_call_costs_its_connection(run_async: RunAsync) -> None:
    caught = raised_by_a_ping(
        run_async, once_connected(lambda r: error(500, b"late", b"of another call"), must_be_closed)
    )
    assert str(caught) == "late"
    assert not hasattr(caught, "__notes__")


def test_a_connection_lost_in_the_middle_of_a_reply_is_said_to_be(run_async: RunAsync) -> None:
    def cut(request: Request) -> bytes:
        return frame(PONG, PAYLOAD_PONG, request.trace)[:-1]

    def serve(connection: socket.socket) -> None:
        # On its first call: one on a connection that was idle is tried again.
        connection.sendall(cut(read_request(connection)))

    async def main(address: str) -> BaseException | None:
        with pytest.raises(ConnectError) as caught:
            await arcbox_agent.connect(address)
        return caught.value.__cause__

    with server(serve) as agent:
        lost = run_async(main(agent.address))
    assert isinstance(lost, ConnectionLostError)
    assert str(lost) == "the connection ended in the middle of a reply"


def test_a_reply_that_comes_byte_by_byte_is_a_reply(run_async: RunAsync) -> None:
    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        for byte in pong(read_request(connection)):
            connection.sendall(bytes([byte]))
        closed_by_client(connection)

    async def main(address: str) -> None:
        async with arcbox_agent.connect(address):
            pass

    with server(serve) as agent:
        run_async(main(agent.address))


def test_a_second_reply_to_one_request_is_given_to_no_other_call(run_async: RunAsync) -> None:
    def twice(request: Request) -> bytes:
        return pong(request) + frame(PONG, text(1, b"unasked"), request.trace)

    async def main(agent: Server) -> None:
        async with arcbox_agent.connect(agent.address, trace_id="same for all") as client:
            assert (await client.ping()).message == "pong"
            assert (await client.ping()).message == "pong"
        assert agent.accepted == 2

    with server(once_connected(twice, must_be_closed), answer_pings) as agent:
        run_async(main(agent))


def test_no_reply_in_time_is_an_error_and_the_late_one_goes_nowhere(run_async: RunAsync) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(pong(read_request(connection)))
        request = read_request(connection)
        assert closed_by_client(connection)
        try:
            connection.sendall(pong(request))
        except ConnectionError:
            pass

    async def main(address: str) -> None:
        async with arcbox_agent.connect(address) as client:
            with pytest.raises(CallTimeoutError) as caught:
                await client.ping(timeout=0.05)
            assert str(caught.value) == "Ping: no reply after 0.05 s"
            assert isinstance(caught.value, TimeoutError)
            assert (await client.ping()).message == "pong"

    with server(serve, answer_pings) as agent:
        run_async(main(agent.address))


def test_no_time_at_all_is_not_taken_for_the_clients(run_async: RunAsync) -> None:
    async def main(address: str) -> None:
        async with arcbox_agent.connect(address) as client:
            with pytest.raises(CallTimeoutError, match="^Ping: no reply after 0 s$"):
                await client.ping(timeout=0)

    with server(answer_pings) as agent:
        run_async(main(agent.address))


def test_a_call_cancelled_in_the_middle_of_a_reply_corrupts_no_other(run_async: RunAsync) -> None:
    halfway = asyncio.Event()
    loop: asyncio.AbstractEventLoop

    def serve(connection: socket.socket) -> None:
        connection.sendall(pong(read_request(connection)))
        reply = pong(read_request(connection))
        connection.sendall(reply[:7])
        loop.call_soon_threadsafe(halfway.set)
        assert closed_by_client(connection)

    async def main(address: str) -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        async with arcbox_agent.connect(address) as client:
            call = asyncio.create_task(client.ping())
            await halfway.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert (await client.ping()).message == "pong"

    with server(serve, answer_pings) as agent:
        run_async(main(agent.address))


def test_a_call_is_sent_again_only_if_that_is_safe(run_async: RunAsync) -> None:
    # Reads the request and closes: nobody can tell whether it was carried out.
    def reads_and_closes(connection: socket.socket) -> None:
        connection.sendall(pong(read_request(connection)))
        read_request(connection)

    async def ping(client: arcbox_agent.Client) -> None:
        await client.ping()

    async def start(client: arcbox_agent.Client) -> None:
        await client.start_container("x")

    async def main(agent: Server, call: Callable[[arcbox_agent.Client], Awaitable[None]]) -> None:
        async with arcbox_agent.connect(agent.address) as client:
            await call(client)

    with server(reads_and_closes, answer_pings) as agent:
        run_async(main(agent, ping))
        assert agent.accepted == 2
    with server(reads_and_closes, answer_pings) as agent:
        with pytest.raises(ConnectionLostError, match="perhaps after it had read the request"):
            run_async(main(agent, start))
        assert agent.accepted == 1


def test_a_call_is_sent_again_once(run_async: RunAsync) -> None:
    def reads_and_closes(connection: socket.socket) -> None:
        read_request(connection)

    async def main(agent: Server) -> None:
        async with arcbox_agent.connect(agent.address) as client:
            with pytest.raises(ConnectionLostError, match="before the reply came"):
                await client.ping()

    with server(once_connected(lambda r: b"", lambda c: None), reads_and_closes) as agent:
        run_async(main(agent))
        assert agent.accepted == 2


def test_an_idle_connection_that_the_agent_closed_takes_no_request(run_async: RunAsync) -> None:
    def closes(connection: socket.socket) -> None:
        connection.sendall(pong(read_request(connection)))

    def starts(connection: socket.socket) -> None:
        connection.sendall(pong(read_request(connection)))
        request = read_request(connection)
        assert (request.type, request.payload) == (0x0011, text(1, b"x"))
        connection.sendall(frame(EMPTY, b"", request.trace))
        closed_by_client(connection)

    async def main(agent: Server) -> None:
        async with arcbox_agent.connect(agent.address) as client:
            agent.join()
            # The loop has had no time to see the close: the kernel is asked.
            await client.start_container("x")

    with server(closes, starts) as agent:
        run_async(main(agent))


def test_a_request_that_the_agent_would_refuse_for_its_size_is_not_sent(run_async: RunAsync) -> None:
    async def main(address: str) -> None:
        async with arcbox_agent.connect(address, max_frame_size=1024) as client:
            with pytest.raises(FrameTooLargeError) as caught:
                await client.exec(["cat"], stdin=b"x" * 1024)
            assert caught.value.limit == 1024
            await client.ping()

    with server(answer_pings) as agent:
        run_async(main(agent.address))


def test_a_trace_id_that_could_be_taken_for_v1_is_refused(run_async: RunAsync) -> None:
    async def main(address: str) -> None:
        with pytest.raises(ValueError, match="a trace id has at most 2047 bytes, not 2048"):
            await arcbox_agent.connect(address, trace_id="x" * 2048)
        await (await arcbox_agent.connect(address, trace_id="x" * 2047)).aclose()

    with server(answer_pings) as agent:
        run_async(main(agent.address))


def test_a_frame_version_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="frame_version is 1 or 2, not 3"):
        arcbox_agent.connect("unix:///a", frame_version=3)  # type: ignore[arg-type]


def test_a_command_is_a_list_of_words() -> None:
    with pytest.raises(EncodeError, match="ExecRequest.cmd: a list of words is wanted, not 'ls -l'"):
        calls.words("ExecRequest.cmd", "ls -l")


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e308])
def test_a_time_out_that_is_no_length_of_time_is_refused(run_async: RunAsync, seconds: float) -> None:
    async def main(address: str) -> None:
        async with arcbox_agent.connect(address) as client:
            for call in (
                lambda: client.exec(["true"], timeout=seconds),
                lambda: client.create_container(cmd=["true"], stop_timeout=-seconds),
                lambda: client.shutdown(timeout=seconds),
            ):
                with pytest.raises(EncodeError, match=r"Request\.(stop_)?timeout"):
                    await call()

    with server(answer_pings) as agent:
        run_async(main(agent.address))


def test_ping_tells_this_hosts_time_only_if_asked(run_async: RunAsync) -> None:
    seen = []

    def serve(connection: socket.socket) -> None:
        try:
            while True:
                request = read_request(connection)
                seen.append(wire.PingRequest.decode(request.payload).timestamp_secs)
                connection.sendall(pong(request))
        except EOFError:
            pass

    async def main(address: str) -> None:
        async with arcbox_agent.connect(address) as client:
            await client.ping(set_clock=True)

    before = datetime.now().timestamp()
    with server(serve) as agent:
        run_async(main(agent.address))
    assert seen[0] == 0
    assert before - 1 <= seen[1] <= datetime.now().timestamp() + 1


def test_a_signal_is_told_by_name_or_number(run_async: RunAsync) -> None:
    seen = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(pong(read_request(connection)))
        try:
            while True:
                request = read_request(connection)
                seen.append(wire.KillContainerRequest.decode(request.payload).signal)
                connection.sendall(frame(EMPTY, b"", request.trace))
        except EOFError:
            pass

    async def main(address: str) -> None:
        async with arcbox_agent.connect(address) as client:
            await client.kill_container("x")
            await client.kill_container("x", signal="TERM")
            await client.kill_container("x", signal=9)
            await client.kill_container("x", signal=signal.SIGHUP)

    with server(serve) as agent:
        run_async(main(agent.address))
    assert seen == ["KILL", "TERM", "9", "1"]


@pytest.mark.parametrize(
    ("when", "fields"),
    [
        (None, (0, 0)),
        (1_700_000_000, (1_700_000_000, 0)),
        (1_700_000_000.25, (1_700_000_000, 250_000_000)),
        (0.9999999999, (1, 0)),
        (datetime(2026, 11, 23, 17, 45, 12, 255151, tzinfo=UTC), (1795455912, 255_151_000)),
        (datetime(2026, 11, 23, 18, 45, 12, 1, tzinfo=timezone(timedelta(hours=1))), (1795455912, 1000)),
    ],
)
def test_a_point_in_time_is_sent_to_the_nanosecond(when: Any, fields: tuple[int, int]) -> None:
    assert calls.seconds_and_nanos(when) == fields


def test_a_log_entry_has_one_shape_whichever_version_brought_it() -> None:
    expected = wire.LogEntry(stream="stderr", data=b"x", timestamp=1_700_000_000_000_000_005, partial=True)
    v2 = wire.LogEntryV2(
        stream="stderr", data=b"x", timestamp=wire.Timestamp(seconds=1_700_000_000, nanos=5), partial=True
    )
    for encoded in (wire.encode_message(expected), wire.encode_message(v2, "t")):
        decoder = wire.FrameDecoder()
        decoder.feed(encoded)
        frame = decoder.next_frame()
        assert frame is not None
        assert calls.read_log_entry(frame) == (expected, False)


@pytest.mark.parametrize("seconds", [1 << 62, -(1 << 62), 9_223_372_037, -9_223_372_038])
def test_a_time_beyond_all_nanoseconds_is_a_broken_entry(seconds: int) -> None:
    entry = wire.LogEntryV2(stream="stdout", timestamp=wire.Timestamp(seconds=seconds))
    decoder = wire.FrameDecoder(version=2)
    decoder.feed(wire.encode_message(entry, "t"))
    frame = decoder.next_frame()
    assert frame is not None
    with pytest.raises(DecodeError, match="LogEntryV2.timestamp: "):
        calls.read_log_entry(frame)


def test_the_exit_code_of_a_signal_is_the_shells() -> None:
    assert calls.exit_code(wire.ExecOutput(exit_code=-1, signal=9, done=True)) == 137
    assert calls.exit_code(wire.ExecOutput(exit_code=3, done=True)) == 3

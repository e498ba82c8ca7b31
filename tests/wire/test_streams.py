"""The short ways through a stream: batches of typed messages, and pings answered at once."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcbox_agent import wire

PING = wire.encode_message(wire.PingRequest(message="ping"))
UNKNOWN = wire.encode_frame(0x7777, b"\x0a\x00")
BROKEN = bytes.fromhex("00000007 00000001 0a01ff")


def fed(data: bytes, **arguments: Any) -> wire.FrameDecoder:
    decoder = wire.FrameDecoder(**arguments)
    decoder.feed(data)
    return decoder


# ------------------------------------------------------------------ messages


def test_a_run_ends_where_the_version_or_the_trace_id_changes() -> None:
    ping, empty = wire.PingRequest(message="a"), wire.Empty()
    decoder = fed(
        wire.encode_message(ping)
        + wire.encode_message(empty)
        + wire.encode_message(ping, "t1") * 2
        + wire.encode_message(empty, "t2")
        + wire.encode_message(empty, "")
        + wire.encode_message(ping)
    )
    assert decoder.next_messages() == ([ping, empty], 1, None)
    assert decoder.next_messages() == ([ping, ping], 2, "t1")
    assert decoder.next_messages() == ([empty], 2, "t2")
    assert decoder.next_messages() == ([empty], 2, "")
    assert decoder.next_messages() == ([ping], 1, None)
    assert decoder.next_messages() == ([], 0, None)
    assert decoder.buffered == 0


def test_a_run_has_no_more_messages_than_asked_for() -> None:
    decoder = fed(PING * 5)
    assert len(decoder.next_messages(2)[0]) == 2
    assert decoder.next_messages(0) == ([], 0, None)
    assert len(decoder.next_messages(limit=2)[0]) == 2
    assert len(decoder.next_messages(2)[0]) == 1


@pytest.mark.parametrize("stop", [UNKNOWN, BROKEN], ids=["unknown type", "broken payload"])
def test_a_run_stops_before_a_frame_that_is_no_message_and_next_frame_gives_it(stop: bytes) -> None:
    decoder = fed(PING + stop + PING)
    assert len(decoder.next_messages()[0]) == 1
    assert decoder.next_messages() == ([], 0, None)
    frame = decoder.next_frame()
    assert frame is not None
    assert frame.payload == stop[8:]
    assert len(decoder.next_messages()[0]) == 1


def test_an_error_frame_is_a_message_and_a_log_entry_is_that_of_its_version() -> None:
    v1 = wire.LogEntry(stream="stdout", data=b"x", timestamp=5)
    v2 = wire.LogEntryV2(stream="stdout", data=b"x", timestamp=wire.Timestamp(nanos=5))
    error = wire.Error(code=404, message="gone")
    decoder = fed(wire.encode_message(v1) + wire.encode_message(error), version=1)
    assert decoder.next_messages() == ([v1, error], 1, None)
    decoder = fed(wire.encode_message(v2, "t") + wire.encode_message(error, "t"), version=2)
    assert decoder.next_messages() == ([v2, error], 2, "t")


def test_a_cut_stream_is_told_after_its_whole_messages() -> None:
    decoder = fed(PING + PING[:-1])
    decoder.eof()
    assert len(decoder.next_messages()[0]) == 1
    with pytest.raises(wire.TruncatedFrameError):
        decoder.next_messages()


def test_messages_before_a_broken_frame_are_not_lost() -> None:
    decoder = fed(PING + b"\x00\x00\x00\x01")
    messages, _, _ = decoder.next_messages()
    assert messages == [wire.PingRequest(message="ping")]
    with pytest.raises(wire.FrameTooShortError):
        decoder.next_messages()


# --------------------------------------------------------------------- pings


def test_pings_are_answered_with_the_bytes_of_alpha1() -> None:
    out = bytearray(b"before")
    decoder = fed(bytes.fromhex("00000004 00000001") + PING)
    assert wire.serve_pings(decoder, out, "0.1.0") == 2
    assert out[6:] == bytes.fromhex(
        "00000011000010010a04706f6e671205302e312e3000000017000010010a0a706f6e673a2070696e671205302e312e30"
    )
    assert decoder.buffered == 0


def test_pings_before_a_broken_frame_are_answered() -> None:
    out = bytearray()
    decoder = fed(PING * 2 + b"\x00\x00\x00\x01")
    assert wire.serve_pings(decoder, out, "1") == 2
    with pytest.raises(wire.FrameTooShortError):
        wire.serve_pings(decoder, out, "1")


def test_a_v2_ping_is_answered_with_its_trace_id() -> None:
    out = bytearray()
    decoder = fed(wire.encode_message(wire.PingRequest(message="é"), "trace-1"))
    assert wire.serve_pings(decoder, out, b"9") == 1
    assert out == wire.encode_message(wire.PingResponse(message="pong: é", version="9"), "trace-1")


@pytest.mark.parametrize(
    "stop",
    [
        wire.encode_message(wire.PingRequest(message="a", timestamp_secs=1)),
        wire.encode_message(wire.Empty()),
        wire.encode_message(wire.PingResponse(message="a")),
        UNKNOWN,
        BROKEN,
        wire.encode_frame(1, bytes.fromhex("0a0161 1801")),  # an unknown field
        wire.encode_frame(1, bytes.fromhex("0a0161 0a0162")),  # the message twice
        wire.encode_frame(1, bytes.fromhex("0a05 61")),  # cut short
        wire.encode_frame(1, bytes.fromhex("0a")),
        PING[:-1],  # not whole yet
    ],
)
def test_a_run_of_pings_stops_before_anything_else(stop: bytes) -> None:
    out = bytearray()
    decoder = fed(PING + stop)
    assert wire.serve_pings(decoder, out, "1") == 1
    assert decoder.buffered == len(stop)
    assert wire.serve_pings(decoder, out, "1") == 0
    assert len(out) == 4 + int.from_bytes(out[:4], "big")


def test_no_more_pings_are_answered_than_asked_for() -> None:
    out = bytearray()
    decoder = fed(PING * 10)
    assert wire.serve_pings(decoder, out, "1", 3) == 3
    assert wire.serve_pings(decoder, out, "1", limit=0) == 0
    assert decoder.buffered == 7 * len(PING)


def test_a_large_ping_is_answered_whole() -> None:
    for size in (127, 128, 16383, 16384, 300_000):
        out = bytearray()
        text = "é" * (size // 2)
        assert wire.serve_pings(fed(wire.encode_message(wire.PingRequest(message=text))), out, "1") == 1
        assert out == wire.encode_message(wire.PingResponse(message="pong: " + text, version="1"))


def test_the_version_is_short_text() -> None:
    with pytest.raises(ValueError, match="longer than 127"):
        wire.serve_pings(fed(PING), bytearray(), "1" * 128)
    with pytest.raises(TypeError):
        wire.serve_pings(fed(PING), [], "1")  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(max_size=40), st.none() | st.text(max_size=5), st.sampled_from([0, 0, 0, 7])),
        max_size=8,
    )
)
def test_the_short_way_answers_as_the_long_way_does(
    pings: list[tuple[str, str | None, int]],
) -> None:
    stream = b"".join(
        wire.encode_message(wire.PingRequest(message=text, timestamp_secs=clock), trace) for text, trace, clock in pings
    )
    expected = b""
    plain = 0
    for text, trace, clock in pings:
        if clock:
            break
        answer = f"pong: {text}" if text else "pong"
        expected += wire.encode_message(wire.PingResponse(message=answer, version="1.2"), trace)
        plain += 1
    out = bytearray()
    assert wire.serve_pings(fed(stream), out, "1.2") == plain
    assert bytes(out) == expected


@pytest.mark.parametrize("trace", [None, "t"])
@pytest.mark.parametrize("text", ["", "hi", "\xe8\6\1", "x" * 300])
def test_a_timed_ping_is_answered_with_the_clocks(text: str, trace: str | None) -> None:
    ping = wire.PingRequest(message=text, timed=True)
    plain = wire.PingRequest(message=text)
    stream = b"".join(wire.encode_message(each, trace) for each in (ping, plain, ping))
    before = time.time_ns(), time.monotonic_ns()
    out = bytearray()
    assert wire.serve_pings(fed(stream), out, "1.2") == 3
    after = time.time_ns(), time.monotonic_ns()
    decoder = fed(bytes(out))
    replies = []
    while (frame := decoder.next_frame()) is not None:
        reply = wire.PingResponse.decode(frame.payload)
        assert wire.encode_message(reply, trace) == wire.encode_frame(frame.type, frame.payload, trace)
        replies.append(reply)
    first, second, third = replies
    for reply in (first, third):
        assert before[0] <= reply.time_ns <= after[0]
        assert before[1] <= reply.monotonic_ns <= after[1]
        assert (reply.message, reply.version) == (f"pong: {text}" if text else "pong", "1.2")
    assert (second.time_ns, second.monotonic_ns) == (0, 0)


@pytest.mark.parametrize(
    "rest", [b"\xa8\6\0", b"\xa8\6\2", b"\xa8\6", b"\xa8\6\1\xa8\6\1", b"\xa8\6\1\x10\1", b"\xb0\6\1", b"\xa8\7\1"]
)
@pytest.mark.parametrize("text", [b"", b"\x0a\2hi"])
def test_what_is_not_quite_a_timed_ping_goes_the_long_way(rest: bytes, text: bytes) -> None:
    decoder = fed(wire.encode_frame(wire.PingRequest.TYPE, text + rest))
    out = bytearray()
    assert (wire.serve_pings(decoder, out, "1.2"), bytes(out)) == (0, b"")
    frame = decoder.next_frame()
    assert frame is not None
    assert frame.payload == text + rest

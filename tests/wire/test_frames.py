"""Frames: their bytes, how versions are told apart, what is refused and when."""

from __future__ import annotations

import pickle
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcbox_agent import wire
from tests.reference.frames import PlainFrame, split

LIMIT = 16 * 1024 * 1024

PING_V1 = bytes.fromhex("0000000a 00000001 0a0470696e67")
PING_V2 = bytes.fromhex("0000000f 00000001 0003 616263 0a0470696e67")
PING_V2_EMPTY_TRACE = bytes.fromhex("0000000c 00000001 0000 0a0470696e67")
EMPTY_V1 = bytes.fromhex("00000004 00000000")
EMPTY_V2 = bytes.fromhex("00000006 00000000 0000")


def all_frames(decoder: wire.FrameDecoder) -> list[PlainFrame]:
    found = []
    while (frame := decoder.next_frame()) is not None:
        found.append(PlainFrame(frame.type, frame.version, frame.trace_id, frame.payload))
    return found


def fed(data: bytes, **arguments: Any) -> wire.FrameDecoder:
    decoder = wire.FrameDecoder(**arguments)
    decoder.feed(data)
    return decoder


# ------------------------------------------------------------------ encoding


def test_a_frame_without_a_trace_id_is_v1() -> None:
    assert wire.encode_frame(1, b"\x0a\x04ping") == PING_V1
    assert wire.encode_frame(0, b"") == EMPTY_V1
    assert wire.encode_message(wire.PingRequest(message="ping")) == PING_V1
    assert wire.encode_message(wire.Empty()) == EMPTY_V1


def test_a_frame_with_a_trace_id_is_v2_and_the_empty_one_counts() -> None:
    assert wire.encode_frame(1, b"\x0a\x04ping", "abc") == PING_V2
    assert wire.encode_frame(1, b"\x0a\x04ping", "") == PING_V2_EMPTY_TRACE
    assert wire.encode_frame(0, b"", "") == EMPTY_V2
    assert wire.encode_message(wire.PingRequest(message="ping"), "abc") == PING_V2


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_payload_is_anything_that_holds_bytes(kind: Any) -> None:
    assert wire.encode_frame(1, kind(b"\x0a\x04ping")) == PING_V1


def test_an_error_is_code_length_and_text() -> None:
    v1 = bytes.fromhex("00000010 0000ffff 00000190 00000004 6fc3a921")
    assert wire.encode_error(400, "oé!") == v1
    v2 = bytes.fromhex("00000013 0000ffff 0001 74 00000190 00000004 6fc3a921")
    assert wire.encode_error(400, "oé!", "t") == v2
    assert wire.encode_error(-1, "") == bytes.fromhex("0000000c 0000ffff ffffffff 00000000")
    assert wire.Error.decode(v1[8:]) == wire.Error(code=400, message="oé!")


def test_a_message_without_a_type_number_travels_in_no_frame() -> None:
    with pytest.raises(wire.EncodeError, match="Mount: has no message type"):
        wire.encode_message(wire.Mount())


@pytest.mark.parametrize("number", [-1, 2**32])
def test_a_type_number_has_32_bits(number: int) -> None:
    with pytest.raises(OverflowError):
        wire.encode_frame(number, b"")


def test_a_trace_id_is_as_long_as_its_length_can_say() -> None:
    longest = "x" * 0xFFFF
    frame = fed(wire.encode_frame(1, b"", longest), version=2).next_frame()
    assert frame is not None
    assert frame.trace_id == longest
    with pytest.raises(wire.TraceLengthError) as caught:
        wire.encode_frame(1, b"", longest + "x")
    assert (caught.value.trace_length, caught.value.available) == (0x10000, 0xFFFF)


def test_a_trace_id_that_is_not_utf8_is_echoed_as_it_came() -> None:
    request = bytes.fromhex("00000008 00000001 0002 ff41")
    frame = fed(request).next_frame()
    assert frame is not None
    assert wire.encode_frame(frame.type, frame.payload, frame.trace_id) == request


# ------------------------------------------------------------------ decoding


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (PING_V1, PlainFrame(1, 1, None, b"\x0a\x04ping")),
        (PING_V2, PlainFrame(1, 2, "abc", b"\x0a\x04ping")),
        (PING_V2_EMPTY_TRACE, PlainFrame(1, 2, "", b"\x0a\x04ping")),
        (EMPTY_V1, PlainFrame(0, 1, None, b"")),
        (EMPTY_V2, PlainFrame(0, 2, "", b"")),
        # The longest trace id that tells itself: its length begins with 0x07.
        (
            wire.encode_frame(1, b"", "x" * 2047),
            PlainFrame(1, 2, "x" * 2047, b""),
        ),
        # One byte longer, and the frame cannot be told from V1.
        (
            wire.encode_frame(1, b"", "x" * 2048),
            PlainFrame(1, 1, None, b"\x08\x00" + b"x" * 2048),
        ),
    ],
)
def test_versions_are_told_apart_by_the_first_byte_of_the_body(data: bytes, expected: PlainFrame) -> None:
    assert all_frames(fed(data)) == [expected]


def test_a_client_that_fixed_the_version_never_guesses() -> None:
    # An error in V1 begins with a zero byte, as a V2 body does.
    error = wire.encode_error(404, "no")
    assert all_frames(fed(error, version=1)) == [PlainFrame(0xFFFF, 1, None, bytes.fromhex("00000194 00000002 6e6f"))]
    assert all_frames(fed(EMPTY_V2, version=1)) == [PlainFrame(0, 1, None, b"\x00\x00")]
    long_trace = wire.encode_frame(1, b"", "x" * 2048)
    assert all_frames(fed(long_trace, version=2)) == [PlainFrame(1, 2, "x" * 2048, b"")]


@pytest.mark.parametrize("version", [0, 3, -1])
def test_there_are_two_versions(version: Any) -> None:
    with pytest.raises(ValueError, match="expected None, 1 or 2"):
        wire.FrameDecoder(version=version)


STREAM = PING_V1 + PING_V2 + EMPTY_V1 + EMPTY_V2 + wire.encode_frame(0x77, bytes(40), "tr") + PING_V1
EXPECTED = split(STREAM, LIMIT)[0]


def test_the_stream_that_is_split_below_holds_six_frames() -> None:
    assert [frame.type for frame in EXPECTED] == [1, 1, 0, 0, 0x77, 1]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_stream_gives_the_same_frames_wherever_it_is_split_in_two(kind: Any) -> None:
    for at in range(len(STREAM) + 1):
        decoder = wire.FrameDecoder()
        decoder.feed(kind(STREAM[:at]))
        found = all_frames(decoder)
        decoder.feed(kind(STREAM[at:]))
        assert found + all_frames(decoder) == EXPECTED
        assert decoder.buffered == 0


def test_a_stream_gives_the_same_frames_wherever_it_is_split_in_three() -> None:
    for first in range(len(STREAM) + 1):
        for second in range(first, len(STREAM) + 1, 3):
            decoder = wire.FrameDecoder()
            found = []
            for part in (STREAM[:first], STREAM[first:second], STREAM[second:]):
                decoder.feed(part)
                found += all_frames(decoder)
            assert found == EXPECTED


def test_a_stream_gives_the_same_frames_byte_by_byte_and_fed_before_any_is_taken() -> None:
    decoder = wire.FrameDecoder()
    late = wire.FrameDecoder()
    found = []
    for byte in STREAM:
        decoder.feed(bytes([byte]))
        late.feed(bytes([byte]))
        found += all_frames(decoder)
    assert found == EXPECTED
    assert late.buffered == len(STREAM)
    assert all_frames(late) == EXPECTED


def test_what_was_fed_is_read_as_it_was_when_it_was_fed() -> None:
    data = bytearray(PING_V1)
    decoder = wire.FrameDecoder()
    decoder.feed(data)
    data[:] = bytes(len(data))
    assert all_frames(decoder) == [PlainFrame(1, 1, None, b"\x0a\x04ping")]


# ------------------------------------------------------------------ refusing


@pytest.mark.parametrize("length", [0, 1, 2, 3])
@pytest.mark.parametrize("version", [None, 1, 2])
def test_a_length_below_the_minimum_is_refused_at_its_four_bytes(length: int, version: Any) -> None:
    decoder = wire.FrameDecoder(version=version)
    decoder.feed(length.to_bytes(4, "big"))
    with pytest.raises(wire.FrameTooShortError) as caught:
        decoder.next_frame()
    assert caught.value.length == length
    assert caught.value.minimum == (6 if version == 2 else 4)


def test_a_v2_frame_has_room_for_the_length_of_its_trace_id() -> None:
    for length in (4, 5):
        with pytest.raises(wire.FrameTooShortError) as caught:
            fed(length.to_bytes(4, "big"), version=2).next_frame()
        assert (caught.value.length, caught.value.minimum) == (length, 6)
    # Told apart by its body: one byte that no message begins with.
    with pytest.raises(wire.FrameTooShortError) as caught:
        fed(bytes.fromhex("00000005 00000001 00")).next_frame()
    assert (caught.value.length, caught.value.minimum) == (5, 6)
    # A byte that a message can begin with is V1, and for its message to judge.
    assert all_frames(fed(bytes.fromhex("00000005 00000001 08"))) == [PlainFrame(1, 1, None, b"\x08")]


def test_the_limit_passes_and_one_more_is_refused_at_its_four_bytes() -> None:
    at_limit = wire.encode_frame(1, bytes(96))
    assert int.from_bytes(at_limit[:4], "big") == 100
    assert len(all_frames(fed(at_limit, max_frame_size=100, version=1))) == 1
    for version in (None, 1, 2):
        with pytest.raises(wire.FrameTooLargeError) as caught:
            fed((101).to_bytes(4, "big"), max_frame_size=100, version=version).next_frame()
        assert (caught.value.length, caught.value.limit) == (101, 100)


def test_the_default_limit_is_16_mib() -> None:
    assert wire.MAX_FRAME_SIZE == LIMIT
    assert fed(LIMIT.to_bytes(4, "big")).next_frame() is None
    with pytest.raises(wire.FrameTooLargeError):
        fed((LIMIT + 1).to_bytes(4, "big")).next_frame()
    with pytest.raises(wire.FrameTooLargeError):
        fed(b"\xff\xff\xff\xff").next_frame()


def test_a_trace_id_that_fills_its_frame_passes_and_one_byte_more_is_refused() -> None:
    fits = bytes.fromhex("00000009 00000001 0003 616263")
    assert all_frames(fed(fits)) == [PlainFrame(1, 2, "abc", b"")]
    # Refused as soon as its length is there, before the rest has come.
    with pytest.raises(wire.TraceLengthError) as caught:
        fed(bytes.fromhex("00000009 00000001 0004")).next_frame()
    assert (caught.value.trace_length, caught.value.available) == (4, 3)


@pytest.mark.parametrize("whole", [PING_V1, PING_V2, EMPTY_V1, EMPTY_V2])
def test_an_end_inside_a_frame_is_an_error_at_every_place(whole: bytes) -> None:
    for size in range(1, len(whole)):
        decoder = fed(PING_V1 + whole[:size])
        assert decoder.next_frame() is not None
        with pytest.raises(wire.TruncatedFrameError) as caught:
            decoder.eof()
        assert caught.value.received == size
        assert caught.value.expected == (len(whole) if size >= 4 else 4)


def test_an_end_between_frames_is_none() -> None:
    wire.FrameDecoder().eof()
    decoder = fed(PING_V1)
    assert decoder.next_frame() is not None
    decoder.eof()
    assert decoder.next_frame() is None


def test_frames_that_are_whole_can_be_taken_after_the_end_and_then_the_cut_one_is_told() -> None:
    decoder = fed(PING_V1 + PING_V1[:7])
    decoder.eof()
    assert decoder.next_frame() is not None
    with pytest.raises(wire.TruncatedFrameError):
        decoder.next_frame()


def test_after_the_end_nothing_more_can_be_fed() -> None:
    decoder = wire.FrameDecoder()
    decoder.eof()
    with pytest.raises(ValueError, match="after eof"):
        decoder.feed(b"x")


def test_a_failed_decoder_stays_failed_and_says_why() -> None:
    decoder = fed(b"\x00\x00\x00\x00" + PING_V1)
    with pytest.raises(wire.FrameTooShortError) as first:
        decoder.next_frame()
    for use in (
        decoder.next_frame,
        decoder.next_messages,
        decoder.eof,
        lambda: decoder.feed(PING_V1),
        lambda: wire.serve_pings(decoder, bytearray(), "1"),
    ):
        with pytest.raises(wire.DecoderFailedError) as caught:
            use()
        assert caught.value.__cause__ is first.value


@pytest.mark.parametrize(
    "error",
    [
        wire.FrameTooShortError(3, 4),
        wire.FrameTooLargeError(101, 100),
        wire.TraceLengthError(4, 3),
        wire.TruncatedFrameError(7, 14),
        wire.DecoderFailedError("before"),
        wire.EncodeError("A.b", "no"),
        wire.DecodeError("A.b", "no"),
    ],
)
def test_every_error_pickles_with_its_numbers(error: wire.WireError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.__dict__ == error.__dict__


def test_feeding_takes_bytes_only() -> None:
    wrong: Any
    for wrong in ("text", 5, None, [1]):
        with pytest.raises(TypeError):
            wire.FrameDecoder().feed(wrong)


# ------------------------------------------------------------- with an oracle

_lengths = st.sampled_from([0, 3, 4, 5, 6, 7, 8, 12, 60, 61, 2**31, 2**32 - 1])
_whole = st.builds(
    wire.encode_frame,
    st.sampled_from([0, 1, 0x1001, 0xFFFF, 0x77777777]),
    st.binary(max_size=20),
    st.none() | st.text(max_size=8),
)
_broken = st.builds(lambda length, rest: length.to_bytes(4, "big") + rest, _lengths, st.binary(max_size=30))
_ERRORS = {
    "too short": wire.FrameTooShortError,
    "too large": wire.FrameTooLargeError,
    "trace": wire.TraceLengthError,
    "truncated": wire.TruncatedFrameError,
}


@settings(max_examples=300, deadline=None)
@given(
    stream=st.lists(_whole | _broken, max_size=6).map(b"".join),
    cuts=st.lists(st.integers(0, 200), max_size=6),
    version=st.sampled_from([None, 1, 2]),
)
def test_any_stream_in_any_pieces_is_split_as_the_plain_rules_say(stream: bytes, cuts: list[int], version: Any) -> None:
    expected, wrong = split(stream, 60, version)
    decoder = wire.FrameDecoder(max_frame_size=60, version=version)
    edges = sorted(min(cut, len(stream)) for cut in cuts)
    found: list[PlainFrame] = []

    def run() -> None:
        for start, stop in zip([0, *edges], [*edges, len(stream)], strict=True):
            decoder.feed(stream[start:stop])
            while (frame := decoder.next_frame()) is not None:
                found.append(PlainFrame(frame.type, frame.version, frame.trace_id, frame.payload))
        decoder.eof()

    if wrong:
        with pytest.raises(_ERRORS[wrong]):
            run()
    else:
        run()
    assert found == expected


# -------------------------------------------------------------------- memory


def peak_of(work: Any) -> int:
    """Bytes that Python's allocators gave out at most while `work` ran."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_hostile_length_takes_no_memory() -> None:
    def work() -> None:
        for _ in range(100):
            decoder = wire.FrameDecoder()
            decoder.feed(LIMIT.to_bytes(4, "big") + b"\x00\x00\x00\x01\x0a")
            assert decoder.next_frame() is None
            assert decoder.buffered == 9

    assert peak_of(work) < 256 * 1024


def test_a_hostile_length_inside_a_message_takes_no_memory() -> None:
    def work() -> None:
        for tag in (b"\x0a", b"\x12", b"\x1a", b"\x42", b"\x22"):
            for cls in (wire.ExecRequest, wire.SystemInfo, wire.ListContainersResponse):
                for size in (b"\xff\xff\xff\xff\x07", b"\xff\xff\xff\x7f"):
                    with pytest.raises(wire.DecodeError):
                        cls.decode(tag + size + b"abc")

    work()
    assert peak_of(work) < 256 * 1024


def test_a_large_frame_in_small_pieces_is_whole_and_its_memory_goes_with_it() -> None:
    payload = bytes(range(256)) * 4096 * 8  # 8 MiB
    frame = wire.encode_frame(0x1020, payload)
    decoder = wire.FrameDecoder(version=1)
    for at in range(0, len(frame), 1000):
        assert decoder.next_frame() is None
        decoder.feed(frame[at : at + 1000])
    whole = decoder.next_frame()
    assert whole is not None
    assert whole.payload == payload
    assert decoder.buffered == 0
    assert decoder.__sizeof__() < 100 * 1024


def test_a_frame_fed_byte_by_byte_is_no_quadratic_work() -> None:
    # Moving what is there at every byte would be 128 GiB of copying: a hang.
    frame = wire.encode_frame(1, bytes(512 * 1024))
    decoder = wire.FrameDecoder(version=1)
    for byte in frame:
        decoder.feed(bytes([byte]))
        decoder.next_frame()
    assert decoder.buffered == 0


def test_a_decoder_holds_no_more_than_twice_what_it_was_fed() -> None:
    decoder = wire.FrameDecoder(version=1)
    frame = wire.encode_frame(1, bytes(1024 * 1024))
    for at in range(0, len(frame) - 1, 4096):
        decoder.feed(frame[at : min(at + 4096, len(frame) - 1)])
        assert decoder.__sizeof__() <= 2 * decoder.buffered + 8192

"""Frames: a stream of small ones as a socket delivers it, into typed messages and out again.

The rival of the decoding is upb behind the least Python that splits frames.  The goal was 15 times
alpha.1 (tokio, prost), which did 1.4 M/s where upb did at most 1.8 (0.56 us for a Ping alone, not
split); so it is 15 times upb here.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest

from arcbox_agent import wire
from benchmarks.conftest import Compare
from tests.reference.google import GOOGLE

#: A small frame, as in "small frames from a socket, typed" of alpha.1's measurement.
PING = wire.PingRequest(message="ping")
#: What one read of a socket brings at most here.
READ = 64 * 1024
COUNT = 50_000


def _reads(stream: bytes) -> list[bytes]:
    return [stream[at : at + READ] for at in range(0, len(stream), READ)]


def _typed(reads: list[bytes], version: Any) -> int:
    decoder = wire.FrameDecoder(version=version)
    count = 0
    for data in reads:
        decoder.feed(data)
        while messages := decoder.next_messages()[0]:
            count += len(messages)
    return count


def _typed_by_upb(reads: list[bytes]) -> int:
    """V1 frames, split by struct and parsed by google.protobuf."""
    classes = {1: GOOGLE["PingRequest"].FromString}
    header = struct.Struct(">II").unpack_from
    rest = b""
    count = 0
    for data in reads:
        data = rest + data
        at, end = 0, len(data)
        while end - at >= 8:
            length, number = header(data, at)
            if end - at - 4 < length:
                break
            classes[number](data[at + 8 : at + 4 + length])
            at += 4 + length
            count += 1
        rest = data[at:]
    return count


@pytest.mark.parametrize("version", [None, 1])
def test_small_frames_from_a_socket_typed(compare: Compare, version: int | None) -> None:
    count = 500 if compare.quick else COUNT
    reads = _reads(wire.encode_message(PING) * count)
    assert _typed(reads, version) == _typed_by_upb(reads) == count
    told = "version told" if version else "V1/V2 told apart"
    compare(
        f"small frames, typed, {told}",
        lambda: _typed(reads, version),
        lambda: _typed_by_upb(reads),
        15.0,
        rival_name="upb",
        unit="/s",
        per=count,
    )


def test_pings_answered_from_bytes_to_bytes(compare: Compare) -> None:
    count = 500 if compare.quick else COUNT
    reads = _reads(wire.encode_message(PING) * count)
    reply = bytes.fromhex("00000017000010010a0a706f6e673a2070696e671205302e312e30")

    def ours() -> int:
        decoder = wire.FrameDecoder()
        size = 0
        for data in reads:
            decoder.feed(data)
            out = bytearray()
            while wire.serve_pings(decoder, out, "0.1.0"):
                pass
            size += len(out)
        return size

    def frame_by_frame() -> int:
        decoder = wire.FrameDecoder()
        size = 0
        for data in reads:
            decoder.feed(data)
            out = bytearray()
            while frame := decoder.next_frame():
                request = wire.PingRequest.decode(frame.payload)
                answer = wire.PingResponse(message=f"pong: {request.message}", version="0.1.0")
                out += wire.encode_message(answer, frame.trace_id)
            size += len(out)
        return size

    assert ours() == frame_by_frame() == len(reply) * count
    compare(
        "pings, bytes to bytes",
        ours,
        frame_by_frame,
        5.0,
        rival_name="frame by frame",
        unit="/s",
        per=count,
    )


def test_large_frames_in_small_pieces(compare: Compare) -> None:
    """What a frame of 16 MiB costs in pieces of 64 KiB, against joining them."""
    size = (1 if compare.quick else 16) * 1024 * 1024 - 64
    frame = wire.encode_frame(0x1020, wire.ExecOutput(stream="stdout", data=bytes(size)).encode())
    reads = _reads(frame)

    def ours() -> int:
        decoder = wire.FrameDecoder()
        for data in reads:
            assert decoder.next_frame() is None
            decoder.feed(data)
        whole = decoder.next_frame()
        assert whole is not None
        return len(whole.payload)

    assert ours() == len(frame) - 8
    compare(
        "16 MiB frame in 64 KiB reads",
        ours,
        lambda: len(bytes(bytearray().join(reads)[8:])),
        0.3,
        rival_name="join + slice",
        unit="B/s",
        per=len(frame),
    )

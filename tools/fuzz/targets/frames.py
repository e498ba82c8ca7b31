"""_frames: a stream in pieces.  The plain rules are the judge; nothing but FrameError comes out.

data: how the decoder is made, how the stream is cut, then the stream
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

from arcbox_agent import wire
from tests.reference import frames as plain
from tests.wire.test_vectors import VECTORS
from tools.fuzz.target import Target

FAILURES = {
    wire.FrameTooShortError: "too short",
    wire.FrameTooLargeError: "too large",
    wire.TraceLengthError: "trace",
    wire.TruncatedFrameError: "truncated",
}
LIMIT = 4096
VERSIONS: tuple[Literal[1, 2] | None, ...] = (None, 1, 2, None)

Found = tuple[list[tuple[int, int, str | None, bytes]], str]


def stream() -> bytes:
    return b"".join(
        wire.encode_message(message, trace)
        for message, _ in VECTORS
        if message.TYPE is not None
        for trace in (None, "", "trace")
    )


def corpus() -> list[bytes]:
    whole = stream()
    heads = (b"\x00\x13", b"\x01\x17", b"\x02\x21", b"\x03\x30")
    return [head + whole[at : at + size] for head in heads for at, size in ((0, 60), (0, 150), (90, 90), (0, 600))]


def decode(
    pieces: list[bytes], version: Literal[1, 2] | None, batch: int, kind: type[bytes] | type[bytearray]
) -> Found:
    """Frames and failure; `batch`: so many at a time as messages, where they are any."""
    decoder = wire.FrameDecoder(max_frame_size=LIMIT, version=version)
    frames: list[tuple[int, int, str | None, bytes]] = []
    fed = 0
    try:
        for piece in pieces:
            decoder.feed(kind(piece))
            fed += len(piece)
            while True:
                if batch:
                    messages, told, trace = decoder.next_messages(batch)
                    assert len(messages) <= batch
                    frames += [(message.TYPE or 0, told, trace, message.encode()) for message in messages]
                    if messages:
                        continue
                frame = decoder.next_frame()
                if frame is None:
                    break
                frames.append((frame.type, frame.version, frame.trace_id, frame.payload))
            assert decoder.buffered <= fed
            # As much as was fed, and no more than that again.
            assert decoder.__sizeof__() <= 2 * fed + 16384
        decoder.eof()
    except wire.FrameError as error:
        return frames, FAILURES[type(error)]
    return frames, ""


def run(data: bytes, thorough: bool) -> Hashable:
    if len(data) < 2:
        return None
    version = VERSIONS[data[0] & 3]
    whole = data[2:]
    step = data[1] + 1
    pieces = [whole[at : at + step] for at in range(0, len(whole), step)]
    at_once = decode([whole], version, 0, bytes)
    assert decode(pieces, version, 0, bytearray if data[0] & 4 else bytes) == at_once
    if thorough:
        frames, wrong = plain.split(whole, LIMIT, version)
        assert at_once == (frames, wrong)
        taken, failure = decode(pieces, version, data[0] >> 4, bytes)
        assert failure == wrong
        assert [(number, told, trace) for number, told, trace, _ in taken] == [one[:3] for one in frames]
        for one in frames:
            encoded = wire.encode_frame(one.type, one.payload, one.trace_id)
            assert decode([encoded], 2 if one.version == 2 else 1, 0, bytes) == ([one], "")
    return at_once[1], min(len(at_once[0]), 5), version, len(whole).bit_length()


TARGET = Target(run, corpus, words=[stream()[:40], b"\0\0\0\4\0\0\0\1", b"\0\0\0\6\0\0\0\1\0\0"], share=35)

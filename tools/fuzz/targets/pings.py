"""_pings: plain pings answered from a stream's bytes, by turns with the frames that are none.

data: how many at a time, how the stream is cut, then the stream
"""

from __future__ import annotations

from collections.abc import Hashable

from arcbox_agent import wire
from tests.reference import frames as plain
from tools.fuzz.target import Target
from tools.fuzz.targets.frames import FAILURES, LIMIT
from tools.fuzz.targets.frames import corpus as frames

VERSION = "0.1.0"

#: Bytes of the two times in a reply, at most.
TIMES = 24


def pings() -> bytes:
    return b"".join(
        wire.encode_message(wire.PingRequest(message=text, timestamp_secs=clock, timed=len(text) % 3 == 2), trace)
        for text in ("", "hi", "h\u00e9llo", "x" * 130)
        for trace in (None, "", "trace")
        for clock in (0, 0, 7)
    )


def corpus() -> list[bytes]:
    whole = pings()
    return [
        b"\x02\x00" + whole[:250],
        b"\x04\x63" + whole[250:],
        b"\xff\x11" + whole[:80],
        b"\1\0" + whole[:60],
        frames()[0],
    ]


def run(data: bytes, thorough: bool) -> Hashable:
    if len(data) < 2:
        return None
    limit, step, whole = data[0] % 9 + 1, data[1] or 1 << 16, data[2:]
    decoder = wire.FrameDecoder(max_frame_size=LIMIT)
    out = bytearray(b"before")
    found: list[plain.PlainFrame | None] = []  # None: a ping that was answered
    failure = ""
    try:
        for at in range(0, len(whole), step):
            decoder.feed(whole[at : at + step])
            while True:
                served = wire.serve_pings(decoder, out, VERSION, limit)
                assert 0 <= served <= limit
                found += [None] * served
                if served:
                    continue
                frame = decoder.next_frame()
                if frame is None:
                    break
                found.append(plain.PlainFrame(frame.type, frame.version, frame.trace_id, frame.payload))
        decoder.eof()
    except wire.FrameError as error:
        failure = FAILURES[type(error)]
    served = found.count(None)
    # What goes out is what came in, and at most so much more.
    assert out.startswith(b"before") and len(out) <= 6 + len(whole) + served * (len(VERSION) + 16 + TIMES)
    if thorough:
        judge(whole, found, failure, bytes(out[6:]))
    return failure, min(served, 4), min(len(found), 6)


def judge(whole: bytes, found: list[plain.PlainFrame | None], failure: str, out: bytes) -> None:
    """The frames of the plain rules; to each ping, and to no other frame, its answer."""
    frames, wrong = plain.split(whole, LIMIT)
    assert failure == wrong and len(found) == len(frames)
    answers = plain.split(out, 1 << 30)[0]
    expected = b""
    for frame, taken in zip(frames, found, strict=True):
        if taken is not None:
            assert taken == frame
            continue
        request = wire.PingRequest.decode(frame.payload)
        text = f"pong: {request.message}" if request.message else "pong"
        asked = wire.PingRequest(message=request.message, timed=request.timed)
        assert frame.type == wire.PingRequest.TYPE and request == asked
        told = wire.PingResponse.decode(answers.pop(0).payload)
        answer = wire.PingResponse(message=text, version=VERSION)
        if request.timed:
            answer.time_ns, answer.monotonic_ns = told.time_ns, told.monotonic_ns
            assert told.time_ns > 0 and told.monotonic_ns > 0
        expected += wire.encode_message(answer, frame.trace_id)
    assert out == expected


TARGET = Target(run, corpus, words=[pings()[:20], b"\0\0\0\4\0\0\0\1", b"\x0a\x02hi"], share=25)

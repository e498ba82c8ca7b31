"""_log_output: entries as frames and as text, and frames that are given a trace id.

data: 0    a trace id, then frames of another's making
      1..  options, then a log: its frames are what the wire's own encoder makes of its entries
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from arcbox_agent import _log_output, _logs, wire
from tools.fuzz.draw import Draw
from tools.fuzz.target import Target
from tools.fuzz.targets.lines import LINES
from tools.fuzz.targets.logs import at_once, file_of


def frame(entry: _log_output.Entry, trace: str | None) -> bytes:
    """What is sent of an entry: V1 without a trace id, V2 with one."""
    stamp: Any = entry.timestamp
    if trace is None:
        return wire.encode_message(
            wire.LogEntry(stream=entry.stream, data=entry.data, timestamp=stamp, partial=entry.partial)
        )
    seconds, nanos = divmod(stamp, 10**9)
    stamp = wire.Timestamp(seconds=seconds, nanos=nanos) if stamp else None
    return wire.encode_message(
        wire.LogEntryV2(stream=entry.stream, data=entry.data, timestamp=stamp, partial=entry.partial), trace
    )


def corpus() -> list[bytes]:
    entries = [_log_output.Entry("stdout", b"hello", 1795455912255151664), _log_output.Entry("stderr", b"", 0, True)]
    frames = b"".join(frame(entry, "") for entry in entries)
    return [
        b"\0\2ab" + frames,
        b"\0\0" + frames * 5,
        b"\0\1x" + frames[:-1],
        *(bytes([1 + index % 7, index]) + b"\n".join(LINES[index : index + 3]) for index in range(len(LINES))),
    ]


def run(data: bytes, thorough: bool) -> Hashable:
    draw = Draw(data)
    if draw.byte() % 4 == 0:
        return retraced(draw.block(), draw.rest())
    bits = draw.byte()
    mode, trace = (("v1", None), ("v2", "trace"), ("v2", ""), ("text", None))[bits & 3]
    timestamps = bool(bits & 4)
    content = draw.rest()
    engine = _logs.Engine(mode, timestamps=timestamps, trace=(trace or "").encode())
    fd = file_of(content)
    output = bytes(engine.read(fd)[1] + engine.finish(fd))
    entries = at_once(fd, {"timestamps": timestamps}, 1 << 20)
    if mode == "text":
        expected = b"".join(entry.data + (b"" if entry.partial else b"\n") for entry in entries)
    else:
        expected = b"".join([frame(entry, trace) for entry in entries])
    assert output == expected
    if trace == "":
        assert _log_output.with_trace(output, b"abc") == b"".join([frame(entry, "abc") for entry in entries])
    if thorough:
        for entry in entries:
            other = _log_output.Entry(entry.stream, entry.data, entry.timestamp, entry.partial)
            assert other == entry and repr(other) == repr(entry)
    return bits & 7, min(len(entries), 4), len(output).bit_length()


def retraced(trace: bytes, frames: bytes) -> Hashable:
    """Each frame with the trace id; ValueError where they are not whole, or have one already."""
    expected: bytearray | None = bytearray()
    rest = frames
    count = 0
    while rest:
        size = int.from_bytes(rest[:4], "big")
        if len(rest) < 10 or size < 6 or len(rest) < 4 + size or rest[8:10] != b"\0\0":
            expected = None
            break
        assert expected is not None
        expected += (size + len(trace)).to_bytes(4, "big") + rest[4:8] + len(trace).to_bytes(2, "big") + trace
        expected += rest[10 : 4 + size]
        rest = rest[4 + size :]
        count += 1
    try:
        found = _log_output.with_trace(frames, trace)
    except ValueError:
        assert expected is None
        return "refused", min(count, 4)
    assert expected is not None and found == bytes(expected)
    return "retraced", min(count, 4), len(trace).bit_length()


TARGET = Target(run, corpus, words=[b"\n", b"\0\0\0\x06\0\0\x10\x21\0\0"], share=20)

"""The frame rules in plain, slow Python: the judge of FrameDecoder."""

from __future__ import annotations

from typing import NamedTuple


class PlainFrame(NamedTuple):
    type: int
    version: int
    trace_id: str | None
    payload: bytes


def split(stream: bytes, limit: int, version: int | None = None) -> tuple[list[PlainFrame], str]:
    """The frames of a whole stream, and what is wrong after them ("" where nothing is)."""
    frames: list[PlainFrame] = []
    while stream:
        if len(stream) < 4:
            return frames, "truncated"
        length = int.from_bytes(stream[:4], "big")
        if length > limit:
            return frames, "too large"
        if length < (6 if version == 2 else 4):
            return frames, "too short"
        told = version
        if told is None:
            if length == 4:
                told = 1
            elif len(stream) < 9:
                return frames, "truncated"
            else:
                told = 2 if stream[8] < 8 else 1
        if told == 2 and length < 6:
            return frames, "too short"
        trace_id = None
        start = 8
        if told == 2 and len(stream) >= 10:
            size = int.from_bytes(stream[8:10], "big")
            if size > length - 6:
                return frames, "trace"
            trace_id = stream[10 : 10 + size].decode("utf-8", "surrogateescape")
            start = 10 + size
        if len(stream) < 4 + length:
            return frames, "truncated"
        number = int.from_bytes(stream[4:8], "big")
        frames.append(PlainFrame(number, told, trace_id, stream[start : 4 + length]))
        stream = stream[4 + length :]
    return frames, ""

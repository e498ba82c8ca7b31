"""The heads of ExecOutput frames whose data goes from a pipe to the socket inside the kernel.

    u32 length | u32 type | trace id (V2) | field `stream` | tag and size of `data` |  data
    └───────────────────────── head ───────────────────────────────────────────────┘  spliced

Frames that carry more are made by the generated classes; a test compares both.
"""

from __future__ import annotations

from arcbox_agent.wire import ExecOutput

_TYPE = ExecOutput.TYPE.to_bytes(4, "big")
#: What comes before the size of the data.
_DATA_TAG = ExecOutput(data=b"x").encode()[:-2]

#: The longest trace id that a V2 frame can name.
_LONGEST_TRACE = 0xFFFF


class FrameHeads:
    """For the reply to one request: in its version, with its trace id."""

    __slots__ = ("_streams", "_trace")

    def __init__(self, trace_id: str | None) -> None:
        # surrogateescape: as the decoder gave it, so one that is not UTF-8 is echoed as it came.
        trace = b"" if trace_id is None else trace_id.encode("utf-8", "surrogateescape")[:_LONGEST_TRACE]
        self._trace = b"" if trace_id is None else len(trace).to_bytes(2, "big") + trace
        self._streams: dict[str, bytes] = {}

    def head(self, stream: str, size: int) -> bytes:
        """What comes before `size` bytes of data."""
        field = self._streams.get(stream)
        if field is None:
            field = self._streams[stream] = ExecOutput(stream=stream).encode() + _DATA_TAG
        body = field + _varint(size)
        length = 4 + len(self._trace) + len(body) + size
        return length.to_bytes(4, "big") + _TYPE + self._trace + body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)

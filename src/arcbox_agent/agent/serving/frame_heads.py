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

#: The fields of each stream before that.
_FIELDS = {stream: ExecOutput(stream=stream).encode() + _DATA_TAG for stream in ("stdout", "stderr")}

#: The longest trace id that a V2 frame can name.
_LONGEST_TRACE = 0xFFFF


def head(trace_id: str | None, stream: str, size: int) -> bytes:
    """What comes before `size` bytes of data, in the version and with the trace id of the request."""
    trace = b""
    if trace_id is not None:
        # surrogateescape: as the decoder gave it, so one that is not UTF-8 is echoed as it came.
        trace = trace_id.encode("utf-8", "surrogateescape")[:_LONGEST_TRACE]
        trace = len(trace).to_bytes(2, "big") + trace
    body = _FIELDS[stream] + _varint(size)
    return (4 + len(trace) + len(body) + size).to_bytes(4, "big") + _TYPE + trace + body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)

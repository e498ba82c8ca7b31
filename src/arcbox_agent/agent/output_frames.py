"""Frames of ExecOutput around bytes that already lie in place: a command's output is never copied.

    buffer   | ... frame head | stream, tag and length of data | data (read from the pipe) |
                              ^ right-aligned against the data

The messages of the same shape that carry more (the last one, a unary reply) are made
by the generated classes; a test compares both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from arcbox_agent.message_types import MessageType

if TYPE_CHECKING:
    from typing import Final

#: One read of a pipe: what a pipe holds after it was widened is four of these.
CHUNK: Final = 256 << 10

#: Room for a head with the longest trace id that a V2 frame can name.
_LONGEST_TRACE: Final = 0xFFFF
_TYPE: Final = int(MessageType.EXEC_OUTPUT).to_bytes(4, "big")


class OutputFrames:
    """A buffer to read into, and the frames around what was read."""

    __slots__ = ("_buffer", "_heads", "_offset", "_trace", "_view", "room")

    def __init__(self, trace_id: str | None) -> None:
        if trace_id is None:
            self._trace = b""
        else:
            trace = trace_id.encode()[:_LONGEST_TRACE]
            self._trace = len(trace).to_bytes(2, "big") + trace
        self._heads: dict[str, bytes] = {}
        self._offset = 8 + len(self._trace) + 64
        self._buffer = bytearray(self._offset + CHUNK)
        self._view = memoryview(self._buffer)
        #: Where to read to.
        self.room = self._view[self._offset :]

    def frame(self, stream: str, size: int) -> memoryview:
        """The whole frame of the first `size` bytes of `room`.  Valid until the next read."""
        head = self._heads.get(stream)
        if head is None:
            name = stream.encode()
            head = self._heads[stream] = b"\x0a" + _varint(len(name)) + name + b"\x12"
        body = head + _varint(size)
        length = 4 + len(self._trace) + len(body) + size
        head = length.to_bytes(4, "big") + _TYPE + self._trace + body
        start = self._offset - len(head)
        self._buffer[start : self._offset] = head
        return self._view[start : self._offset + size]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)

"""Frames of ExecOutput around bytes that already lie in place: a command's output is never copied.

    buffer   | ... frame head | stream, tag and length of data | data (read from the pipe) |
                              ^ right-aligned against the data

What comes before the data is what the generated class writes: no tag is known here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from arcbox_agent.wire import ExecOutput, encode_frame

if TYPE_CHECKING:
    from typing import Final

#: One read of a pipe: what a pipe holds after it was widened is four of these.
CHUNK: Final = 256 << 10

_LENGTH_SIZE: Final = 4  # of a frame
_MAX_VARINT: Final = 5  # of the length of the data
_MAX_STREAM: Final = 64  # room for the field before the data

#: Tag of the data field: what precedes the length of the one byte.
_DATA_TAG: Final = ExecOutput(data=b"\0").encode()[:-2]


class OutputFrames:
    """A buffer to read into, and the frames around what was read."""

    __slots__ = ("_buffer", "_head", "_heads", "_offset", "_view", "room")

    def __init__(self, trace_id: str | None) -> None:
        assert ExecOutput.TYPE is not None
        #: Type and trace id, which follow the length in every frame.
        self._head = encode_frame(ExecOutput.TYPE, b"", trace_id)[_LENGTH_SIZE:]
        self._heads: dict[str, bytes] = {}
        self._offset = _LENGTH_SIZE + len(self._head) + _MAX_STREAM + len(_DATA_TAG) + _MAX_VARINT
        self._buffer = bytearray(self._offset + CHUNK)
        self._view = memoryview(self._buffer)
        #: Where to read to.
        self.room = self._view[self._offset :]

    def frame(self, stream: str, size: int) -> memoryview:
        """The whole frame of the first `size` bytes of `room`.  Valid until the next read."""
        head = self._heads.get(stream)
        if head is None:
            head = self._heads[stream] = self._head + ExecOutput(stream=stream).encode() + _DATA_TAG
        head += _varint(size)
        start = self._offset - len(head) - _LENGTH_SIZE
        length = len(head) + size
        self._buffer[start : self._offset] = length.to_bytes(_LENGTH_SIZE, "big") + head
        return self._view[start : self._offset + size]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)

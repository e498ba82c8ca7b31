"""New inputs from old ones: bytes, lengths and varints changed, pieces cut, doubled and exchanged."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tools.fuzz.record import MOST

#: Of a corpus, beside the inputs it began with.
KEPT = 4096

_BYTES = bytes([0, 1, 2, 7, 8, 0x0A, 0x20, 0x22, 0x5C, 0x7B, 0x7F, 0x80, 0xC2, 0xE2, 0xED, 0xF0, 0xFE, 0xFF])

#: Varints as no writer makes them, too: padded, over-long, over-wide.
_VARINTS = [
    b"\x00", b"\x01", b"\x7f", b"\x80\x01", b"\xff\x7f", b"\x80\x80\x01", b"\xff\xff\x03", b"\xff\xff\xff\xff\x07",
    b"\x80\x80\x80\x80\x08", b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x80\x10", b"\x80" * 9 + b"\x01",
    b"\xff" * 9 + b"\x01", b"\xff" * 9 + b"\x7f", b"\x80" * 10 + b"\x00", b"\x80\x00", b"\x80\x80\x80\x00",
    b"\x03", b"\x0b", b"\x0c", b"\x04",
]  # fmt: skip

#: Lengths and counts of four and of eight bytes, both ways round.
_FIXED = [
    number.to_bytes(size, order)
    for number in (0, 1, 3, 4, 5, 6, 7, 8, 64, 255, 256, 4096, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
    for size in (4, 8)
    for order in ("big", "little")
] + [((1 << bits) - 1).to_bytes(8, "little") for bits in (32, 63, 64)]


class Mutator:
    """Gives one input after the other; the same ones for the same seed, corpus and kept inputs."""

    def __init__(self, generator: random.Random, corpus: Sequence[bytes], words: Sequence[bytes]) -> None:
        self._random = generator.random
        self.corpus = [data[:MOST] for data in corpus] or [b""]
        self._pieces = [*_VARINTS, *_FIXED, *words]
        self._words = [*words] or _VARINTS
        self._room = len(self.corpus) + KEPT
        self._changes = [
            self._set, self._set, self._flip, self._flip, self._tame, self._add, self._cut, self._end, self._double,
            self._piece_in, self._piece_over, self._word_in, self._splice, self._move, self._noise,
        ]  # fmt: skip

    def keep(self, data: bytes) -> None:
        """An input of a new kind: others will be made from it."""
        if len(self.corpus) < self._room:
            self.corpus.append(data)

    def next(self) -> bytes:
        draw = self._random
        data = bytearray(self.corpus[int(draw() * len(self.corpus))])
        changes = self._changes
        # 1 to 8, mostly one or two: of what is changed much, most is refused by its first bytes.
        for _ in range(1 + int(draw() * draw() * draw() * 8)):
            changes[int(draw() * len(changes))](data)
        return bytes(data) if len(data) <= MOST else bytes(data[:MOST])

    def _place(self, data: bytearray) -> int:
        return int(self._random() * len(data))

    def _size(self) -> int:
        """Mostly small."""
        draw = self._random
        return 1 + int(draw() * draw() * draw() * 300)

    def _set(self, data: bytearray) -> None:
        if data:
            data[self._place(data)] = int(self._random() * 256)

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._place(data)] ^= 1 << int(self._random() * 8)

    def _tame(self, data: bytearray) -> None:
        if data:
            data[self._place(data)] = _BYTES[int(self._random() * len(_BYTES))]

    def _add(self, data: bytearray) -> None:
        """One more or less: lengths and counts are off by one."""
        if data:
            at = self._place(data)
            data[at] = data[at] + (1 if self._random() < 0.5 else -1) & 0xFF

    def _cut(self, data: bytearray) -> None:
        at = self._place(data)
        del data[at : at + self._size()]

    def _end(self, data: bytearray) -> None:
        del data[self._place(data) :]

    def _double(self, data: bytearray) -> None:
        at = self._place(data)
        piece = data[at : at + self._size()]
        times = 1 if self._random() < 0.9 else int(self._random() * 40)
        data[at:at] = piece * times

    def _piece_in(self, data: bytearray) -> None:
        at = self._place(data)
        data[at:at] = self._pieces[int(self._random() * len(self._pieces))]

    def _piece_over(self, data: bytearray) -> None:
        at = self._place(data)
        piece = self._pieces[int(self._random() * len(self._pieces))]
        data[at : at + len(piece)] = piece

    def _word_in(self, data: bytearray) -> None:
        at = self._place(data)
        data[at:at] = self._words[int(self._random() * len(self._words))]

    def _splice(self, data: bytearray) -> None:
        """What follows is another input's."""
        other = self.corpus[int(self._random() * len(self.corpus))]
        data[self._place(data) :] = other[int(self._random() * len(other)) :]

    def _move(self, data: bytearray) -> None:
        at, to, size = self._place(data), self._place(data), self._size()
        data[to : to + size] = data[at : at + size]

    def _noise(self, data: bytearray) -> None:
        at = self._place(data)
        data[at : at + 4] = int(self._random() * (1 << 32)).to_bytes(4, "little")

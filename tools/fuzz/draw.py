"""Values out of an input's bytes, for parts that take calls rather than bytes.

Everything is taken from the front; where nothing is left the values are zero, so every input
means something and a shorter one means less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")

#: Where ranges end, in one integer type or another.
EDGES = [
    0, 1, -1, 2, 127, 128, 255, 256, 16383, 16384, 65535, 65536, (1 << 31) - 1, 1 << 31, -(1 << 31), -(1 << 31) - 1,
    (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, -(1 << 63), -(1 << 63) - 1, (1 << 64) - 1, 1 << 64, 1 << 200,
]  # fmt: skip


class Draw:
    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    @property
    def more(self) -> bool:
        return self.at < len(self.data)

    def byte(self) -> int:
        at = self.at
        self.at = at + 1
        return self.data[at] if at < len(self.data) else 0

    def chance(self, one_in: int) -> bool:
        """Never where nothing is left."""
        return self.byte() % one_in == one_in - 1

    def choice(self, items: Sequence[Item]) -> Item:
        return items[self.byte() % len(items)]

    def number(self, size: int = 4) -> int:
        """Unsigned, of at most `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def integer(self) -> int:
        """Of any size, most often at the end of a range."""
        kind = self.byte()
        if kind < 160:
            return EDGES[kind % len(EDGES)]
        return int.from_bytes(self.take(1 + kind % 9), "little", signed=True)

    def take(self, size: int) -> bytes:
        taken = self.data[self.at : self.at + size]
        self.at += size
        return taken

    def block(self) -> bytes:
        """Up to 255 bytes, the first byte saying how many."""
        return self.take(self.byte())

    def rest(self) -> bytes:
        return self.take(len(self.data))

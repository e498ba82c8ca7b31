"""What a worker and the process that watches it share: a count, and the input that runs now.

    0            8         12     16       24
    | executions | length  |      | worked | input ...

`worked`: seconds on a processor, told now and then.

It is a mapped file, so the input that ended the worker is there afterwards, whatever ended it.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

#: Executions and length.
NOTE = struct.Struct("<QI")
HEAD = 24
WORKED = struct.Struct("<d")
#: The longest input, bytes.
MOST = 65536


class Record:
    """`create`: an empty one is made; else the one at `path` is opened."""

    def __init__(self, path: Path, create: bool = False) -> None:
        with open(path, "w+b" if create else "r+b") as file:
            if create:
                file.truncate(HEAD + MOST)
            self._map = mmap.mmap(file.fileno(), HEAD + MOST)

    def note(self, executions: int, data: bytes) -> None:
        """`data` is about to run, after so many others."""
        size = len(data)
        NOTE.pack_into(self._map, 0, executions, size)
        self._map[HEAD : HEAD + size] = data

    @property
    def executions(self) -> int:
        return int(NOTE.unpack_from(self._map)[0])

    @property
    def worked(self) -> float:
        return float(WORKED.unpack_from(self._map, 16)[0])

    @worked.setter
    def worked(self, seconds: float) -> None:
        WORKED.pack_into(self._map, 16, seconds)

    @property
    def data(self) -> bytes:
        size = NOTE.unpack_from(self._map)[1]
        return self._map[HEAD : HEAD + size]

    def close(self) -> None:
        self._map.close()

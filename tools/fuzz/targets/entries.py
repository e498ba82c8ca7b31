"""_entries: the scan of passwd and group files.

    data: how many columns, the name, then the file

The judge: what a simple scan by split() finds.
"""

from __future__ import annotations

from collections.abc import Hashable

from arcbox_agent import _entries
from tools.fuzz.draw import Draw
from tools.fuzz.target import Target

MOST_COLUMNS = 7


def corpus() -> list[bytes]:
    passwd = b"root:x:0:0:root:/root:/bin/sh\nal:x:41:42::/home/al:/bin/sh\n41:x:43:44::/odd:/bin/sh"
    group = b"root:x:0:\none:x:51:al\ntwo:x:52:bob,al\ntwice:x:51:al\n-:x:4294967295:al\n:x:99999999999:al,"
    return [b"\3\1\2al" + passwd, b"\3\0\00241" + passwd, b"\0\1\2al" + group, b"\1\1\0" + group]


def run(data: bytes, thorough: bool) -> Hashable:
    draw = Draw(data)
    columns = 3 + draw.byte() % 5
    by_number = bool(draw.byte() % 2)
    name = draw.block()
    file = draw.rest()
    rows = [line.split(b":", MOST_COLUMNS - 1) for line in file.split(b"\n")]
    whole = [row for row in rows if len(row) >= columns]
    wanted = [row for row in whole if row[0] == name] or [row for row in whole if by_number and row[2] == name]
    found = _entries.find(file, name, columns, by_number)
    assert found == (wanted[0] if wanted else None)
    groups = _entries.groups_of(file, name, 65536)
    assert groups == tuple(
        dict.fromkeys(
            int(row[2])
            for row in rows
            if len(row) >= 4
            and row[2].isdigit()
            and len(row[2]) <= 10
            and int(row[2]) < 0xFFFFFFFF
            and name in row[3].split(b",")
        )
    )
    assert _entries.groups_of(file, name, 1) == groups[:1]
    return found is not None, min(len(groups), 3), columns


TARGET = Target(run, corpus)

"""_entries: passwd and group files of a container's making, and who is in them.

data: how many columns, a name, then the file.  The judge splits the lines.
"""

from __future__ import annotations

from collections.abc import Hashable

from arcbox_agent import _entries
from tools.fuzz.draw import Draw
from tools.fuzz.target import Target

NO_GROUP = (1 << 32) - 1
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/a:b\n#web\n\nshort:x\n0:x:5:5::/:\n"
GROUP = b"root:x:0:\nadm:x:4:web,root\nbig:x:4294967295:web\nstaff:x:50:web,,x\nadm:x:4:web\nbad:x:5z:web\nlast:x:7:web"


def corpus() -> list[bytes]:
    return [
        *(bytes([columns, len(name)]) + name + PASSWD for columns in (0, 4) for name in (b"web", b"0", b"", b"1000")),
        *(bytes([9, len(name)]) + name + GROUP for name in (b"web", b"root", b"")),
        bytes([12, 3]) + b"web" + GROUP,
    ]


def run(data: bytes, thorough: bool) -> Hashable:
    draw = Draw(data)
    bits, name, file = draw.byte() % 16, draw.block(), draw.rest()
    lines = file.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    entries = [line.split(b":", 6) for line in lines]
    if bits < 8:
        columns, by_number = 3 + bits % 5, bool(bits & 1)
        whole = [entry for entry in entries if len(entry) >= columns]
        named = [entry for entry in whole if entry[0] == name]
        numbered = [entry for entry in whole if by_number and entry[2] == name]
        found = _entries.find(file, name, columns, by_number)
        assert found == next(iter(named or numbered), None)
        return "find", found is not None, bool(named), min(len(lines), 5)
    most = (1, 2, 3, 65536)[bits & 3]
    groups = [
        int(entry[2])
        for entry in entries
        if len(entry) >= 4 and is_number(entry[2]) and int(entry[2]) < NO_GROUP and name in entry[3].split(b",")
    ]
    assert _entries.groups_of(file, name, most) == tuple(dict.fromkeys(groups[:most]))
    return "groups", min(len(groups), 5), most


def is_number(text: bytes) -> bool:
    return 1 <= len(text) <= 10 and all(48 <= digit <= 57 for digit in text)


TARGET = Target(run, corpus, words=[b"\n", b":", b":x:", b",web", b"web:x:7:7:::\n", b"4294967294"], share=20)

"""_inotify: the events of a read, whatever is in it; and watches of a file that is there or is not.

data: events
"""

from __future__ import annotations

import os
import struct
from collections.abc import Hashable

from arcbox_agent import _inotify
from tools.fuzz.target import Target

EVENT = struct.Struct("<iIII")


def event(watch: int, mask: int, name: bytes = b"") -> bytes:
    padded = name.ljust(-(-(len(name) + 1) // 16) * 16, b"\0") if name else b""
    return EVENT.pack(watch, mask, 0, len(padded)) + padded


def corpus() -> list[bytes]:
    return [
        b"",
        event(1, _inotify.MODIFY) * 3 + event(2, _inotify.ATTRIB) + event(1, _inotify.DELETE_SELF),
        event(1, _inotify.CREATE, b"web.log") + event(1, _inotify.MOVED_TO, b"x" * 40) + event(3, _inotify.MODIFY),
        event(-1, _inotify.Q_OVERFLOW) + event(-2, _inotify.IGNORED) + event(7, 0),
        event(1, _inotify.CREATE, b"web.log")[:-3],
    ]


def parse(buffer: bytes) -> tuple[dict[int, int], list[tuple[int, int, bytes]]]:
    plain: dict[int, int] = {}
    named = []
    at = 0
    while len(buffer) - at >= EVENT.size:
        watch, mask, _, size = EVENT.unpack_from(buffer, at)
        at += EVENT.size
        if size > len(buffer) - at:
            break
        if size:
            named.append((watch, mask, buffer[at : at + size].partition(b"\0")[0]))
        else:
            plain[watch] = plain.get(watch, 0) | mask
        at += size
    return plain, named


def run(data: bytes, thorough: bool) -> Hashable:
    found = _inotify.parse(data)
    assert found == parse(data)
    if thorough and data:
        watch(data)
    return min(len(found[0]), 6), min(len(found[1]), 6), sum(len(name) for _, _, name in found[1]).bit_length()


def watch(data: bytes) -> None:
    """OSError, or a watch that can be taken away once and twice."""
    fd = _inotify.init()
    try:
        path = b"/dev" if data[0] & 1 else data[: data[0]].replace(b"\0", b"/")
        try:
            number = _inotify.add_watch(fd, os.fsdecode(path), int.from_bytes(data[:4], "little"))
        except OSError:
            return
        for _ in range(2):
            _inotify.remove_watch(fd, number)
        try:
            _inotify.parse(os.read(fd, 4096))
        except BlockingIOError:
            pass  # a watch for one event only has ended with it
    finally:
        os.close(fd)


TARGET = Target(run, corpus, words=[event(1, 2), event(1, 256, b"a")], share=40)

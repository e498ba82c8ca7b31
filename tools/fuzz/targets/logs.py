"""_logs: an engine on a file that grows, is cut and is exchanged, in every order of calls.

data: 16 bytes of options, then   0.. the content, read as it grows: the same as at once, and as the
                                      plain rules read it
                                  3   the content, and calls in an order of their own
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Hashable
from typing import Any

from arcbox_agent import _log_output, _logs
from tests.reference import logs as plain
from tools.fuzz.draw import Draw
from tools.fuzz.target import Target

_files: list[int] = []
#: A key that is spelled otherwise than it reads.
_ESCAPED_KEY = re.compile(rb'\\[^"]*"\s*:')
_NS = 1795455912255151664
OPTIONS = 16


def file_of(content: bytes) -> int:
    """A descriptor of a file with this content, until the next one is asked for."""
    if not _files:
        _files.append(os.memfd_create("log"))
    [fd] = _files
    os.ftruncate(fd, 0)
    os.pwrite(fd, content, 0)
    return fd


def corpus() -> list[bytes]:
    from tools.fuzz.targets.lines import LINES

    whole = b"\n".join(LINES)
    options = [
        bytes([0, 0, 0, 0, 5, 30]),
        bytes([0, 1, 1, 0, 1, 1, 200]),
        bytes([0, 6, 0, 3, 40]),
        bytes([0, 8, 0, 0, 99]),
        bytes([3, 0, 0, 0, 9, 1, 3, 2, 7, 8, 5, 6, 4, 2, 7, 1]),
    ]
    return [
        option.ljust(OPTIONS, b"\0") + text
        for option in options
        for text in (whole[:200], whole[200:] + b"\n", b"\n".join(LINES[1:5]) + b"\n", b"x\n\n")
    ]


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs) or any(not key.isascii() for key, _ in pairs):
        raise ValueError("the judge and the engine may read it otherwise")
    return dict(pairs)


def is_judged(content: bytes) -> bool:
    """Whether the plain rules have the last word on every line.

    Of JSON the engine looks at what it needs: it also takes lines that a strict parser refuses.
    """
    for line in content.split(b"\n"):
        line = line.lstrip(b"\0")  # a hole that a power failure left
        if line[:1] == b"{":
            try:
                json.loads(line.decode("utf-8", "surrogateescape"), strict=False, object_pairs_hook=_pairs)
            except (ValueError, RecursionError):
                return False
            if _ESCAPED_KEY.search(line):
                return False
    return True


def filters(draw: Draw) -> dict[str, Any]:
    """What a reader may ask for, mostly little."""
    bits = draw.byte()
    chosen: dict[str, Any] = {"timestamps": bool(bits & 1)}
    if bits & 2:
        chosen["stdout"] = bool(bits & 4)
    if bits & 8:
        chosen["stderr"] = False
    if bits & 16:
        chosen["since"] = _NS - 10**9 * (draw.byte() - 3)
    if bits & 32:
        chosen["until"] = _NS + 10**9 * (draw.byte() - 3)
    return chosen


def plainly(entries: list[_log_output.Entry]) -> list[plain.Entry]:
    return [plain.Entry(entry.stream, entry.data, entry.timestamp, entry.partial, gap_of(entry)) for entry in entries]


def gap_of(entry: _log_output.Entry) -> plain.Gap | None:
    gap = entry.gap
    return plain.Gap(gap.bytes, gap.lines, gap.at_least, gap.reason) if gap is not None else None


def at_once(fd: int, options: dict[str, Any], part_limit: int) -> list[_log_output.Entry]:
    engine = _logs.Engine(part_limit=part_limit, **options)
    entries: list[_log_output.Entry] = []
    status = _logs.MORE
    while status == _logs.MORE:
        status, output = engine.read(fd)
        entries += output
    assert status == _logs.END
    entries += engine.finish(fd)
    assert engine.entries == len(entries)
    return entries


def run(data: bytes, thorough: bool) -> Hashable:
    draw = Draw(data[:OPTIONS])
    content = data[OPTIONS:]
    mode = draw.byte() % 4
    if mode == 3:
        return in_any_order(draw, content)
    options = filters(draw)
    options["detail"] = draw.chance(2)
    part_limit = (1 << 20, 1, 7, 1 << 20)[draw.byte() % 4]
    entries = at_once(file_of(content), options, part_limit)
    engine = _logs.Engine(part_limit=part_limit, **options)
    grown: list[_log_output.Entry] = []
    fd = file_of(b"")
    at = 0
    for size in (*draw.take(4), len(content)):
        os.pwrite(fd, content[at : at + size], at)
        at += size
        status = _logs.MORE
        while status == _logs.MORE:
            status, output = engine.read(fd, target=1 + size % 3 * 100)
            grown += output
        assert status == _logs.END
        engine = engine.clone()
    grown += engine.finish(fd)
    told = plainly(grown)
    # A long text's parts go out as they come, so entries of different streams may change places.
    assert told == plainly(entries) or (part_limit < 8 and sorted(told, key=repr) == sorted(plainly(entries), key=repr))
    if thorough and is_judged(content):
        expected = plain.read([content], part_limit=part_limit, **options)
        assert sorted(told, key=repr) == sorted(expected, key=repr)
        assert part_limit < 8 or told == expected
    return mode, len(options), min(len(told), 8), sum(entry.partial for entry in told[:4]), part_limit


def in_any_order(draw: Draw, content: bytes) -> Hashable:
    """OSError at most, and places that are in the file, whatever is called when."""
    fd = file_of(content)
    size = len(content)
    engine = _logs.Engine(draw.choice(["entries", "v1", "v2", "text"]), trace=b"t" * (draw.byte() % 3))
    called = []
    while draw.more:
        call = draw.byte() % 10
        called.append(call)
        if call < 3:
            end = draw.byte() if call == 2 else None
            status, output = engine.read(fd, end=end, target=draw.byte(), budget=draw.byte(), nowait=call == 1)
            assert status in (_logs.MORE, _logs.END, _logs.BLOCKED, _logs.CHANGED)
            assert type(output) is type(engine.nothing)
        elif call == 3:
            engine.finish(fd)
        elif call == 4:
            engine.end_file(fd, draw.byte() or None)
        elif call == 5:
            engine.seek(draw.byte() % (size + 1), [draw.byte() for _ in range(3)] if draw.chance(2) else None)
        elif call == 6:
            size = draw.byte() % (len(content) + 1)
            os.ftruncate(fd, size)
        elif call == 7:
            os.pwrite(fd, content[: draw.byte()], size)
            size = os.fstat(fd).st_size
        elif call == 8:
            engine = engine.clone()
        else:
            engine.step_back() if draw.chance(2) else engine.cut()
        assert 0 <= engine.offset <= len(content) + 300 * len(called)
        assert engine.open in (True, False)
        assert engine.line_offset is None or engine.line_offset <= engine.offset
    return tuple(called[:4]), engine.entries


TARGET = Target(run, corpus, words=[b"\n", b"\n2026-11-23T17:45:12Z stderr F ", b"\n{", b"\n["], share=10)

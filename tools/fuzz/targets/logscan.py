"""_logscan: the last lines of a log in several files, and the place of a time.

data: 0   a time, and a piece of a large file that is overwritten: bisect
      1.. options, then the files, each after a byte 0xF5
"""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Hashable
from pathlib import Path

from arcbox_agent import _logs, _logscan
from arcbox_agent.logs.reader import LogReader, Options
from tests.reference import logs as plain
from tools.fuzz.draw import Draw
from tools.fuzz.target import Target
from tools.fuzz.targets.lines import LINES
from tools.fuzz.targets.logs import file_of, filters, is_judged, plainly

NEXT = b"\xf5"
_places: list[Path] = []
_large: list[tuple[int, bytes, list[int], list[int]]] = []


def corpus() -> list[bytes]:
    whole = b"\n".join(LINES)
    return [
        b"\1\1\0\0" + whole,
        b"\2\3\2\0" + whole[:150] + b"\n" + NEXT + whole[150:400] + NEXT + whole[400:],
        b"\3\2\0\1" + b"\n".join(LINES[1:4]) + b"\n" + NEXT + b"\n".join(LINES[1:2]) + b"\n",
        b"\1\5\x10\5\0" + whole + b"\n" + NEXT + b"",
        b"\0\0\x10\x27\0\0\0\0",
        b"\0\1\x10\x27\0\0\x80\x3e" + LINES[0] + b"\n" + LINES[-1],
    ]


def run(data: bytes, thorough: bool) -> Hashable:
    draw = Draw(data)
    if draw.byte() % 4 == 0:
        return placed(draw, thorough)
    tail, options, unended = draw.byte() % 12 + 1, filters(draw), draw.byte() % 2 == 0
    files = draw.rest().split(NEXT)[:4]
    if not thorough:
        return scanned(files[0], tail, options, unended)
    timestamps = options.pop("timestamps")
    if not _places:
        _places.append(Path(tempfile.mkdtemp()) / "web.log")
    [path] = _places
    for number in range(4):
        place = Path(f"{path}.{number}") if number else path
        if number < len(files):
            place.write_bytes(files[-1 - number])
        else:
            place.unlink(missing_ok=True)
    reader = LogReader(str(path), Options(tail=tail, timestamps=timestamps, **options), unended=unended)
    entries = []
    while (piece := reader.step()) is not None:
        entries += piece
    reader.close()
    expected = plain.read(files, tail=tail, unended=unended, timestamps=timestamps, detail=True, **options)
    assert plainly(entries) == expected or not all(map(is_judged, files))
    return len(files), min(len(expected), 4), len(options)


def scanned(content: bytes, tail: int, options: dict[str, object], unended: bool) -> Hashable:
    """Places inside the file, each a line's beginning; as many as the whole file's where it has no more lines."""
    fd = file_of(content)
    kept = {name: value for name, value in options.items() if name != "timestamps"}
    scan = _logscan.TailScan(tail, unended=unended, **kept)  # type: ignore[arg-type]
    scan.open(len(content))
    status = _logs.MORE
    while status == _logs.MORE:
        status = scan.step(fd, budget=1)
    assert status == _logs.END
    for file, offset in scan.starts:
        assert file == 0 and 0 <= offset <= len(content)
        assert offset in (0, len(content)) or content[offset - 1 : offset] == b"\n"
    return scan.done, min(tail, 4), len(kept), tuple(offset == len(content) for _, offset in scan.starts)


def large() -> tuple[int, bytes, list[int], list[int]]:
    """A log of 400 KB: its descriptor and content, the offset and the time of each line."""
    if not _large:
        stamps = [index // 3 * 10**9 for index in range(6000)]
        lines = [
            plain.format_stamp(stamp) + b" stdout F line %d %s\n" % (i, b"x" * (i % 40))
            for i, stamp in enumerate(stamps)
        ]
        offsets = [0]
        for line in lines:
            offsets.append(offsets[-1] + len(line))
        fd = os.memfd_create("large")
        content = b"".join(lines)
        os.write(fd, content)
        _large.append((fd, content, offsets, stamps))
    return _large[0]


def placed(draw: Draw, thorough: bool) -> Hashable:
    fd, content, offsets, stamps = large()
    after = draw.byte() % 2 == 1
    stamp = draw.number(3) * 10**6
    at = draw.number(3) % len(content)
    piece = draw.rest()[:2000]
    try:
        if piece:
            os.pwrite(fd, piece, at)
        place = _logscan.bisect(fd, len(content), stamp, after)
    finally:
        if piece:
            os.ftruncate(fd, len(content))
            os.pwrite(fd, content[at : at + len(piece)], at)
    assert 0 <= place <= len(content) + 2000
    if not piece:
        if after:
            # Every line from there on is later.
            assert offsets.index(place) >= bisect_right(stamps, stamp)
        else:
            # Every line before it is earlier, and it is not far before the first that is not.
            index = bisect_left(stamps, stamp)
            assert place <= offsets[index]
            assert offsets[index] - place <= 2 * 131072 + 100
    return "placed", after, not piece, place * 16 // len(content)


TARGET = Target(run, corpus, words=[b"\n", NEXT, b"\n" + NEXT], share=2)

"""_lines: the times of logs, and single lines, read by an engine and by a search from the end.

data: 0    a time, as text
      1    a time, eight bytes
      2.. what to do with it, then a line
"""

from __future__ import annotations

import os
from collections.abc import Hashable

from arcbox_agent import _lines, _logs, _logscan
from tests.reference import logs as plain
from tools.fuzz.target import Target
from tools.fuzz.targets.logs import file_of, is_judged

STAMP = b"2026-11-23T17:45:12.255151664Z"
#: A line of each format, and what is nearly one.
LINES = [
    STAMP + b" stdout F hello",
    STAMP + b" stderr P half a",
    STAMP + b" stdout F:end the end",
    STAMP + b" stderr F:gap [output lost]",
    STAMP + b" stdout P:x:y z",
    STAMP + b" stdout F",
    b"2026-11-23T18:45:12+01:00 stderr F x",
    b"[" + STAMP + b"] [stderr]: text",
    b"[2026-11-23t17:45:12.5z] [stdout]:",
    b'{"log":"text\\n","stream":"stdout","time":"2026-11-23T17:45:12.5Z"}',
    b'{"log":"\\u00e9\\ud83d\\ude00\\ud83d\\"\\\\\\/\\b","stream":"stderr","time":"2026-11-23T17:45:12Z"}',
    b'{"attrs":{"a":[1,"}"]}, "x" : null ,"time":"2026-11-23T17:45:12Z","stream":"stdout","log":"half"}',
    b"plain \xff\r",
    bytes(5) + STAMP + b" stdout F behind a hole",
]
WORDS = [
    STAMP, b" stdout F ", b" stderr P ", b"F:end ", b"F:gap ", b"] [stdout]: ", b'"log":"', b'"stream":"stderr"',
    b"\\u", b'"time":"2026-11-23T17:45:12Z"', b"\\ud83d\\ude00", b"+23:59", b"-00:00", b".123456789", b"00", b"99",
    b"12", b"-02-29", b'"', b"}", b"{", b"[", b",", b":",
]  # fmt: skip


def corpus() -> list[bytes]:
    times = [STAMP, b"2016-12-31T23:59:60Z", b"0000-02-29T00:00:00+23:59", b"9999-12-31T23:59:59.9-23:59"]
    return [
        *(b"\0" + time for time in times),
        b"\1" + bytes(7) + b"\x80",
        *(bytes([kind]) + line for line in LINES for kind in (2, 3)),
    ]


def run(data: bytes, thorough: bool) -> Hashable:
    kind, rest = (data[0] % 8, data[1:]) if data else (0, b"")
    if kind == 0:
        return time(rest)
    if kind == 1:
        return stamp(int.from_bytes(rest[:8], "little", signed=True))
    line = rest.partition(b"\n")[0]
    return searched(line) if kind == 3 else read(line)


def time(text: bytes) -> Hashable:
    match = plain._ONLY_STAMP.fullmatch(text)
    expected = plain.parse_stamp(match) if match else None
    assert _lines.parse_time(text) == expected
    return "time", expected is not None, len(text)


def stamp(number: int) -> Hashable:
    if number == -(1 << 63):
        number += 1
    text = _lines.format_time(number)
    assert text.encode() == plain.format_stamp(number)
    if abs(number) < 9223372035 * 10**9:
        assert _lines.parse_time(text.encode()) == number
    return "stamp", number.bit_length()


def read(line: bytes) -> Hashable:
    """A line that an engine reads; the judge is the standard library's parsers."""
    fd = file_of(line + b"\n")
    engine = _logs.Engine()
    status, entries = engine.read(fd)
    entries += engine.finish(fd)
    assert status == _logs.END and engine.offset == len(line) + 1
    expected = plain.parse_line(line)
    if expected is None:
        assert not entries
        return "nothing"
    [entry] = entries
    if not is_judged(line):
        return "not judged", entry.timestamp > 0
    assert (entry.stream, entry.data, entry.timestamp) == (expected.stream, expected.text, expected.stamp or 0)
    assert entry.partial == (expected.more or expected.unended)
    return expected.stream, expected.named, expected.more, expected.unended, line[:1], len(expected.text).bit_length()


def searched(line: bytes) -> Hashable:
    """The last line of a file, which ends where the memory of the search does."""
    fd = file_of(line)
    scan = _logscan.TailScan(1)
    scan.open(len(line))
    while (status := scan.step(fd)) == _logs.MORE:
        pass
    assert status == _logs.END
    if not is_judged(line):
        return "not judged"
    expected = plain.parse_line(line)
    if expected is None:
        assert all(start in ((0, 0), (0, len(line))) for start in scan.starts)
        return "nothing"
    which = 2 if not expected.named else 1 if expected.stream == "stderr" else 0
    assert scan.starts[which] == (0, 0) and all(start in ((0, 0), (0, len(line))) for start in scan.starts)
    assert os.fstat(fd).st_size == len(line)
    return "searched", which, line[:1]


TARGET = Target(run, corpus, words=WORDS, share=25)

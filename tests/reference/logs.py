"""What a log says, told slowly: a line at a time, with the standard library's parsers.

The judge of the compiled line engine.  It shares no code with it and holds
everything in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

#: The longest line that is looked at whole (Docker's JSON is only known whole).
LINE_WINDOW = 262144

_STAMP = (
    rb"(?P<date>\d{4}-\d\d-\d\d)[Tt](?P<time>\d\d:\d\d):(?P<second>\d\d)"
    rb"(?:\.(?P<fraction>\d{1,9}))?(?P<zone>[Zz]|[+-]\d\d:\d\d)"
)
_ONLY_STAMP = re.compile(_STAMP)
_CRI = re.compile(
    _STAMP.replace(b"(?P<date>", b"(?P<date>", 1)
    + rb" (?P<stream>stdout|stderr) (?P<tag>[FP])(?P<note>:[^ ]{0,62}(?= )|)(?: (?P<text>.*)|)",
    re.DOTALL,
)
_BRACKETED = re.compile(rb"\[" + _STAMP + rb"\] \[(?P<stream>stdout|stderr)\]: ?(?P<text>.*)", re.DOTALL)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Line(NamedTuple):
    stream: str
    named: bool  # False: plain text, which says nothing of a stream
    stamp: int | None
    more: bool
    text: bytes
    unended: bool = False  # written as it is: the process's last line had no newline
    gap: bool = False  # the agent's own words about lost output


class Gap(NamedTuple):
    bytes: int
    lines: int
    at_least: bool
    reason: str


class Entry(NamedTuple):
    stream: str
    data: bytes
    timestamp: int
    partial: bool
    gap: Gap | None = None


def parse_stamp(match: re.Match[bytes]) -> int | None:
    """Unix ns, or None where the calendar has no such time."""
    second = int(match["second"])
    zone = match["zone"].decode()
    if second > 60:
        return None
    date, time = match["date"].decode(), match["time"].decode()
    year, month, day = map(int, date.split("-"))
    hour, minute = map(int, time.split(":"))
    if hour > 23 or minute > 59:
        return None
    # datetime has no year 0: the calendar repeats after 400 years of 146097 days.
    cycles = 0
    if year == 0:
        year, cycles = 400, 1
    try:
        moment = datetime(year, month, day, hour, minute, tzinfo=UTC)
    except ValueError:
        return None
    offset = 0
    if zone not in "Zz":
        hours, minutes = int(zone[1:3]), int(zone[4:6])
        if hours > 23 or minutes > 59:
            return None
        offset = (hours * 3600 + minutes * 60) * (1 if zone[0] == "+" else -1)
    since_epoch = moment - _EPOCH
    seconds = since_epoch.days * 86400 + since_epoch.seconds + second - offset - cycles * 146097 * 86400
    if seconds > 9223372035:
        return (1 << 63) - 1
    if seconds < -9223372036:
        return -(1 << 63) + 1
    return seconds * 10**9 + int((match["fraction"] or b"").ljust(9, b"0"))


def format_stamp(stamp: int) -> bytes:
    seconds, nanos = divmod(stamp, 10**9)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanos:09}Z".encode()


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(pairs)


def parse_json(line: bytes) -> Line | None:
    # surrogateescape keeps what is not UTF-8; half a surrogate pair in an escape is no character.
    try:
        found = json.loads(line.decode("utf-8", "surrogateescape"), strict=False)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    log, stream, time = found.get("log"), found.get("stream"), found.get("time")
    if not isinstance(log, str) or stream not in ("stdout", "stderr") or not isinstance(time, str):
        return None
    match = _ONLY_STAMP.fullmatch(time.encode("ascii", "replace"))
    stamp = parse_stamp(match) if match else None
    if stamp is None:
        return None
    text = re.sub("[\ud800-\udc7f\udd00-\udfff]", "\ufffd", log).encode("utf-8", "surrogateescape")
    more = not text.endswith(b"\n")
    return Line(stream, True, stamp, more, text if more else text[:-1])


def parse_line(line: bytes) -> Line | None:
    """None: nothing but NUL bytes, which a power failure leaves in a line's place."""
    record = line.lstrip(b"\0")
    if line and not record:
        return None
    found = parse_record(record)
    # A hole as long as the window is skipped whatever is behind it.
    skipped = len(line) >= LINE_WINDOW and line.startswith(b"\0")
    return found or Line("stdout", False, None, False, record if skipped else line)


def parse_record(line: bytes) -> Line | None:
    for pattern in (_CRI, _BRACKETED):
        match = pattern.fullmatch(line)
        if match is not None:
            stamp = parse_stamp(match)
            if stamp is not None:
                more = pattern is _CRI and match["tag"] == b"P"
                note = match["note"] if pattern is _CRI else b""
                text = match["text"] or b""
                gap = not more and note == b":gap" and len(line) < LINE_WINDOW
                return Line(match["stream"].decode(), True, stamp, more, text, note == b":end", gap)
    if line.startswith(b"{") and len(line) < LINE_WINDOW:
        found = parse_json(line)
        if found is not None:
            return found
    return None


def parse_gap(text: bytes) -> Gap:
    """What is lost, as far as the words of the capture say it; with other words, they are all that is known."""
    numbers = [0, 0]
    rest = text
    for index, (before, after) in enumerate(((b"[output lost: ", b" bytes, "), (b"", b" lines: "))):
        if not rest.startswith(before):
            break
        digits = re.match(rb"[0-9]*", rest[len(before) :])
        assert digits is not None
        numbers[index] = int(digits[0] or b"0") % 2**64
        rest = rest[len(before) + digits.end() :]
        if not rest.startswith(after):
            break
        rest = rest[len(after) :]
    else:
        return Gap(numbers[0], numbers[1], False, rest.removesuffix(b"]").decode("utf-8", "replace"))
    return Gap(numbers[0], numbers[1], True, text.decode("utf-8", "replace"))


def read(
    files: Iterable[bytes],
    *,
    stdout: bool = True,
    stderr: bool = True,
    tail: int = 0,
    since: int | None = None,
    until: int | None = None,
    timestamps: bool = False,
    part_limit: int = 1 << 20,
    unended: bool = True,
    detail: bool = False,
) -> list[Entry]:
    """The entries of a log; `files`: oldest first; `detail`: gaps as such, and not as lines."""
    files = list(files)
    texts: list[
        tuple[int, tuple[str, bool], int | None, bytes | None, bool]
    ] = []  # order, stream, stamp, text, partial
    #: By the order of the text that it ends, or that it stands for; with its time.
    gaps: dict[int, tuple[Gap, int]] = {}
    chains: dict[tuple[str, bool], list[Any]] = {}
    order = 0
    for number, content in enumerate(files):
        lines = content.split(b"\n")
        rest = lines.pop()
        cut = False
        if rest.strip(b"\0") and (unended or number + 1 < len(files)):
            lines.append(rest)
            cut = number + 1 == len(files)
        for index, raw in enumerate(lines):
            line = parse_line(raw)
            if line is None:
                continue
            key = (line.stream, line.named)
            if not (stdout if line.stream == "stdout" else stderr):
                continue
            if since is not None or until is not None:
                if line.stamp is None:
                    continue
                if (since is not None and line.stamp < since) or (until is not None and line.stamp > until):
                    continue
            if detail and line.gap:
                order += 1
                gaps[order] = parse_gap(line.text), line.stamp or 0
                stamp, text, _ = chains.pop(key, (None, None, 0))
                texts.append((order, key, stamp, text, True))
                continue
            chain = chains.setdefault(key, [line.stamp, b"", 0])
            chain[1] += line.text
            chain[2] = order = order + 1
            if not line.more and not (cut and index + 1 == len(lines)):
                texts.append((order, key, chain[0], chain[1], line.unended))
                del chains[key]
    for key in (("stdout", True), ("stderr", True), ("stdout", False)):
        if key in chains:
            texts.append((chains[key][2], key, chains[key][0], chains[key][1], True))
    if tail:
        # A text without its end is told last, but counts where its last part stands.
        last = sorted(texts, key=lambda text: text[0])[-tail:]
        texts = [text for text in texts if text in last]
    entries = []
    for order, (stream, _), stamp, text, partial in texts:
        parts = [] if text is None else [text[at : at + part_limit] for at in range(0, len(text), part_limit)] or [b""]
        for index, part in enumerate(parts):
            if timestamps and stamp is not None and index == 0:
                part = format_stamp(stamp) + b" " + part
            entries.append(Entry(stream, part, stamp or 0, partial or index + 1 < len(parts)))
        if order in gaps:
            gap, at = gaps[order]
            entries.append(Entry(stream, b"", at, False, gap))
    return entries

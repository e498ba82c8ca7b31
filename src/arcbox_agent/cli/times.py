"""Times and durations, as people write and read them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

NANOSECONDS = 1_000_000_000

_UNIX = re.compile(r"(\d{1,12})(?:\.(\d{1,9}))?", re.ASCII)
_UNIX_NANOSECONDS = re.compile(r"\d{19}", re.ASCII)
_CLOCK = re.compile(
    r"(\d{4}-\d{2}-\d{2})(?:[Tt ](\d{2}:\d{2})(:\d{2})?(?:[.,](\d{1,9}))?)?([Zz]|[+-]\d{2}:?\d{2})?",
    re.ASCII,
)
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h|d)", re.ASCII)
_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": NANOSECONDS,
    "m": 60 * NANOSECONDS,
    "h": 3600 * NANOSECONDS,
    "d": 86400 * NANOSECONDS,
}


def parse_moment(text: str, now: int) -> int:
    """A value of --since or --until in Unix nanoseconds.

    Unix seconds (`1763919912.25`), Unix nanoseconds (19 digits), RFC 3339 (`2026-11-23T17:45:12.255151664Z`; local time
    without a zone, midnight without a time), or how long before `now` (`10m`, `1h30m`).
    Raises ValueError for anything else.
    """
    if found := _UNIX.fullmatch(text):
        return int(found[1]) * NANOSECONDS + _fraction(found[2])
    if _UNIX_NANOSECONDS.fullmatch(text):
        return int(text)
    if found := _CLOCK.fullmatch(text):
        date, clock, seconds, fraction, zone = found.groups()
        moment = datetime.fromisoformat(f"{date}T{clock or '00:00'}{seconds or ':00'}{(zone or '').upper()}")
        # A float holds whole seconds exactly.
        return int(moment.timestamp()) * NANOSECONDS + _fraction(fraction)
    return now - parse_duration(text)


def _fraction(digits: str | None) -> int:
    return int((digits or "").ljust(9, "0"))


def parse_duration(text: str) -> int:
    """A duration in nanoseconds, written as in Go (`10m`, `1h30m`, `1.5s`, `250ms`) or in days (`2d`)."""
    total, position = 0, 0
    for part in _DURATION_PART.finditer(text):
        if part.start() != position:
            break
        whole, _, fraction = part[1].partition(".")
        unit = _UNITS[part[2]]
        total += int(whole or 0) * unit + int(fraction or 0) * unit // 10 ** len(fraction)
        position = part.end()
    if not text or position != len(text):
        raise ValueError(f"{text!r} is not a time: Unix seconds, RFC 3339, or a duration like 10m")
    return total


def rfc3339(nanoseconds: int) -> str:
    """A time in RFC 3339: UTC, to the nanosecond."""
    seconds, rest = divmod(nanoseconds, NANOSECONDS)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"


def in_words(nanoseconds: int) -> str:
    """A duration in docker's words: `3 minutes`, `About an hour`, `2 weeks`."""
    seconds = max(nanoseconds, 0) // NANOSECONDS
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return "1 second" if seconds == 1 else f"{seconds} seconds"
    if seconds < 3600:
        return "About a minute" if seconds < 120 else f"{seconds // 60} minutes"
    hours = (seconds + 1800) // 3600
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    days = hours // 24
    for limit, length, word in ((14, 1, "days"), (60, 7, "weeks"), (730, 30, "months")):
        if days < limit:
            return f"{days // length} {word}"
    return f"{days // 365} years"

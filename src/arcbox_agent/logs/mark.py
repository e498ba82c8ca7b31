"""A cursor: the place behind an entry of a log, by which a reader goes on there later.

`_logs.put_cursor` writes cursors and says what they hold.  For everybody else they are opaque.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from re import Pattern

_PATTERN = "([0-9a-f]{1,16})-([0-9a-f]{1,16})-([0-9a-f]{1,16})(?:t([0-9a-f]{1,16}))?" + "".join(
    rf"({lower})?(?:{lower.upper()}([0-9a-f]{{1,16}})\.([0-9a-f]{{1,16}})\.([0-9a-f]{{1,16}}))?" for lower in "oeu"
)
#: Made when the first cursor comes: an agent does without until it listens.
_pattern: Pattern[str] | None = None

_LAST = (1 << 63) - 1


class Mark:
    """What a cursor says.

    `file`, `offset`, `stamp`: the inode, the beginning and the time of the last line.  `taken`: so many bytes
    of its text were given, None: all of it.  By stream (stdout, stderr, plain text): `began`, it is inside a
    text whose beginning was given; `starts`, what of it was read and not given begins there (inode, offset,
    bytes of that line's text that were given), None: there is no such text.
    """

    __slots__ = ("began", "file", "offset", "stamp", "starts", "taken")

    def __init__(self, cursor: str) -> None:
        """ValueError: no log has given such a cursor."""
        match = _compiled().fullmatch(cursor)
        if match is None:
            raise ValueError(f"not a cursor of a log: {cursor[:80]!r}")
        flags = (4, 8, 12)
        numbers = [
            None if text is None or index in flags else int(text, 16) for index, text in enumerate(match.groups())
        ]
        if any(number is not None and number > _LAST for number in (numbers[1], numbers[3])):
            raise ValueError(f"not a cursor of a log: {cursor[:80]!r}")
        self.file, self.offset, stamp = (number or 0 for number in numbers[:3])
        self.stamp = stamp - (1 << 64) if stamp > _LAST else stamp
        self.taken = numbers[3]
        self.began = tuple(match[1 + flag] is not None for flag in flags)
        starts: list[tuple[int, int, int] | None] = []
        for flag in flags:
            file, offset, taken = numbers[flag + 1 : flag + 4]
            whole = file is not None and offset is not None and taken is not None
            starts.append((file or 0, offset or 0, taken or 0) if whole else None)
        self.starts = tuple(starts)


def _compiled() -> Pattern[str]:
    global _pattern
    if _pattern is None:
        import re

        _pattern = re.compile(_PATTERN)
    return _pattern

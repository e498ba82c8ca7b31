"""Ids and names of containers: made and checked here, and nowhere else.

Both become file names, cgroup names and arguments of programs.  A name that passes the
check cannot lead out of a directory, is no dot file, and is not taken for an option.
"""

from __future__ import annotations

import os

from arcbox_agent.errors import BadRequestError

#: Characters of an id or a name.
LONGEST = 128

_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_FURTHER = _FIRST | frozenset("_.-")


def is_id(value: str) -> bool:
    return 0 < len(value) <= LONGEST and value[0] in _FIRST and _FURTHER.issuperset(value)


def new_id() -> str:
    """A random UUID (version 4) in its usual 36 characters."""
    octets = bytearray(os.urandom(16))
    octets[6] = octets[6] & 0x0F | 0x40
    octets[8] = octets[8] & 0x3F | 0x80
    text = octets.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def check(value: str, what: str) -> str:
    """Returns `value`, a container's id or name or a volume's name; `what` says which.  BadRequestError: it is none."""
    if not is_id(value):
        shown = value if len(value) <= 140 else value[:140] + "..."
        raise BadRequestError(
            f"invalid {what} {shown!r}: it must begin with a letter or a digit, and go on "
            "with up to 127 letters, digits, `_`, `.` or `-`"
        )
    return value

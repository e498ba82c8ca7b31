"""Text from a guest, for a terminal.

A guest is trusted with less than the person who looks at it: an image's name or an
error's text must not move the cursor, set the title or paint over the line above.
What a command or a container writes is another matter: it comes as it is.
"""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """`text` with control characters, invisible ones and line ends written as escapes."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def columns(text: str) -> int:
    """How many columns of a terminal `text`, which is printable, takes."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me"):
        return 0  # An accent of the letter before it.
    return 2 if unicodedata.east_asian_width(letter) in ("W", "F") else 1

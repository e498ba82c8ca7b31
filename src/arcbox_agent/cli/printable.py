"""Text from a guest, for a terminal.

A guest is less trusted than the person at the terminal: the name of an image or the text
of an error must not move the cursor, set the title or paint over the line above.  Output of
commands and containers is not changed: it is written as it is.
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
    """The width of printable `text`, in columns of a terminal."""
    if text.isascii():
        return len(text)
    return sum(map(_width, text))


def _width(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me"):
        return 0  # An accent on the letter before it.
    return 2 if unicodedata.east_asian_width(letter) in ("W", "F") else 1

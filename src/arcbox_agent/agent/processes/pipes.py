"""Pipes, as the kernel knows them."""

from __future__ import annotations

import sys
from fcntl import F_SETPIPE_SZ, fcntl, ioctl
from termios import FIONREAD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def readable_bytes(fd: int) -> int:
    """Bytes that a pipe or terminal holds.  OSError: a terminal that is closed."""
    return int.from_bytes(ioctl(fd, FIONREAD, bytes(4)), sys.byteorder)


def widen(pipe: int, sizes: Sequence[int]) -> None:
    """Give a pipe the first of `sizes` that is granted.

    Beyond fs.pipe-max-size, or fs.pipe-user-pages-soft in all, an ordinary user gets less.
    """
    for size in sizes:
        try:
            fcntl(pipe, F_SETPIPE_SZ, size)
            return
        except OSError:
            continue

"""Pipes, as the kernel knows them."""

from __future__ import annotations

from fcntl import F_SETPIPE_SZ, fcntl

from arcbox_agent._spawn import readable_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


__all__ = ["readable_bytes", "widen"]


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

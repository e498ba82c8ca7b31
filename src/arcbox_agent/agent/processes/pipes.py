"""Pipes, as the kernel knows them, and what stands for one that nobody needs."""

from __future__ import annotations

import os

from arcbox_agent._spawn import readable_bytes, widen

__all__ = ["null", "readable_bytes", "widen"]

_null = -1


def null() -> int:
    """/dev/null, for reading and writing.  It is opened once, for all children, and never closed."""
    global _null
    if _null < 0:
        opened = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        if _null < 0:
            _null = opened
        else:
            os.close(opened)  # another thread was faster
    return _null

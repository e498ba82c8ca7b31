"""A failing input made smaller, for as long as it fails."""

from __future__ import annotations

import time
from collections.abc import Callable


def minimise(data: bytes, fails: Callable[[bytes], bool], seconds: float) -> bytes:
    """The smallest input found in this time: pieces are cut out, then bytes made zero."""
    end = time.monotonic() + seconds
    size = len(data)
    while size > 1:
        size = (size + 1) // 2
        at = 0
        while at < len(data):
            if time.monotonic() > end:
                return data
            shorter = data[:at] + data[at + size :]
            if fails(shorter):
                data = shorter
            else:
                at += size
    for at in range(len(data)):
        if time.monotonic() > end:
            break
        if data[at]:
            simpler = data[:at] + b"\0" + data[at + 1 :]
            if fails(simpler):
                data = simpler
    return data

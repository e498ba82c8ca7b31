"""Helpers: what a command leaves behind that still passes its output on, and ends by itself.

`exec > >(tee log)` makes one: it reads from a pipe what the command wrote, and writes it to
the command's own output, a moment after the command has ended.  A daemon that holds the same
output open reads from no pipe, and goes on for as long as it likes.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

#: Who holds an output open.
NOBODY, OTHERS, HELPERS = range(3)

#: Helpers may be late for this many times the setting `late_output` in all, while they write.
LATE_IN_ALL = 5

#: The most processes, and the most descriptors of each, that one look takes in.
MOST_PROCESSES = 256
MOST_FILES = 64


def file_id(path: int | str) -> tuple[int, int]:
    """What tells a pipe or FIFO from every other, by a descriptor or a path."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def holders(pids: Iterable[int], outputs: Collection[tuple[int, int]], inputs: Collection[tuple[int, int]] = ()) -> int:
    """Who of `pids` has one of `outputs` open; a helper is one whose standard input is a pipe.

    `inputs`: pipes that a process has as its input for another reason.  It looks at /proc alone: for a thread.
    """
    found = NOBODY
    for _, pid in zip(range(MOST_PROCESSES), pids, strict=False):
        if not _holds(pid, outputs):
            continue
        try:
            fed = os.stat(f"/proc/{pid}/fd/0")
        except OSError:
            found = OTHERS  # it has ended by now, or has closed its input
            continue
        piped = stat.S_ISFIFO(fed.st_mode) or stat.S_ISSOCK(fed.st_mode)
        if piped and (fed.st_dev, fed.st_ino) not in inputs:
            return HELPERS
        found = OTHERS
    return found


def _holds(pid: int, outputs: Collection[tuple[int, int]]) -> bool:
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False  # it has ended, or no descriptor is left to look with
    for name in names[:MOST_FILES]:
        try:
            if file_id(f"/proc/{pid}/fd/{name}") in outputs:
                return True
        except OSError:
            continue
    return False

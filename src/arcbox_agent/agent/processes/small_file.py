"""Files of the guest that are read whole: a container that shares its file system may have put anything there."""

from __future__ import annotations

import errno
import os
import stat


def read(path: str, most: int) -> bytes:
    """The first `most` bytes of a regular file.  OSError: there is none.  It waits for the disk, and for no writer."""
    # Without O_NONBLOCK a FIFO of that name would block for ever.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        with open(fd, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(fd)

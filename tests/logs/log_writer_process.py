"""Another program's log: `python -m tests.logs.log_writer_process PATH SEED LINES FAULT`.

Writes numbered CRI lines at full speed, in one write or in pieces, and does FAULT
to its file now and then: `rotate`, `recreate` (removed, made anew), `truncate`,
or `none`; where a reader could not have it any more, it waits for PATH.read.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time

KEPT = 5


def line(number: int) -> bytes:
    stream = b"stderr" if number % 3 == 0 else b"stdout"
    return b"2026-11-23T17:45:12.%09dZ %b F line %d %b\n" % (number, stream, number, b"x" * (number % 90))


def rotate(path: str) -> None:
    for number in range(KEPT, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}.{number - 1}" if number > 1 else path, f"{path}.{number}")


def append(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def wait_until_read(path: str, lines: int) -> None:
    """A reader tells in PATH.read how many lines it has."""
    while lines:
        with contextlib.suppress(FileNotFoundError), open(f"{path}.read") as marker:
            if int(marker.read() or 0) >= lines:
                return
        time.sleep(0.002)


def main(path: str, seed: int, lines: int, fault: str) -> None:
    rng = random.Random(seed)
    fd = append(path)
    number = 0
    next_fault = lines // 20
    rotated: list[int] = []
    while number < lines:
        count = min(rng.choice([1, 1, 10, 100, 1000]), lines - number)
        block = b"".join(map(line, range(number, number + count)))
        number += count
        for _ in range(rng.choice([0, 0, 0, 1, 5])):
            cut = rng.randrange(len(block))
            os.write(fd, block[:cut])
            block = block[cut:]
        os.write(fd, block)
        if fault != "none" and number >= next_fault and number < lines:
            next_fault += rng.randrange(1, lines // 10)
            rotated.append(number)
            if fault == "rotate once" and len(rotated) > 4:
                continue
            if fault.startswith("rotate"):
                # Not more than is kept may be unread, or it is truly gone.
                wait_until_read(path, rotated[-KEPT] if len(rotated) >= KEPT else 0)
                rotate(path)
            else:
                # What is not read when it is removed is gone: let it be read.
                wait_until_read(path, number)
                if fault == "truncate":
                    os.ftruncate(fd, 0)
                    continue
                os.unlink(path)
            os.close(fd)
            fd = append(path)
    os.close(fd)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])

"""A container's process: `python -m tests.logs.writer_process FIFO SEED BYTES`.

Writes the bytes of `output(seed, size)` as fast as it may, in pieces of every size.
"""

from __future__ import annotations

import os
import random
import sys


def output(seed: int, size: int) -> bytes:
    """Lines of all lengths, some very long, with bytes of all kinds; the last one without its newline."""
    rng = random.Random(seed)
    filler = rng.randbytes(1 << 18).replace(b"\n", b"\r")
    out = bytearray()
    number = 0
    while len(out) < size:
        number += 1
        length = rng.choice([0, 10, 100, 100, 100, 1000, 5000])
        if rng.random() < 0.0005:
            length = rng.choice([65535, 65536, 200_000, 262_144 - 10])
        out += b"%d " % number
        out += filler[: length + rng.randrange(4)] if length else b""
        out += b"\n"
    return bytes(out) + b"the end"


if __name__ == "__main__":
    path, seed, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    text = memoryview(output(seed, size))
    rng = random.Random(seed + 1)
    # As the agent's child does: its own reader too, so that nobody's death is a SIGPIPE.
    fd = os.open(path, os.O_RDWR)
    at = 0
    while at < len(text):
        at += os.write(fd, text[at : at + rng.choice([1, 50, 100, 4096, 65536, 65536])])

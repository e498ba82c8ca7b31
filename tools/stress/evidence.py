"""What the writers themselves say they did, read from the files they map (writer.c)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_LAYOUT = struct.Struct("=QQq2Q2QqQq")
_MAGIC = 0x4152434254455354
STREAMS = ("stdout", "stderr")


@dataclass(frozen=True, slots=True)
class Run:
    """One start of one container, as its process saw it."""

    name: str
    run: int
    pid: int
    intended: dict[str, int]
    written: dict[str, int]
    exit_code: int | None
    exit_time: float  # seconds of the boot time clock
    brood: int

    @property
    def started(self) -> float:
        return self.run / 1e9

    @property
    def alive(self) -> bool:
        return is_alive(self.pid, self.started)


def line(name: str, run: int, number: int) -> bytes:
    """Line `number` of a stream, without its newline, as writer.c makes it."""
    # The product is 64 bits wide there too, as `number` is.
    filling = (number * 2654435761 & 0xFFFFFFFFFFFFFFFF) % 389
    letters = bytes(ord("a") + (number + i) % 26 for i in range(filling))
    return f"{name} {run} {number} ".encode() + letters


def runs(directory: Path) -> list[Run]:
    """The evidence of every process that ever started, oldest first."""
    found = []
    for path in directory.iterdir():
        if path.name.startswith("."):
            continue  # not renamed yet: the process has not begun
        name = path.name.rpartition(".")[0]
        magic, run, pid, *counts, exit_code, exit_time, brood = _LAYOUT.unpack(path.read_bytes())
        if magic != _MAGIC:
            raise ValueError(f"{path}: not evidence")
        found.append(
            Run(
                name,
                run,
                pid,
                dict(zip(STREAMS, counts[:2], strict=True)),
                dict(zip(STREAMS, counts[2:], strict=True)),
                None if exit_code < 0 else exit_code,
                exit_time / 1e9,
                brood,
            )
        )
    return sorted(found, key=lambda run: run.run)


def is_alive(pid: int, started: float) -> bool:
    """Is the process that started at about `started` alive (a zombie is not)?

    A pid alone proves nothing: it may be another process's by now.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    # Field 22, in ticks of 10 ms since boot, taken at the fork: before `started`.
    begin = int(fields[19]) / 100
    return fields[0] not in ("Z", "X") and begin <= started + 0.02

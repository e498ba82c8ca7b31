"""One table for all benchmarks: work, ours, rival, ratio, goal."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

#: How a unit is written: its steps from small to large.
_STEPS: dict[str, list[tuple[float, str]]] = {
    "s": [(1e-9, "ns"), (1e-6, "us"), (1e-3, "ms"), (1.0, "s")],
    "/s": [(1.0, "/s"), (1e3, "k/s"), (1e6, "M/s"), (1e9, "G/s")],
    "B": [(1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB")],
    "B/s": [(1e3, "kB/s"), (1e6, "MB/s"), (1e9, "GB/s")],
}


def format_value(value: float, unit: str) -> str:
    """A value in the largest step of its unit that keeps it at 1 or more."""
    steps = _STEPS.get(unit)
    if steps is None:
        return f"{value:.4g} {unit}".rstrip()
    size, name = steps[0]
    for step, label in steps:
        if abs(value) >= step:
            size, name = step, label
    return f"{value / size:.3g} {name}" if value < 999.5 * size else f"{value / size:.0f} {name}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    `ratio`: how many times as good as the rival (1: the same), whichever way
    the unit counts.  None in a row whose goal is a figure and not a rival.
    """

    work: str
    unit: str
    ours: float
    ours_all: tuple[float, ...]
    goal: float
    met: bool
    rival: float | None = None
    rival_all: tuple[float, ...] = ()
    rival_name: str = ""
    ratio: float | None = None

    @classmethod
    def against_rival(
        cls,
        work: str,
        ours: Sequence[float],
        rival: Sequence[float],
        goal: float,
        *,
        unit: str,
        rival_name: str,
        higher_is_better: bool,
    ) -> Row:
        """A row whose goal is a ratio.  Both sides are represented by their medians."""
        mine, theirs = statistics.median(ours), statistics.median(rival)
        ratio = mine / theirs if higher_is_better else theirs / mine
        return cls(
            work=work,
            unit=unit,
            ours=mine,
            ours_all=tuple(ours),
            goal=goal,
            met=ratio >= goal,
            rival=theirs,
            rival_all=tuple(rival),
            rival_name=rival_name,
            ratio=ratio,
        )

    @classmethod
    def against_figure(
        cls,
        work: str,
        ours: Sequence[float],
        goal: float,
        *,
        unit: str,
        rival: Sequence[float],
        rival_name: str,
        higher_is_better: bool,
    ) -> Row:
        """A row whose goal is a figure in `unit`; a rival, where given, stands beside it."""
        mine = statistics.median(ours)
        theirs = statistics.median(rival) if rival else None
        return cls(
            work=work,
            unit=unit,
            ours=mine,
            ours_all=tuple(ours),
            goal=goal,
            met=mine >= goal if higher_is_better else mine <= goal,
            rival=theirs,
            rival_all=tuple(rival),
            rival_name=rival_name,
        )

    def cells(self) -> list[str]:
        goal = f"{self.goal:.2f}x" if self.ratio is not None else format_value(self.goal, self.unit)
        beside = "" if self.rival is None else format_value(self.rival, self.unit)
        return [
            self.work,
            format_value(self.ours, self.unit),
            f"{beside} {self.rival_name}".strip(),
            "" if self.ratio is None else f"{self.ratio:.2f}x",
            goal,
            "met" if self.met else "MISSED",
        ]

    def as_json(self) -> dict[str, object]:
        return asdict(self)


HEADINGS = ["work", "ours", "rival", "ratio", "goal", ""]


def render(rows: Sequence[Row]) -> list[str]:
    """The table in columns, one string a line."""
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    out = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    out.insert(1, "  ".join("-" * width for width in widths).rstrip())
    return out


def machine() -> str:
    """The machine in one line: what a figure means nothing without."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return (
        f"{os.cpu_count()} x {model}, {platform.system()} {platform.release()}, "
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.2f}"
    )

"""What a file of targets/ says of its compiled module: `TARGET`."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

TARGETS = Path(__file__).resolve().parent / "targets"


def nothing() -> None:
    """Nothing has to be done before the first input."""


@dataclass(frozen=True)
class Target:
    """How one compiled module is tried.

    `run(data, thorough)`: one execution.  It raises where something is wrong, and returns what
    kind of input this was, roughly: the first of each kind is kept as a seed of others.
    `thorough`: with the judges that cost many executions, too; some executions are, and each one
    that is run again by hand.
    `corpus`: valid inputs to begin with.  `words`: pieces that inputs are made of.
    `share`: of a number of executions, beside the other modules' shares.
    `prepare`: called once in the worker, before the first input.
    """

    run: Callable[[bytes, bool], Hashable]
    corpus: Callable[[], list[bytes]]
    words: Sequence[bytes] = ()
    share: int = 1
    prepare: Callable[[], None] = nothing


def parts() -> list[str]:
    """The names of the targets, each that of its compiled module without the underscore."""
    return sorted(path.stem for path in TARGETS.glob("*.py") if path.stem != "__init__")


def load(part: str) -> Target:
    target = importlib.import_module(f"tools.fuzz.targets.{part}").TARGET
    assert isinstance(target, Target)
    return target


def descriptors() -> int:
    """How many this process has open, and would have were it rid of its rubbish."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")) - 1

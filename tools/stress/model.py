"""What a client asked for and was told, container by container, and what may follow from it.

A call that was under way when the agent was killed may have happened or not:
the model keeps that open until the agent, started again, lists the truth.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tools.stress.evidence import Run

#: The exit code of a container whose real one nobody could be told.
LOST = 255


@dataclass(frozen=True, slots=True)
class Kind:
    """What a container runs: the arguments of writer.c."""

    lines: int
    pause_us: int
    code: int
    options: tuple[str, ...] = ()

    @property
    def endless(self) -> bool:
        return self.lines == 0 or "hold" in self.options

    def arguments(self) -> list[str]:
        return [str(self.lines), str(self.pause_us), str(self.code), *self.options]


def any_kind(choice: random.Random) -> Kind:
    code = choice.randrange(1, 100)
    kinds = (
        Kind(choice.randrange(1, 400), 0, code),  # a burst, and gone
        Kind(choice.randrange(1, 100), 1000, code),
        Kind(0, choice.randrange(1000, 8000), code),
        Kind(choice.randrange(500, 2000), 0, code, ("hold",)),  # a burst that rotates
        Kind(0, 5000, code, ("stubborn",)),
        Kind(choice.randrange(1, 100), 100, code, ("brood",)),
        Kind(0, 3000, code, ("brood",)),
    )
    return choice.choices(kinds, weights=(5, 3, 4, 2, 1, 1, 1))[0]


@dataclass(slots=True)
class Asked:
    """One container as its client knows it."""

    id: str
    kind: Kind
    #: None: a create or a remove was under way when the agent was killed.
    exists: bool | None = None
    starts_sent: int = 0
    starts_answered: int = 0
    #: Runs that were signalled: perhaps before they could leave any evidence.
    silent: int = 0
    #: The present run may have been signalled: its end is not only its own.
    signalled: bool = False
    #: A call on the present run was under way when the agent was killed.
    interrupted: bool = False
    #: None: unknown until it is listed.
    running: bool | None = False
    faults: list[str] = field(default_factory=list)

    def start_sent(self) -> None:
        self.starts_sent += 1
        self.silent += self.signalled
        self.signalled = self.interrupted = False

    def codes(self, run: Run) -> set[int]:
        """The exit codes that its last run, which is over, may truthfully have."""
        if run.exit_code is not None and not self.signalled:
            return {run.exit_code}
        codes = {128 + 9}
        if run.exit_code is not None:
            codes.add(run.exit_code)
        if self.signalled:
            # SIGTERM may have come before the writer was ready for it.
            codes.add(128 + 15)
        return codes


class Outages:
    """When there was no agent, in seconds of the boot time clock."""

    #: An exit just before the kill may not have reached the disk.
    BEFORE = 1.0

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def add(self, killed: float, answered: float) -> None:
        self._spans.append((killed, answered))

    def since(self, moment: float) -> bool:
        """Whether one began after `moment`, or is not over then."""
        return any(moment <= end for _, end in self._spans)

    def cover(self, moment: float) -> bool:
        return any(begin - self.BEFORE <= moment <= end for begin, end in self._spans)

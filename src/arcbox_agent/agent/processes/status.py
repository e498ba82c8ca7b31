"""How a process ended."""

from __future__ import annotations

import os

#: The code of a process whose status is lost.
LOST = 255


class ExitStatus:
    """How a process ended: by `signal` where that is not 0, else with `code`.

    `lost`: it ended, and how cannot be known any more.
    """

    __slots__ = ("code", "lost", "signal")

    def __init__(self, code: int, signal: int = 0, lost: bool = False) -> None:
        self.code = code
        self.signal = signal
        self.lost = lost

    @classmethod
    def of_wait_status(cls, status: int) -> ExitStatus:
        """From the number that wait(2) gives."""
        if os.WIFSIGNALED(status):
            return cls(0, os.WTERMSIG(status))
        return cls(os.WEXITSTATUS(status))

    @property
    def wait_status(self) -> int:
        """The number that wait(2) gives."""
        return self.signal or self.code << 8

    @property
    def shell_code(self) -> int:
        """One number for both, as a shell gives it."""
        return 128 + self.signal if self.signal else self.code

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExitStatus):
            return NotImplemented
        return (self.code, self.signal, self.lost) == (other.code, other.signal, other.lost)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ExitStatus(code={self.code}, signal={self.signal}, lost={self.lost})"

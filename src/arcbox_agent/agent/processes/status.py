"""How a process ended."""

from __future__ import annotations

import os
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple

    class _Fields(NamedTuple):
        code: int
        signal: int = 0
        lost: bool = False
else:
    _Fields = namedtuple("ExitStatus", ("code", "signal", "lost"), defaults=(0, False))

#: The code of a process whose status is lost.
LOST = 255


class ExitStatus(_Fields):
    """How a process ended: by `signal` where that is not 0, else with `code`.

    `lost`: it ended, and how cannot be known any more.
    """

    __slots__ = ()

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

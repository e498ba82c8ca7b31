"""How slow this machine is now, and how far the time limits of tests and tools stretch for it.

    PATIENCE = patience(60.0)     # 60 s on the reference machine, more on a slower or busier one

Only what hangs should meet such a limit.  What a test measures is not scaled with it.

`factor()` runs a short busy loop and starts a few processes, once per process (about 0.1 s on the
reference machine, two idle cores of 2.5 GHz).  Both are measured in elapsed time, so a machine
that is overcommitted counts as a slow one.  ARCBOX_PACE=8 sets the factor instead, for a machine
that becomes busy later than the calibration.
"""

from __future__ import annotations

import functools
import os
import time

#: Seconds that the two parts take on the idle reference machine.
BUSY_LOOP = 0.03
SPAWNS = 0.02

#: Beyond this a limit would no longer end a run that hangs within a working day.
LARGEST = 20.0


def _busy_loop() -> float:
    begin = time.monotonic()
    total = 0
    for number in range(500_000):
        total += number
    return time.monotonic() - begin


def _spawns() -> float:
    begin = time.monotonic()
    for _ in range(10):
        pid = os.posix_spawnp("true", ["true"], os.environ)
        os.waitpid(pid, 0)
    return time.monotonic() - begin


@functools.cache
def factor() -> float:
    """By what a time limit is multiplied: 1.0 on the idle reference machine, never less."""
    given = os.environ.get("ARCBOX_PACE")
    if given:
        return min(max(float(given), 1.0), LARGEST)
    # The sum of two rounds: one round can fall between two bursts of load.
    slowness = max((_busy_loop() + _busy_loop()) / (2 * BUSY_LOOP), (_spawns() + _spawns()) / (2 * SPAWNS))
    return min(max(slowness, 1.0), LARGEST)


def patience(seconds: float) -> float:
    """A time limit of `seconds` on the reference machine, stretched for this one."""
    return seconds * factor()

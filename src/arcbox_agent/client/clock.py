"""How far a guest's clock is from this host's, measured by pings that tell the agent's time.

The agent's time was read somewhere between the sending of the ping and its reply, so half of the
round trip is the most that the measurement can be wrong.  The fastest of some pings tells most.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from arcbox_agent.wire import PingResponse

#: Pings of one measurement, and the seconds after which a slow connection is asked no more.
PINGS, LONG_ENOUGH = 8, 2.0

#: Seconds: a smaller difference is left alone.
LEAST = 0.005

#: How often the clock is set at most, until the two agree.
TRIES = 3


@dataclass(frozen=True, slots=True)
class ClockSync:
    """What `sync_time` found and did.

    `how`: `left` (they agreed), `step`, `slew` (the difference is brought in bit by bit), `ptp` (a step
    to the hypervisor's own clock), or `sent` to an agent that does not tell its time.  `before` and
    `after`: seconds that the guest's clock was ahead of this host's, None where it was not told.
    `round_trip`: seconds of the ping that told it; half of that is the most by which `after` can be wrong.
    """

    how: str
    before: float | None
    after: float | None
    round_trip: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """Times in ns.  `host` and `monotonic`: this host's clock and the agent's monotonic one at one moment."""

    ahead: int
    round_trip: int
    host: int
    monotonic: int

    @property
    def differs(self) -> bool:
        """The clocks differ by more than is left alone, and by more than the measurement can be wrong."""
        return abs(self.ahead) > max(LEAST * 1e9, self.round_trip / 2)


async def measure(ping: Callable[[], Awaitable[PingResponse]]) -> Measurement | None:
    """The fastest of some pings; None: the agent does not tell its time."""
    best: Measurement | None = None
    end = time.monotonic() + LONG_ENOUGH
    for _ in range(PINGS):
        # The host's own clock may be set meanwhile: the round trip is taken from the other one.
        # Read first, so that whatever comes between the two counts as a part of it.
        began = time.monotonic_ns()
        sent = time.time_ns()
        reply = await ping()
        round_trip = time.monotonic_ns() - began
        if not reply.time_ns:
            return None
        if round_trip < (best.round_trip if best else math.inf):
            host = sent + round_trip // 2
            best = Measurement(reply.time_ns - host, round_trip, host, reply.monotonic_ns)
        if time.monotonic() > end:
            break
    return best

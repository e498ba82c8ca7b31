"""Orphans: what PID 1 inherits, and has to reap.

Every child of the agent's own has an owner, which takes its status (children.py).  A zombie
without one is an orphan, unless it may be the child of a spawn that is under way.
"""

from __future__ import annotations

import os
import signal

from arcbox_agent.agent.processes.stat_line import zombies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Container, Mapping
    from typing import Protocol

    from arcbox_agent._spawn import Attempt

    class UnderWay(Protocol):
        """A spawn that may have made a child."""

        attempt: Attempt


class Orphans:
    """`owned`: pids whose status is taken elsewhere.  `in_flight`: the spawns under way, by their tickets.

    `count`: adds to a counter.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        owned: Container[int],
        in_flight: Mapping[int, UnderWay],
        count: Callable[[str, int], None],
    ) -> None:
        self._loop = loop
        self._owned = owned
        self._in_flight = in_flight
        self._count = count
        #: Zombies that may be the child of a spawn under way: pid to the tickets of those spawns.
        self.doubtful: dict[int, set[int]] = {}
        self._watching = False

    def reap(self) -> int:
        """Reap the zombies without an owner; returns how many.  For PID 1, at each SIGCHLD."""
        reaped = 0
        for pid in zombies():
            if pid in self._owned:
                continue  # its pidfd is readable, and its owner takes its status
            if self._in_flight:
                own = {ticket for ticket, spawning in self._in_flight.items() if spawning.attempt.may_own(pid)}
                suspects = self.doubtful.setdefault(pid, own)
                suspects &= own
                if suspects:
                    continue
            self.doubtful.pop(pid, None)
            try:
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None:
                    reaped += 1
            except ChildProcessError:
                continue
        if reaped:
            self._count("orphans_reaped", reaped)
        return reaped

    def watch(self) -> None:
        """Reap orphans from now on.  For PID 1, in the main thread."""
        # Not add_signal_handler: uvloop reserves SIGCHLD for its own subprocesses.  The handler may run
        # between any two instructions, so it only schedules a call.
        self._watching = True
        signal.signal(signal.SIGCHLD, self._child_ended)
        self._loop.call_soon(self.reap)

    def _child_ended(self, *_: object) -> None:
        # After a failure the loop is closed while the handler is still installed.  An exception here
        # would be raised in whatever PID 1 does then, and end it.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.reap)

    def settle(self, ticket: int) -> None:
        """That spawn is no longer under way: what may have been its child is owned, or an orphan."""
        for suspects in self.doubtful.values():
            suspects.discard(ticket)
        for pid in [pid for pid in self.doubtful if pid in self._owned]:
            del self.doubtful[pid]
        if not all(self.doubtful.values()):
            self.reap()

    def close(self) -> None:
        if self._watching:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

"""A spawn that is under way, and the error of one that was given up."""

from __future__ import annotations

import time

from arcbox_agent._spawn import Attempt

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    #: What is called when a spawn that was given up is over, and nothing of it runs any more.
    Late = Callable[[], None]


class HungError(Exception):
    """A spawn was given up: it had not come to its program in time.  Its child is killed, now or as soon as it can be.

    `step`: where it stood, or "" where it waited for others.
    """

    def __init__(self, key: str | None, step: str, seconds: float) -> None:
        if step:
            where = f"it hangs at the step `{step}` and is killed"
        else:
            whose = f"container {key}" if key is not None else "the guest"
            where = f"it waited behind others in {whose} that hang"
        super().__init__(f"not started within {seconds:g} s: {where}")
        self.step = step


class SpawnUnderWay:
    """A spawn that is under way: its thread may have made a child that has no owner yet.

    `future`: pid, pidfd and start time; filled in when it has a thread, or waits for one.
    """

    __slots__ = (
        "attempt",
        "began",
        "future",
        "given_up",
        "key",
        "kill",
        "late",
        "limit",
        "outlives",
        "since",
        "ticket",
        "timer",
        "told",
    )

    future: asyncio.Future[tuple[int, int, int]]

    def __init__(
        self, ticket: int, key: str | None, began: float, limit: float, outlives: bool, late: Late | None
    ) -> None:
        self.ticket = ticket
        self.attempt = Attempt()
        #: Gives it up.
        self.timer: asyncio.TimerHandle | None = None
        #: Kills the child where another process has it.
        self.kill: Callable[[], None] | None = None
        self.key = key
        self.began = began
        self.limit = limit
        self.outlives = outlives
        self.late = late
        self.since = time.time()
        self.given_up = False
        self.told = False

    @property
    def step(self) -> str:
        """Where it stands, as far as that is known."""
        if self.kill is not None and not self.attempt.begun:
            return "mount or exec"  # in another process
        return self.attempt.step

    def end(self) -> None:
        """Kill the child, and make none any more."""
        self.attempt.cancel()
        if self.kill is not None:
            self.kill()

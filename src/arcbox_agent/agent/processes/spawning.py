"""Spawns that hang: the error of one that was given up, and the end of what was stopped before it ran its program."""

from __future__ import annotations

import os
import signal

from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.processes.stat_line import stopped_before_exec

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    #: What is called when a spawn that was given up is over, and nothing of it runs any more.
    Late = Callable[[], None]

log = Logger("processes")


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


def kill_stopped(parents: list[int]) -> None:
    """Kill the children of these processes that were stopped before they executed their program.  For a thread."""
    for pid in [pid for parent in parents for pid in stopped_before_exec(parent)]:
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
        log.warning("a process was stopped before it ran its program: killed", pid=pid)


def take_failure(look: asyncio.Future[None]) -> None:
    error = None if look.cancelled() else look.exception()
    if error is not None:  # most likely no descriptor is left: the next look may have one
        log.debug("cannot look for stopped processes", error=error)

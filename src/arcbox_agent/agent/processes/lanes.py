"""Threads for what blocks."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor


class Threads(ThreadPoolExecutor):
    """A pool that makes do with the threads it has where the system gives it no more.

    A container that forks without end leaves none to be had, and must not keep the agent from
    ending it.  The standard pool queues the work and raises: whoever asked takes it for failed,
    and it is done all the same, by the next thread that is free.
    """

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError as error:
            if not self._threads:
                self._work_queue.get_nowait()  # so that it is not done later
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error

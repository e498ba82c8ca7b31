"""Every thread pool of the agent, by what its work may wait for.

    lane      threads   its work                               it may wait for
    spawn     8         clone, and what a spawn opens first    the file systems of a program and of its root
    disk      4         records, run directories, passwd       the disk of the agent's state, a container's root
    signals   2         kill, signal, alive, cgroups           kernel memory only
    keeper    1         requests to the keeper, in order       the keeper, for its PATIENCE
    reads     default   the loop's default executor: logs      the disk of the logs

Work goes into the lane whose waits it can bear: what hangs on a disk holds up no
signal, and a root file system that hangs holds up no record.

Capture has a thread of its own (containers/output/capture.py), which runs compiled code.
"""

from __future__ import annotations

import asyncio
import errno
import os
from concurrent.futures import ThreadPoolExecutor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar, TypeVarTuple

    T = TypeVar("T")
    Ts = TypeVarTuple("Ts")

#: More spawns wait in line: a spawn is short, unless a file system hangs.
SPAWN_THREADS = 8

DISK_THREADS = 4

SIGNAL_THREADS = 2


class Threads(ThreadPoolExecutor):
    """A pool that makes do with the threads it has where the system gives it no more.

    A container that forks without end uses up the threads of the system, and must not keep the
    agent from ending it.  The standard pool queues the work and raises: the caller takes the work
    for failed, and the next free thread does it all the same.
    """

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError as error:
            if not self._threads:
                self._work_queue.get_nowait()  # so that it is not done later
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error


class Lanes:
    """The one owner of the agent's thread pools.

    Each method runs `fn(*args)` in a thread of its lane and returns the future of the result.
    OSError (EAGAIN), at once: the lane has no thread, and the system gives it none.
    """

    __slots__ = ("_disk", "_keeper", "_loop", "_reads", "_signals", "_spawn")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._spawn = Threads(SPAWN_THREADS, thread_name_prefix="spawn")
        self._disk = Threads(DISK_THREADS, thread_name_prefix="disk")
        self._signals = Threads(SIGNAL_THREADS, thread_name_prefix="signals")
        self._keeper = Threads(1, thread_name_prefix="keeper")
        self._reads = Threads(thread_name_prefix="reads")

    def spawn(self, fn: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        return self._loop.run_in_executor(self._spawn, fn, *args)

    def disk(self, fn: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        return self._loop.run_in_executor(self._disk, fn, *args)

    def signals(self, fn: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        return self._loop.run_in_executor(self._signals, fn, *args)

    def keeper(self, fn: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        return self._loop.run_in_executor(self._keeper, fn, *args)

    def become_default(self) -> None:
        """Make `reads` the loop's default executor: for `asyncio.to_thread` and `run_in_executor(None)`."""
        self._loop.set_default_executor(self._reads)

    def close(self) -> None:
        """Take no more work, and drop what has not begun.  It does not wait: a file system may hang for ever."""
        for pool in (self._spawn, self._disk, self._signals, self._keeper, self._reads):
            pool.shutdown(wait=False, cancel_futures=True)

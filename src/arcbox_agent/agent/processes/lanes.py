"""Every thread pool of the agent, by what its work may wait for.

    lane      threads   share   its work                               it may wait for
    spawn     8         4       clone, and what a spawn opens first    the file systems of a program and of its root
    signals   4         2       kill, signal, alive                    kernel memory only
    removal   4         1       ending and removing cgroups            what cannot be killed, for a bounded time
    looks     2         1       what /proc says of processes           a process that hangs in a page fault
    disk      4                 records, run directories               the disk of the agent's state
    keeper    1                 requests to the keeper, in order       the keeper, for its PATIENCE
    reads     default           the loop's default executor: logs      the disk of the logs

Work goes into the lane whose waits it can bear: what hangs on a disk holds up no
signal, and a root file system that hangs holds up no record.  The first four have a share
for each container (pool.py): what hangs in one container holds up no other, nor the guest.

Capture has a thread of its own (containers/output/capture.py), which runs compiled code.
"""

from __future__ import annotations

import asyncio
import errno
import os
from concurrent.futures import ThreadPoolExecutor

from arcbox_agent.agent.processes.pool import Pool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar, TypeVarTuple

    T = TypeVar("T")
    Ts = TypeVarTuple("Ts")

#: Threads, the share of one container, what is left for the guest, and how much may wait.
SPAWN = 8, 4, 2, 128
SIGNALS = 4, 2, 1, 1 << 20  # the agent's own work, of which there is no more than there are commands
REMOVAL = 4, 1, 1, 1 << 20
LOOKS = 2, 1, 0, 16

DISK_THREADS = 4


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
    `key`: the container for which it is done; None: the guest, or the agent itself.
    OSError (EAGAIN), at once: the lane has no thread, and the system gives it none.
    BusyError, at once: too much waits for that container.
    """

    __slots__ = ("_disk", "_keeper", "_loop", "_reads", "looks", "removal", "signals", "spawn")

    def __init__(self) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self.spawn = Pool(loop, "spawn", *SPAWN)
        self.signals = Pool(loop, "signals", *SIGNALS)
        self.removal = Pool(loop, "removal", *REMOVAL)
        self.looks = Pool(loop, "looks", *LOOKS)
        self._disk = Threads(DISK_THREADS, thread_name_prefix="disk")
        self._keeper = Threads(1, thread_name_prefix="keeper")
        self._reads = Threads(thread_name_prefix="reads")

    def disk(self, fn: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        return self._loop.run_in_executor(self._disk, fn, *args)

    def keeper(self, fn: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        return self._loop.run_in_executor(self._keeper, fn, *args)

    def become_default(self) -> None:
        """Make `reads` the loop's default executor: for `asyncio.to_thread` and `run_in_executor(None)`."""
        self._loop.set_default_executor(self._reads)

    def close(self) -> None:
        """Take no more work, and drop what has not begun.  It does not wait: a file system may hang for ever."""
        for executor in (self._disk, self._keeper, self._reads):
            executor.shutdown(wait=False, cancel_futures=True)
        for pool in (self.spawn, self.signals, self.removal, self.looks):
            pool.close()

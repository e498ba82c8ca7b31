"""Writes records to disk, and repeats what could not be written until the disk takes it."""

from __future__ import annotations

import asyncio

from arcbox_agent.agent.containers.lifecycle import Write
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.errors import AgentFailedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from arcbox_agent.agent.containers.model import Container
    from arcbox_agent.agent.containers.record import Record
    from arcbox_agent.agent.containers.store import Store
    from arcbox_agent.agent.containers.tasks import Tasks
    from arcbox_agent.agent.processes.lanes import Lanes

log = Logger("containers")

#: Seconds until a write that failed is repeated.
RETRY = 1.0


class RecordWriter:
    """The records on disk, as far as containers change.  The caller holds the container's lock.

    `release` lets go of what a run needed, once its end is on disk: until then the next agent
    would learn the exit code from it.
    """

    __slots__ = ("_dirty", "_lanes", "_release", "_retrying", "_store", "_tasks")

    def __init__(self, store: Store, lanes: Lanes, tasks: Tasks, release: Callable[[Record], Awaitable[None]]) -> None:
        self._store = store
        self._lanes = lanes
        self._tasks = tasks
        self._release = release
        #: Containers whose record on disk is older than the one in memory.
        self._dirty: set[Container] = set()
        self._retrying: asyncio.Task[None] | None = None

    async def write(self, container: Container, write: Write) -> bool:
        """Write the record as a transition asks; whether it is on disk now.  OSError: a REQUIRED write failed."""
        if write is Write.NOTHING:
            return True
        try:
            await self._write(container, durable=write is not Write.REPEATED_UNSYNCED)
            return True
        except OSError as error:
            if write is Write.REQUIRED:
                raise
            if write is not Write.ATTEMPTED:
                self._repeat(container, error)
            return False

    async def write_pending(self, container: Container) -> None:
        """Before a start: the end of the last run first, where it is not on disk yet.

        What that run left (pid file, pidfd) tells the next agent of its end, and would be
        taken for the new run's.  AgentFailedError: the disk does not take it.
        """
        if container not in self._dirty:
            return
        try:
            await self._write(container)
        except OSError as error:
            raise AgentFailedError(f"the last run's end cannot be recorded: {error.strerror}") from error
        await self._release(container.record)

    async def delete(self, container: Container) -> None:
        """Delete the record and all files of the container.  OSError: some are left, and the record with them."""
        await self._lanes.disk(self._store.remove, container.id)
        self._dirty.discard(container)

    async def _write(self, container: Container, durable: bool = True) -> None:
        await self._lanes.disk(self._store.write, container.record.copy(), durable)
        self._dirty.discard(container)

    def _repeat(self, container: Container, error: OSError) -> None:
        if not self._dirty:
            log.error("the state of containers cannot be written, and is tried again", error=error)
        self._dirty.add(container)
        if self._retrying is None or self._retrying.done():
            self._retrying = self._tasks.spawn_detached(self._retry())

    async def _retry(self) -> None:
        while self._dirty:
            await asyncio.sleep(RETRY)
            for container in list(self._dirty):
                async with container.lock:
                    if container not in self._dirty:
                        continue  # written or removed while this waited for the lock
                    try:
                        await self._write(container)
                    except OSError:
                        break
                    if not container.active:
                        await self._release(container.record)
        log.info("the state of containers is written again")

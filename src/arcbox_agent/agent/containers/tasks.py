"""Tasks of the agent, not of the client that asked: a client that goes away leaves no half-done change behind."""

from __future__ import annotations

import asyncio
from contextvars import Context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any, TypeVar

    T = TypeVar("T")


class Tasks:
    """Tasks that live until they are done or the agent ends."""

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task for the request at hand: its log lines name the peer and the trace id."""
        return self._keep(asyncio.get_running_loop().create_task(work))

    def spawn_detached(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that outlives the request in which it begins, and whose log lines do not name it."""
        return self._keep(asyncio.get_running_loop().create_task(work, context=Context()))

    async def own(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end even if the caller is cancelled, and return its result."""
        return await asyncio.shield(self.spawn(work))

    async def close(self) -> None:
        """Cancel what is not done, and wait for it."""
        tasks = [task for task in self._tasks if not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _keep(self, task: asyncio.Task[T]) -> asyncio.Task[T]:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

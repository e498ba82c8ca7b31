"""Tasks of the agent, not of the client that asked: a client that goes away leaves no half-done change behind."""

from __future__ import annotations

import asyncio
from contextvars import Context

from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.observe.rate import OncePerMinute
from arcbox_agent.errors import RequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any, TypeVar

    T = TypeVar("T")


log = Logger("containers")
_failed = OncePerMinute()


def take_failure(work: asyncio.Future[Any]) -> None:
    """A done callback of work that nobody waits for, or whose client has gone away: it takes the exception.

    A refusal concerned that client alone.  A failure of the agent is logged, once a minute.
    """
    error = None if work.cancelled() else work.exception()
    if error is not None and not isinstance(error, RequestError):
        suppressed = _failed.admit()
        if suppressed is not None:
            log.exception("work that nobody waits for failed", error, also_failed=suppressed)


class Tasks:
    """Tasks that live until they are done or the agent ends."""

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task for the request at hand: its log lines name the peer and the trace id."""
        task = self._keep(asyncio.get_running_loop().create_task(work))
        task.add_done_callback(take_failure)
        return task

    def spawn_detached(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that outlives the request in which it begins, and whose log lines do not name it."""
        task = self._keep(asyncio.get_running_loop().create_task(work, context=Context()))
        task.add_done_callback(take_failure)
        return task

    async def own(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end even if the caller is cancelled, and return its result."""
        task = self._keep(asyncio.get_running_loop().create_task(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(take_failure)
            raise

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

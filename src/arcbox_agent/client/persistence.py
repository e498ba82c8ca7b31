"""Trying again, for a bounded time, while the agent is away: it restarts, or the connection is cut."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from arcbox_agent.client.transport import is_lasting
from arcbox_agent.errors import ArcboxError, BusyError, ConnectError, RequestError, TransportError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from arcbox_agent.client.caller import Caller

T = TypeVar("T")

#: Seconds between two tries: at first, and at most.
FIRST_PAUSE, LAST_PAUSE = 0.02, 1.0

#: The code of an agent that has heard nothing of its client for too long.
_SILENT = 408


def is_passing(error: ArcboxError) -> bool:
    """Whether the same request may be answered later."""
    if isinstance(error, ConnectError):
        return not is_lasting(error)
    if isinstance(error, RequestError):
        return isinstance(error, (BusyError, UnavailableError)) or error.code == _SILENT
    return isinstance(error, TransportError)


async def persist(
    caller: Caller,
    action: Callable[[], Awaitable[T]],
    seconds: float,
    *,
    also: Callable[[ArcboxError], bool] = lambda error: False,
) -> T:
    """The result of `action`, which is tried again for `seconds` while what it raises is passing.

    Nothing is tried again once the client is closed.

    It may be repeated: it does no harm that a try whose reply was lost had been done.  `also`: other
    errors that pass.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    pause = FIRST_PAUSE
    while True:
        try:
            return await action()
        except ArcboxError as error:
            if not (is_passing(error) or also(error)) or caller.closed or loop.time() + pause >= deadline:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, LAST_PAUSE)

"""What asyncio, uvloop and concurrent.futures report, as lines of the agent's own log."""

from __future__ import annotations

import sys

from arcbox_agent.agent.observe import log as agent_log
from arcbox_agent.agent.observe.log import Logger, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from typing import Any

loop_log = Logger("loop")


def handle_loop_exception(loop: AbstractEventLoop, context: dict[str, Any]) -> None:
    """What asyncio and uvloop call for an exception that nobody caught."""
    error = context.get("exception")
    message = str(context.get("message", "unhandled exception in the event loop"))
    if isinstance(error, BaseException):
        loop_log.exception("unhandled exception", error, context=message)
    else:
        loop_log.error("unhandled event", context=message)


class AsyncioLogger:
    """What asyncio and concurrent.futures take for a logger of the logging module."""

    def debug(self, message: object, *arguments: object, **options: object) -> None:
        loop_log.debug(_formatted(message, arguments))

    def info(self, message: object, *arguments: object, **options: object) -> None:
        loop_log.info(_formatted(message, arguments))

    def warning(self, message: object, *arguments: object, **options: object) -> None:
        loop_log.warning(_formatted(message, arguments))

    def error(self, message: object, *arguments: object, exc_info: object = None, **options: object) -> None:
        error = exc_info if isinstance(exc_info, BaseException) else sys.exc_info()[1] if exc_info else None
        if error is not None:
            loop_log.exception(_formatted(message, arguments), error)
        else:
            loop_log.error(_formatted(message, arguments))

    critical = error

    def exception(self, message: object, *arguments: object, **options: object) -> None:
        self.error(message, *arguments, exc_info=True)

    def log(self, level: int, message: object, *arguments: object, **options: object) -> None:
        loop_log.log(level, _formatted(message, arguments))

    def addHandler(self, handler: object) -> None:
        """concurrent.futures adds one that writes to stderr; here all goes there."""

    def isEnabledFor(self, level: int) -> bool:
        return level >= agent_log.sink.level

    def getEffectiveLevel(self) -> int:
        return agent_log.sink.level


def _formatted(message: object, arguments: tuple[object, ...]) -> str:
    # As a quoted value is, so that what is named in it cannot begin another line.
    text = str(message) % arguments if arguments else str(message)
    return text if len(text) <= agent_log.MOST_OF_VALUE and text.isprintable() else quote(text)

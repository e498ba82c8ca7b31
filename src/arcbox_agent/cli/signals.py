"""Ctrl-C and the other signals that end a program, handled on the event loop.

A signal ends arcboxctl with 128 + its number as exit code, unless the command has
set another handler (`run` forwards signals to its container).
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType
    from typing import Any

_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Signals:
    """The signals of one command."""

    def __init__(self) -> None:
        self.received: int = 0
        self.on_signal: Callable[[int], None] = self.end
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[int] | None = None
        self._installed: list[int] = []

    def __enter__(self) -> Signals:
        for number in _HANDLED:
            # A signal that was ignored from the start (nohup, a shell's background job) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._loop.add_signal_handler(number, self._arrived, number)
                self._installed.append(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._installed:
            self._loop.remove_signal_handler(number)

    def _arrived(self, number: int) -> None:
        self.on_signal(number)

    def end(self, number: int) -> None:
        """End the command."""
        self.received = number
        if self._task is not None:
            self._task.cancel()

    async def guard(self, work: Coroutine[Any, Any, int]) -> int:
        """The result of `work`, or 128 + the number of the signal that ended it."""
        self._task = asyncio.current_task()
        try:
            return await work
        except asyncio.CancelledError:
            if not self.received:
                raise
            return 128 + self.received

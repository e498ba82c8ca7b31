"""Our own terminal while a command in the guest has it: raw, and as it was before on every way out."""

from __future__ import annotations

import asyncio
import os
import signal
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

STDIN = 0


def is_terminal() -> bool:
    return os.isatty(STDIN)


def size() -> tuple[int, int]:
    """Rows and columns: LINES and COLUMNS, else of the first standard stream that is a terminal, else (24, 80)."""
    rows, columns = (
        int(text) if (text := os.environ.get(name, "")).isdecimal() else 0 for name in ("LINES", "COLUMNS")
    )
    for fd in (1, 0, 2):
        try:
            found = os.get_terminal_size(fd)
        except OSError:
            continue
        rows, columns = rows or found.lines, columns or found.columns
    return rows or 24, columns or 80


class RawTerminal:
    """Standard input as a terminal that passes every byte on as it is typed: Ctrl-C, Ctrl-Z and Ctrl-\\ too.

    Without a terminal at standard input it does nothing.
    """

    def __init__(self) -> None:
        self._before: list[int | list[bytes | int]] | None = None
        self._watched = False

    def __enter__(self) -> RawTerminal:
        if is_terminal():
            self._before = termios.tcgetattr(STDIN)
            self._set_raw()
            # A shell that continues us has set the modes of its own command line in between.
            asyncio.get_running_loop().add_signal_handler(signal.SIGCONT, self._set_raw)
            self._watched = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watched:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGCONT)
        if self._before is not None:
            try:
                termios.tcsetattr(STDIN, termios.TCSADRAIN, self._before)
            except termios.error:
                pass  # It has hung up.

    def _set_raw(self) -> None:
        """As cfmakeraw(3): eight bits, nothing interpreted, nothing echoed."""
        assert self._before is not None
        iflag, oflag, cflag, lflag, ispeed, ospeed, characters = self._before
        assert isinstance(iflag, int) and isinstance(oflag, int) and isinstance(cflag, int) and isinstance(lflag, int)
        assert isinstance(characters, list)
        iflag &= ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        oflag &= ~termios.OPOST
        lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        characters = [*characters]
        characters[termios.VMIN], characters[termios.VTIME] = 1, 0
        raw = [iflag, oflag, cflag, lflag, ispeed, ospeed, characters]
        try:
            termios.tcsetattr(STDIN, termios.TCSADRAIN, raw)
        except termios.error:
            pass  # It has hung up.


class Resizes:
    """Calls `changed(rows, columns)` whenever the size of our terminal changes."""

    def __init__(self, changed: Callable[[int, int], None]) -> None:
        self._changed = changed

    def __enter__(self) -> Resizes:
        asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, lambda: self._changed(*size()))
        # It may have changed since the command was asked for.
        self._changed(*size())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGWINCH)

"""Output of the guest, passed on to stdout and stderr as the event loop allows."""

from __future__ import annotations

import asyncio
import os
import select
import stat
import sys
from typing import TYPE_CHECKING, Any

from arcbox_agent.cli.output import STDOUT, entry_as_json, gap_as_text, joined, json_line, stream_fd, warn
from arcbox_agent.readiness import until_writable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from arcbox_agent.wire import LogEntry


class OutputStream:
    """Writes output of the guest to our stdout and stderr, without blocking the event loop.

    So a signal is handled while a pipe is full, and a slow reader of our output causes
    backpressure, which slows the agent down.

    `watch`: a reader of our stdout that goes ends the command at once; otherwise the next write does.
    """

    def __init__(self, *, watch: bool = True) -> None:
        self._watch = watch
        #: Places where output is lost.
        self.gaps = 0
        self._reader_gone = False
        self._task = asyncio.current_task()
        self._watched = False

    async def __aenter__(self) -> OutputStream:
        # `logs -f web | grep -m1 ready` ends when grep does, not at the next line.
        # epoll reports a closed read end whichever event it is asked for.
        if self._watch and sys.platform == "linux" and stat.S_ISFIFO(os.fstat(STDOUT).st_mode):
            asyncio.get_running_loop().add_reader(STDOUT, self._stdout_closed)
            self._watched = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watched:
            asyncio.get_running_loop().remove_reader(STDOUT)
        if self._reader_gone and isinstance(error, asyncio.CancelledError):
            raise BrokenPipeError from None

    def _stdout_closed(self) -> None:
        asyncio.get_running_loop().remove_reader(STDOUT)
        self._watched = False
        self._reader_gone = True
        if self._task is not None:
            self._task.cancel()

    async def write(self, fd: int, data: bytes) -> None:
        """Write all of `data`, waiting as often as needed.  Raises BrokenPipeError if the reader has gone."""
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        # poll() reports a pipe as writable when PIPE_BUF bytes fit.  A longer write could
        # block, and with it the event loop, until somebody reads the pipe.  A file is always
        # ready, and takes everything at once.
        room = len(data) if stat.S_ISREG(os.fstat(fd).st_mode) else select.PIPE_BUF
        rest = memoryview(data)
        while rest:
            if not poll.poll(0):
                await until_writable(fd)
                continue
            try:
                rest = rest[os.write(fd, rest[:room]) :]
            except BlockingIOError:
                # The descriptor is non-blocking: whoever started us made it so.
                await until_writable(fd)

    async def pass_on(self, entries: Sequence[LogEntry], *, as_json: bool = False) -> None:
        """Write what a container wrote, each of its streams to ours of the same name."""
        begin = 0
        for index, entry in enumerate(entries):
            if entry.gap is None:
                continue
            self.gaps += 1
            if not as_json:
                await self._write_joined(entries[begin:index])
                warn(gap_as_text(entry.gap))
                begin = index + 1
        if as_json:
            await self.write(STDOUT, b"".join(map(entry_as_json, entries)))
            return
        await self._write_joined(entries[begin:] if begin else entries)

    async def _write_joined(self, entries: Sequence[LogEntry]) -> None:
        for stream, data in joined(entries):
            await self.write(stream_fd(stream), data)

    async def write_json(self, value: dict[str, Any]) -> None:
        await self.write(STDOUT, json_line(value))

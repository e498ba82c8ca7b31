"""Bytes for stdout and stderr as they came, and JSON for programs."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import select
import stat
import sys
from typing import TYPE_CHECKING, Any

from arcbox_agent.cli.printable import printable
from arcbox_agent.cli.times import rfc3339

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from arcbox_agent.logs import Entry
    from arcbox_agent.wire import LogEntry, Message

STDOUT = 1
STDERR = 2

#: poll() calls a pipe writable when this much fits: more could block, and with it Ctrl-C.
_ALWAYS_FITS = 4096


class Output:
    """stdout and stderr of a command whose output is passed on.

    Nothing here blocks the event loop, so signals are noticed while a pipe is full,
    and the agent is slowed down by what reads our output slowly.
    """

    def __init__(self) -> None:
        self._reader_gone = False
        self._task = asyncio.current_task()
        self._watched = False

    async def __aenter__(self) -> Output:
        # `logs -f web | grep -m1 ready` ends when grep does, not at the next line.
        # epoll tells of it whatever it is asked for.
        if sys.platform == "linux" and stat.S_ISFIFO(os.fstat(STDOUT).st_mode):
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
        """Raises BrokenPipeError where nobody reads it any more."""
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        # A file takes everything at once, and is always ready.
        room = len(data) if stat.S_ISREG(os.fstat(fd).st_mode) else _ALWAYS_FITS
        rest = memoryview(data)
        while rest:
            if not poll.poll(0):
                await _writable(fd)
                continue
            try:
                rest = rest[os.write(fd, rest[:room]) :]
            except BlockingIOError:
                # Whoever started us made it non-blocking.
                await _writable(fd)

    async def pass_on(self, entries: Sequence[LogEntry], *, as_json: bool = False) -> None:
        """What a container wrote, each stream to the one of the same name here."""
        if as_json:
            await self.write(STDOUT, b"".join(map(entry_as_json, entries)))
            return
        for stream, data in joined(entries):
            await self.write(stream_fd(stream), data)

    async def write_json(self, value: dict[str, Any]) -> None:
        await self.write(STDOUT, json_line(value))


async def _writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def is_writable() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(fd, is_writable)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


def write_all(fd: int, data: bytes) -> None:
    """Where nothing else is to be done meanwhile."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            # Whoever started us made it non-blocking.
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()


def stream_fd(stream: str) -> int:
    return STDERR if stream == "stderr" else STDOUT


def joined(entries: Sequence[LogEntry | Entry]) -> list[tuple[str, bytes]]:
    """Bytes as they were written; entries of one stream in a row become one write."""
    runs: list[tuple[str, list[bytes]]] = []
    for entry in entries:
        if not runs or runs[-1][0] != entry.stream:
            runs.append((entry.stream, []))
        # One that is partial goes on in the next, or had no newline at the very end.
        runs[-1][1].append(entry.data if entry.partial else entry.data + b"\n")
    return [(stream, b"".join(lines)) for stream, lines in runs]


def entry_as_json(entry: LogEntry | Entry) -> bytes:
    # A line of a file that tells no times has 0.
    time = rfc3339(entry.timestamp) if entry.timestamp else None
    return json_line({"time": time, "stream": entry.stream, **payload(entry.data), "partial": entry.partial})


def json_line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def payload(data: bytes) -> dict[str, str]:
    """Output in JSON: as text where it is UTF-8, which it is nearly always."""
    try:
        return {"data": data.decode()}
    except UnicodeDecodeError:
        return {"data_base64": base64.b64encode(data).decode()}


def plain(value: Any) -> Any:
    """A message as dicts and lists: the schema's names, all fields."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if hasattr(type(value), "__match_args__"):
        return fields_of(value)
    return value


def fields_of(message: Message) -> dict[str, Any]:
    names: tuple[str, ...] = type(message).__match_args__
    return {name: plain(getattr(message, name)) for name in names}


def warn(text: str) -> None:
    print(f"arcboxctl: warning: {printable(text)}", file=sys.stderr)

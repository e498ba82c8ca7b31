"""Logs on disk for tests, and what the engine says of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from arcbox_agent import _log_output, _logs
from arcbox_agent.agent.logs.follower import Follow, Followers
from arcbox_agent.agent.logs.options import Options
from tests.reference.logs import Entry


def plain(entries: Sequence[_log_output.Entry]) -> list[Entry]:
    """Ours, as the judge has them."""
    return [Entry(e.stream, e.data, e.timestamp, e.partial) for e in entries]


def joined(entries: Sequence[Entry]) -> dict[str, bytes]:
    """Each stream's bytes: in what order the streams' parts come does not matter here."""
    streams = {"stdout": bytearray(), "stderr": bytearray()}
    for entry in entries:
        streams[entry.stream] += entry.data if entry.partial else entry.data + b"\n"
    return {name: bytes(text) for name, text in streams.items()}


def write_log(directory: Path, files: Sequence[bytes], name: str = "web.log") -> str:
    """`files`: oldest first, so that the last one is the log itself."""
    path = directory / name
    for number in range(100):
        sibling = Path(f"{path}.{number}")
        if number and sibling.exists():
            sibling.unlink()
    for number, content in enumerate(reversed(files)):
        Path(f"{path}.{number}" if number else path).write_bytes(content)
    return str(path)


class Output:
    """The output of a container that is over when `over` says so; whoever changes that wakes the follow."""

    def __init__(self, over: Callable[[], bool]) -> None:
        self.output_is_over = over

    def add_output_listener(self, listener: Callable[[], None]) -> None:
        pass

    def remove_output_listener(self, listener: Callable[[], None]) -> None:
        pass


def follow(followers: Followers, path: str, options: Options, over: Callable[[], bool]) -> Follow:
    """Follow the log at `path` until its output is over."""
    return followers.follow(options.reader(path, keep_open=True), options, Output(over))


def pass_whole(content: bytes, pieces: Sequence[int], **options: Any) -> list[Entry]:
    """Read a file that grows: by `pieces` bytes at a time, then by the rest."""
    fd = os.memfd_create("log")
    try:
        engine = _logs.Engine(**options)
        entries: list[_log_output.Entry] = []
        at = 0
        for size in [*pieces, len(content)]:
            os.write(fd, content[at : at + size])
            at += size
            status = _logs.MORE
            while status == _logs.MORE:
                status, output = engine.read(fd)
                entries += output
            assert status == _logs.END
        entries += engine.finish(fd)
        return plain(entries)
    finally:
        os.close(fd)

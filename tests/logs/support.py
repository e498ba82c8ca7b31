"""Logs on disk for tests, and what the engine says of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arcbox_agent import _log_output, _logs
from tests.reference.logs import Entry, Gap


def plain(entries: Sequence[_log_output.Entry]) -> list[Entry]:
    """Ours, as the judge has them."""
    return [
        Entry(
            entry.stream,
            entry.data,
            entry.timestamp,
            entry.partial,
            Gap(entry.gap.bytes, entry.gap.lines, entry.gap.at_least, entry.gap.reason) if entry.gap else None,
        )
        for entry in entries
    ]


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

"""Bytes for stdout and stderr as they were written, and JSON for programs."""

from __future__ import annotations

import base64
import json
import os
import select
import sys
from typing import TYPE_CHECKING, Any

from arcbox_agent.cli.printable import printable
from arcbox_agent.cli.times import rfc3339

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arcbox_agent.logs import Entry, Gap
    from arcbox_agent.wire import LogEntry, LogGap, Message

STDOUT = 1
STDERR = 2

#: Exit code of a command that --timeout ended: the same as timeout(1)'s.
TIMED_OUT = 124


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, blocking while a pipe is full."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            # The descriptor is non-blocking: whoever started us made it so.
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()


def stream_fd(stream: str) -> int:
    return STDERR if stream == "stderr" else STDOUT


def joined(entries: Sequence[LogEntry | Entry]) -> list[tuple[str, bytes]]:
    """The bytes as they were written, entries of the same stream in a row joined."""
    runs: list[tuple[str, list[bytes]]] = []
    for entry in entries:
        if entry.gap is not None:
            continue
        if not runs or runs[-1][0] != entry.stream:
            runs.append((entry.stream, []))
        # A partial entry goes on in the next one, or is the unfinished last line.
        runs[-1][1].append(entry.data if entry.partial else entry.data + b"\n")
    return [(stream, b"".join(lines)) for stream, lines in runs]


def entry_as_json(entry: LogEntry | Entry) -> bytes:
    # 0: a line of a file that has no times.
    time = rfc3339(entry.timestamp) if entry.timestamp else None
    gap = entry.gap
    value: dict[str, Any] = {
        "time": time,
        "stream": entry.stream,
        **payload(entry.data),
        "partial": entry.partial,
        "cursor": entry.cursor,
    }
    if gap is not None:
        value["gap"] = {"bytes": gap.bytes, "lines": gap.lines, "at_least": gap.at_least, "reason": gap.reason}
    return json_line(value)


def gap_as_text(gap: LogGap | Gap) -> str:
    """What is lost, and why."""
    if not gap.lines and not gap.bytes:
        return f"output may be lost here: {gap.reason}"
    least = "at least " if gap.at_least else ""
    return f"output is lost here: {least}{gap.lines} lines, {gap.bytes} bytes: {gap.reason}"


def json_line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def payload(data: bytes) -> dict[str, str]:
    """Output for JSON: text if it is UTF-8, as nearly all output is, else base64."""
    try:
        return {"data": data.decode()}
    except UnicodeDecodeError:
        return {"data_base64": base64.b64encode(data).decode()}


def plain(value: Any) -> Any:
    """A message as dicts and lists, with all fields under the schema's names, and moments in RFC 3339."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if hasattr(type(value), "__match_args__"):
        return fields_of(value)
    return value


def fields_of(message: Message) -> dict[str, Any]:
    names: tuple[str, ...] = type(message).__match_args__
    return {name: _field(name, getattr(message, name)) for name in names}


def _field(name: str, value: Any) -> Any:
    # Nanoseconds are more digits than a double has, which is what jq and JavaScript read a number into.
    if name.endswith("_at"):
        return rfc3339(value) if value else None
    return plain(value)


def warn(text: str) -> None:
    print(f"arcboxctl: warning: {printable(text)}", file=sys.stderr)

"""Output for people: tables with docker's columns, and lists of names with values."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from arcbox_agent.cli.printable import columns, printable
from arcbox_agent.cli.times import NANOSECONDS, in_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from arcbox_agent.wire import ContainerInfo, Execution

SHORT_ID = 12
_SHORT_COMMAND = 20
_GAP = 3


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [[printable(cell) for cell in line] for line in (header, *rows)]
    widths = [max(columns(line[column]) for line in lines) + _GAP for column in range(len(header))]
    return "\n".join(
        "".join(cell + " " * (width - columns(cell)) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def fields(rows: Iterable[tuple[str, str]]) -> str:
    """`name: value` lines, with the values aligned."""
    listed = list(rows)
    width = max((len(name) for name, _ in listed), default=0) + 2
    return "\n".join(f"{printable(name) + ':':<{width}}{printable(value)}".rstrip() for name, value in listed)


def containers(listed: Iterable[ContainerInfo], now: int, *, truncate: bool) -> str:
    """The table of `ps`."""
    return table(
        ("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES"),
        [
            (
                container.id[:SHORT_ID] if truncate else container.id,
                container.image,
                command(container.command, truncate=truncate),
                in_words(now - container.created * NANOSECONDS) + " ago",
                status(container, now),
                container.name,
            )
            for container in listed
        ],
    )


def executions(listed: Iterable[Execution], now: int, *, truncate: bool) -> str:
    """The table of `executions ls`."""
    return table(
        ("EXECUTION ID", "CONTAINER", "COMMAND", "CREATED", "STATUS"),
        [
            (
                each.id[:SHORT_ID] if truncate else each.id,
                (each.container_id[:SHORT_ID] if truncate else each.container_id) or "-",
                command(each.cmd, truncate=truncate),
                in_words(now - each.created_ns) + " ago",
                execution_status(each, now),
            )
            for each in listed
        ],
    )


def execution_status(execution: Execution, now: int) -> str:
    """`Up 2 minutes`, `Exited (0) 3 hours ago`, `Ended, nobody saw how, 3 hours ago`."""
    if execution.state == "ended":
        code = 128 + execution.signal if execution.signal else execution.exit_code
        how = "Ended, nobody saw how," if execution.cause == "unknown" else f"Exited ({code})"
        return f"{how} {in_words(now - execution.ended_ns)} ago"
    if execution.state == "running" and execution.started_ns:
        return f"Up {in_words(now - execution.started_ns)}"
    return execution.state.capitalize()


def command(words: Sequence[str], *, truncate: bool) -> str:
    text = " ".join(words)
    if truncate and len(text) > _SHORT_COMMAND:
        text = text[: _SHORT_COMMAND - 1] + "…"
    # Quoted, so that a newline in an argument does not break the table.
    return json.dumps(text, ensure_ascii=False)


def status(container: ContainerInfo, now: int) -> str:
    """`Up 2 minutes`, `Exited (0) 3 hours ago`, `Created`."""
    if container.state == "running" and container.started_at:
        return f"Up {in_words(now - container.started_at)}"
    if container.state == "stopped" and container.finished_at:
        return f"Exited ({container.exit_code}) {in_words(now - container.finished_at)} ago"
    # An agent that sends no times sends this text.
    return container.status


def size(count: int) -> str:
    """A number of bytes, in the unit that a person would use."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.4g} {unit}"


def short_size(count: int) -> str:
    """Bytes as docker's stats writes memory: `1.5MiB`."""
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"), 4)


def decimal_size(count: int) -> str:
    """Bytes as docker's stats writes transfers: `1.23kB`."""
    return _scaled(count, 1000, ("B", "kB", "MB", "GB", "TB"), 3)


def _scaled(count: int, base: int, units: Sequence[str], digits: int) -> str:
    value = float(count)
    for unit in units:
        # As it is written: 999.9 kB would be 1e+03 of them.
        if float(f"{value:.{digits}g}") < base or unit == units[-1]:
            break
        value /= base
    return f"{value:.{digits}g}{unit}"

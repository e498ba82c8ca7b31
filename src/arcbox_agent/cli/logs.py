"""logs: what a container has written, from the agent or from a file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from arcbox_agent.cli.completion import container_names
from arcbox_agent.cli.output import STDOUT, Output, entry_as_json, joined, stream_fd, write_all
from arcbox_agent.cli.session import Session, json_option, pass_session
from arcbox_agent.cli.times import parse_moment

if TYPE_CHECKING:
    from decimal import Decimal

    from arcbox_agent.cli.signals import Signals
    from arcbox_agent.client import Client


if TYPE_CHECKING:
    _IntType = click.ParamType[int]
    _TailType = click.ParamType[int | None]
else:
    # Generic from click 8.3 on, and for type checkers alone.
    _IntType = _TailType = click.ParamType


class Moment(_IntType):
    """--since and --until, as Unix nanoseconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_moment(value, time.time_ns())
        except (ValueError, OverflowError) as error:
            self.fail(str(error), param, ctx)


class Tail(_TailType):
    """A number of lines, or `all`."""

    name = "lines"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "all":
            return None
        if isinstance(value, int) or (value.isascii() and value.isdecimal() and len(value) < 19):
            return int(value)
        self.fail(f"{value!r} is neither a number of lines nor all", param, ctx)


@click.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on until the container ends.")
@click.option("-n", "--tail", type=Tail(), default="all", metavar="LINES", help="Only so many lines from the end.")
@click.option("--since", type=Moment(), metavar="TIME", help="From then on: Unix seconds, RFC 3339, or 10m ago.")
@click.option("--until", type=Moment(), metavar="TIME", help="Up to then.")
@click.option("-t", "--timestamps", is_flag=True, help="Each line begins with its time.")
@click.option("--stdout", is_flag=True, help="Only standard output.")
@click.option("--stderr", is_flag=True, help="Only standard error.")
@click.option(
    "--file",
    "path",
    metavar="PATH",
    type=click.Path(),
    help="Read this log file, here and without an agent, in place of a container's.",
)
@json_option
@click.argument("container", required=False, shell_complete=container_names)
@pass_session
def logs_command(
    session: Session,
    container: str | None,
    path: str | None,
    follow: bool,
    tail: int | None,
    since: int | None,
    until: int | None,
    timestamps: bool,
    stdout: bool,
    stderr: bool,
) -> int:
    """Show what a container has written.

    Each stream comes on the one of the same name.  Ctrl-C ends a follow.
    """
    if (container is None) == (path is None):
        raise click.UsageError("one of CONTAINER and --file is needed")
    if path is not None:
        if follow:
            raise click.UsageError("--follow needs a container; a file alone is followed by `tail -F`")
        _show_file(session, path, tail, since, until, timestamps, stdout, stderr)
        return 0
    # As fields of JSON, times are there in any case.
    asked: dict[str, Any] = {"timestamps": timestamps and not session.json, "stdout": stdout, "stderr": stderr}

    async def work(client: Client, _: Signals) -> int:
        assert container is not None
        begin, lines = since, tail
        if tail == 0:
            # On the wire 0 lines means all.  Nothing old is asked for: what is after the last line.
            async with client.logs(container, tail=1) as entries:
                last = await entries.batch()
            begin, lines = max(since or 0, last[-1].timestamp + 1 if last else 0), None
            if not follow:
                return 0
        async with (
            Output() as output,
            client.logs(
                container, follow=follow, tail=lines or 0, since=_seconds(begin), until=_seconds(until), **asked
            ) as entries,
        ):
            while batch := await entries.batch():
                await output.pass_on(batch, as_json=session.json)
        return 0

    return session.call(work)


def _show_file(
    session: Session,
    path: str,
    tail: int | None,
    since: int | None,
    until: int | None,
    timestamps: bool,
    stdout: bool,
    stderr: bool,
) -> None:
    """Without an agent, so without an event loop: Ctrl-C simply ends us."""
    from arcbox_agent.logs import LogReader

    reader = LogReader(
        path,
        stdout=stdout or not stderr,
        stderr=stderr or not stdout,
        # 0 lines means all there; the file is opened none the less, so that a wrong path is told.
        tail=tail or 0,
        since=since,
        until=until,
        timestamps=timestamps and not session.json,
    )
    while (entries := reader.step()) is not None:
        if tail == 0:
            break
        if session.json:
            write_all(STDOUT, b"".join(map(entry_as_json, entries)))
        else:
            for stream, data in joined(entries):
                write_all(stream_fd(stream), data)


def _seconds(nanoseconds: int | None) -> Decimal | None:
    """Seconds without losing a nanosecond, which a float would."""
    if nanoseconds is None:
        return None
    from decimal import Decimal

    return Decimal(nanoseconds).scaleb(-9)

"""logs: show what a container has written, from the agent or from a file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from arcbox_agent.cli.completion import container_names
from arcbox_agent.cli.invocation import Invocation, json_option, pass_invocation
from arcbox_agent.cli.output import STDOUT, entry_as_json, gap_as_text, joined, stream_fd, warn, write_all
from arcbox_agent.cli.times import parse_moment

if TYPE_CHECKING:
    from decimal import Decimal

    from arcbox_agent.cli.signals import Signals
    from arcbox_agent.client import Client
    from arcbox_agent.client.keywords import LogsOptions


if TYPE_CHECKING:
    _IntType = click.ParamType[int]
    _TailType = click.ParamType[int | None]
else:
    # click's classes are generic from 8.3 on, and only for type checkers.
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
@click.option("-f", "--follow", is_flag=True, help="Follow the log until the container ends.")
@click.option(
    "-n", "--tail", type=Tail(), default="all", metavar="LINES", help="Show only this many lines from the end."
)
@click.option(
    "--since",
    type=Moment(),
    metavar="TIME",
    help="Show lines since a time: Unix seconds, RFC 3339, or 10m for 10 minutes ago.",
)
@click.option("--until", type=Moment(), metavar="TIME", help="Show lines up to a time.")
@click.option(
    "--after", metavar="CURSOR", default="", help="Show what comes behind the entry with this cursor (see --json)."
)
@click.option("-t", "--timestamps", is_flag=True, help="Show the time before each line.")
@click.option("--stdout", is_flag=True, help="Show only standard output.")
@click.option("--stderr", is_flag=True, help="Show only standard error.")
@click.option(
    "--file",
    "path",
    metavar="PATH",
    type=click.Path(),
    help="Read a log file on this machine, without an agent.",
)
@json_option
@click.argument("container", required=False, shell_complete=container_names)
@pass_invocation
def logs_command(
    invocation: Invocation,
    container: str | None,
    path: str | None,
    follow: bool,
    tail: int | None,
    since: int | None,
    until: int | None,
    after: str,
    timestamps: bool,
    stdout: bool,
    stderr: bool,
) -> int:
    """Show the logs of a container.

    Its standard output and standard error go to those of arcboxctl.  Ctrl-C ends a follow.
    """
    if after and tail is not None:
        raise click.UsageError("--after and --tail exclude each other")
    if (container is None) == (path is None):
        raise click.UsageError("one of CONTAINER and --file is needed")
    if path is not None:
        if follow:
            raise click.UsageError("--follow needs a container; a file alone is followed by `tail -F`")
        _show_file(invocation, path, tail, since, until, after, timestamps, stdout, stderr)
        return 0
    # JSON has the times as a field in any case.
    asked: LogsOptions = {"timestamps": timestamps and not invocation.json, "stdout": stdout, "stderr": stderr}

    async def work(client: Client, _: Signals) -> int:
        from arcbox_agent.cli.output_stream import OutputStream
        from arcbox_agent.wire import LogsRequest

        assert container is not None
        begin, lines = since, tail
        only_new = tail == 0 and client.knows_field(LogsRequest, "only_new")
        if only_new:
            lines = None
        elif tail == 0:
            # On the wire, 0 lines means all of them.  So read the last line, and follow from
            # the nanosecond after it.
            async with client.logs(container, tail=1) as entries:
                last = await entries.batch()
            begin, lines = max(since or 0, last[-1].timestamp + 1 if last else 0), None
            if not follow:
                return 0
        options: LogsOptions = {
            **asked,
            "follow": follow,
            "tail": lines or 0,
            "since": _seconds(begin),
            "until": _seconds(until),
            "after": after,
            "only_new": only_new,
        }
        async with OutputStream() as output, client.logs(container, **options) as entries:
            while batch := await entries.batch():
                await output.pass_on(batch, as_json=invocation.json)
        return 0

    return invocation.call(work)


def _show_file(
    invocation: Invocation,
    path: str,
    tail: int | None,
    since: int | None,
    until: int | None,
    after: str,
    timestamps: bool,
    stdout: bool,
    stderr: bool,
) -> None:
    """Show a file without an agent, and so without an event loop: Ctrl-C just ends us."""
    from arcbox_agent.logs import LogReader, Options

    try:
        Options(after=after)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--after") from None
    options = Options(
        after=after,
        stdout=stdout or not stderr,
        stderr=stderr or not stdout,
        # The reader takes 0 lines for all of them.  With --tail 0 the file is opened all the
        # same, so that a wrong path is an error.
        tail=tail or 0,
        since=since,
        until=until,
        timestamps=timestamps and not invocation.json,
    )
    reader = LogReader(path, options)
    while (entries := reader.step()) is not None:
        if tail == 0:
            break
        if invocation.json:
            write_all(STDOUT, b"".join(map(entry_as_json, entries)))
        else:
            for entry in entries:
                if entry.gap is not None:
                    warn(gap_as_text(entry.gap))
            for stream, data in joined(entries):
                write_all(stream_fd(stream), data)


def _seconds(nanoseconds: int | None) -> Decimal | None:
    """Seconds as a Decimal: a float would lose nanoseconds."""
    if nanoseconds is None:
        return None
    from decimal import Decimal

    return Decimal(nanoseconds).scaleb(-9)

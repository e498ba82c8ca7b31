"""The group of commands, the global options, and how every error ends."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, TextIO

import click

from arcbox_agent.cli.failures import OWN_FAILURE, report, report_click
from arcbox_agent.cli.session import DEFAULT_HOST, Session, set_json

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "arcboxctl"

#: Where each command is; imported when it is used.
COMMANDS = {
    "ping": "system",
    "info": "system",
    "runtime": "system",
    "sync-time": "system",
    "shutdown": "system",
    "create": "containers",
    "start": "containers",
    "stop": "containers",
    "kill": "containers",
    "wait": "containers",
    "rm": "containers",
    "ps": "containers",
    "top": "usage",
    "stats": "usage",
    "run": "run",
    "exec": "exec",
    "logs": "logs",
    "completion": "completion",
}


class OutputClosed(Exception):
    """What reads our output has had enough of it.  Not an OSError: click would end with 1."""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is asked for."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise OutputClosed from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        # `sync-time` is the function sync_time; `exec`, a builtin's name, exec_.
        name = cmd_name.replace("-", "_")
        found = import_module(f"arcbox_agent.cli.{module}")
        command: click.Command = getattr(found, f"{name}_command")
        return command


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from arcbox_agent import __version__

        click.echo(f"{PROGRAM} {__version__}")
        ctx.exit()


@click.command(
    cls=LazyGroup,
    name=PROGRAM,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 125 where arcboxctl or the agent could not do it; for run and exec 126 and 127 where "
    "the command cannot be executed or is not there, else the command's own code, 128 + N where signal N ended it.",
)
@click.option(
    "-H",
    "--host",
    metavar="ADDRESS",
    help="The agent: vsock://CID:PORT, unix:///PATH or firecracker:///PATH:PORT.  "
    f"Default: $ARCBOX_HOST, else {DEFAULT_HOST}.",
)
@click.option(
    "--wait",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Wait so long for an agent that is not there yet, in a guest that boots.",
)
@click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    callback=set_json,
    help="Output for programs: JSON, docs/arcboxctl.md says which.",
)
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show it.")
@click.pass_context
def arcboxctl(ctx: click.Context, host: str | None, wait: float) -> None:
    """Drive an arcbox agent: the containers, commands and logs of a guest."""
    session = ctx.ensure_object(Session)
    session.address = host or os.environ.get("ARCBOX_HOST") or DEFAULT_HOST
    session.wait = wait
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(arguments: Sequence[str]) -> int:
    """Do what `arguments` ask; the exit code."""
    try:
        return _run(arguments)
    except OSError as error:
        # Not even what went wrong could be told: standard error is full, or closed at its other end.
        _discard(sys.stderr)
        return 141 if isinstance(error, BrokenPipeError) else OWN_FAILURE


def _run(arguments: Sequence[str]) -> int:
    session = Session()
    try:
        code: Any = arcboxctl.main(list(arguments), prog_name=PROGRAM, standalone_mode=False, obj=session)
        sys.stdout.flush()
    except click.ClickException as error:
        # The --json behind an option that does not exist was never reached.
        report_click(error, session.json or (isinstance(error, click.UsageError) and "--json" in arguments))
        code = OWN_FAILURE
    except click.Abort:
        code = 130
    except (OutputClosed, BrokenPipeError):
        # Whichever of the two it was.
        _discard(sys.stdout)
        _discard(sys.stderr)
        code = 141
    except Exception as error:
        code = report(error, session.json)
        try:
            sys.stdout.flush()
        except OSError:  # a full disk: it was told, by this error or as this error
            _discard(sys.stdout)
    return code if isinstance(code, int) else 0


def _discard(stream: TextIO) -> None:
    """Python flushes a stream once more at exit, which would fail again, say so, and change the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

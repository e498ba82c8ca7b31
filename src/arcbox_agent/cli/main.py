"""The group of commands, the global options, and how every error ends."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, TextIO

import click

from arcbox_agent.cli.failures import OWN_FAILURE, report, report_click
from arcbox_agent.cli.invocation import DEFAULT_HOST, Invocation, set_json

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "arcboxctl"

#: Command -> its module, which is imported when the command is used.
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
    "attach": "executions",
    "executions": "executions",
    "rsh": "rsh",
    "logs": "logs",
    "forward": "forward",
    "wait-for": "wait_for",
    "completion": "completion",
}


class OutputClosed(Exception):
    """Whatever read our output has closed it.  Not an OSError: for that click exits with 1."""


class LazyGroup(click.Group):
    """A group of commands that imports a command's module on first use."""

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
        # `sync-time` is the function sync_time_command.
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
    epilog="Exit codes: 125 if arcboxctl or the agent failed.  For run and exec: 126 if the command cannot be "
    "executed, 127 if it is not found, else the command's own exit code, 128 + N if signal N ended it.",
)
@click.option(
    "-H",
    "--host",
    metavar="ADDRESS",
    help="Address of the agent: vsock://CID:PORT, unix:///PATH or firecracker:///PATH:PORT.  "
    f"Default: $ARCBOX_HOST, else {DEFAULT_HOST}.",
)
@click.option(
    "--wait",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Keep trying for this time to reach an agent whose guest is still booting.",
)
@click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    callback=set_json,
    help="Print JSON, for programs; docs/arcboxctl.md lists the fields.",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show the version."
)
@click.pass_context
def arcboxctl(ctx: click.Context, host: str | None, wait: float) -> None:
    """Manage a guest through its arcbox agent: containers, commands and logs."""
    invocation = ctx.ensure_object(Invocation)
    invocation.address = host or os.environ.get("ARCBOX_HOST") or DEFAULT_HOST
    invocation.wait = wait
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run the command in `arguments`, and return its exit code."""
    try:
        return _run(arguments)
    except OSError as error:
        # The error could not be printed: standard error is full, or its reader has gone.
        _discard(sys.stderr)
        return 141 if isinstance(error, BrokenPipeError) else OWN_FAILURE


def _run(arguments: Sequence[str]) -> int:
    invocation = Invocation()
    try:
        code: Any = arcboxctl.main(list(arguments), prog_name=PROGRAM, standalone_mode=False, obj=invocation)
        sys.stdout.flush()
    except click.ClickException as error:
        # click stops at an option that does not exist, before a --json behind it.
        report_click(error, invocation.json or (isinstance(error, click.UsageError) and "--json" in arguments))
        code = OWN_FAILURE
    except click.Abort:
        code = 130
    except (OutputClosed, BrokenPipeError):
        # It may have been either of the two.
        _discard(sys.stdout)
        _discard(sys.stderr)
        code = 141
    except Exception as error:
        code = report(error, invocation.json)
        try:
            sys.stdout.flush()
        except OSError:  # A full disk, which `report` has printed, or could not.
            _discard(sys.stdout)
    return code if isinstance(code, int) else 0


def _discard(stream: TextIO) -> None:
    """Send what the stream still buffers to /dev/null.

    Python flushes it at exit; a failure there would print an error and change the exit code.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

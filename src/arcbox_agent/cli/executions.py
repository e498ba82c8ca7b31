"""attach and executions: commands that do not belong to the arcboxctl that started them."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from arcbox_agent.cli.completion import container_names, execution_ids
from arcbox_agent.cli.failures import OWN_FAILURE, as_object, text
from arcbox_agent.cli.input_stream import DETACH_KEYS, parse_keys
from arcbox_agent.cli.invocation import Invocation, json_option, pass_invocation
from arcbox_agent.cli.output import fields_of
from arcbox_agent.cli.printable import printable
from arcbox_agent.cli.tables import executions as executions_table
from arcbox_agent.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from arcbox_agent.cli.signals import Signals
    from arcbox_agent.client import ByteReader, Client

several = click.argument("ids", nargs=-1, required=True, metavar="EXECUTION...", shell_complete=execution_ids)
one = click.argument("id", metavar="EXECUTION", shell_complete=execution_ids)


@click.command("attach")
@click.option("--no-stdin", is_flag=True, help="Only show its output; another client may give the input.")
@click.option("--from-start", is_flag=True, help="Show what it has written before, too.")
@click.option(
    "--detach-keys",
    default=DETACH_KEYS,
    show_default=True,
    metavar="KEYS",
    help="What to type at a terminal to leave the command; empty: nothing.",
)
@json_option
@one
@pass_invocation
def attach_command(invocation: Invocation, id: str, no_stdin: bool, from_start: bool, detach_keys: str) -> int:
    """Attach to a command that exec or a program has started.

    The exit code is the command's.  Ctrl-C leaves the command, which goes on; at its terminal the
    detach keys do.
    """
    keys = parse_keys(detach_keys)

    async def work(client: Client, _: Signals) -> int:
        from arcbox_agent.cli.session import Session

        info = await client.execution(id)
        give = info.open_stdin and not info.input_closed and not no_stdin and info.state != "ended"
        async with client.attach(info.id, input=give, newest=not from_start, on_cancel="leave") as process:
            return await Session(process, keys=keys, as_json=invocation.json).stay()

    return invocation.call(work)


@click.group("executions")
def executions_command() -> None:
    """List and control commands that were started."""


@executions_command.command("ls")
@click.option("-a", "--all", "show_all", is_flag=True, help="Those that have ended, too.")
@click.option("-q", "--quiet", is_flag=True, help="Only ids.")
@click.option("--no-trunc", is_flag=True, help="Whole ids and commands.")
@json_option
@click.argument("container", default="", shell_complete=container_names)
@pass_invocation
def ls_command(invocation: Invocation, container: str, show_all: bool, quiet: bool, no_trunc: bool) -> int:
    """List the commands that run, or those of one container."""

    async def work(client: Client, _: Signals) -> int:
        listed = await client.executions(container=container, all=show_all)
        if quiet:
            for each in listed:
                click.echo(json.dumps({"id": each.id}) if invocation.json else printable(each.id))
        elif invocation.json:
            for each in listed:
                click.echo(json.dumps(fields_of(each)))
        else:
            click.echo(executions_table(listed, time.time_ns(), truncate=not no_trunc))
        return 0

    return invocation.call(work)


@executions_command.command("inspect")
@json_option
@several
@pass_invocation
def inspect_command(invocation: Invocation, ids: tuple[str, ...]) -> int:
    """Show all that the agent knows of commands, as JSON."""

    async def show(client: Client, id: str) -> dict[str, Any]:
        return fields_of(await client.execution(id))

    def shown(_: str, found: dict[str, Any]) -> str:
        return json.dumps(found) if invocation.json else json.dumps(found, indent=4)

    return _each(invocation, ids, show, shown, lambda _, found: found)


@executions_command.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on until the command has ended.")
@json_option
@one
@pass_invocation
def logs_command(invocation: Invocation, id: str, follow: bool) -> int:
    """Show what a command has written, as far as the agent keeps it."""

    async def work(client: Client, _: Signals) -> int:
        from arcbox_agent.cli.output_stream import OutputStream
        from arcbox_agent.cli.session import Showing

        info = await client.execution(id)
        ends = {output.stream: output.end for output in info.outputs}
        async with client.attach(info.id) as process, OutputStream() as output:
            showing = Showing(output, as_json=invocation.json)
            readers: list[ByteReader] = [each for each in (process.stdout, process.stderr) if each is not None]
            async with asyncio.TaskGroup() as group:
                for reader in readers:
                    group.create_task(showing.show(reader, None if follow else ends.get(reader.stream, 0)))
            await process.detach()
        return OWN_FAILURE if showing.gaps else 0

    return invocation.call(work)


@executions_command.command("wait")
@json_option
@several
@pass_invocation
def wait_command(invocation: Invocation, ids: tuple[str, ...]) -> int:
    """Wait until commands have ended, and print each exit code."""
    from arcbox_agent.client import exit_code

    return _each(
        invocation,
        ids,
        lambda client, id: client.wait_execution(id),
        lambda _, info: str(exit_code(info)),
        lambda id, info: {"exit_code": exit_code(info), "signal": info.signal, "cause": info.cause},
    )


@executions_command.command("kill")
@click.option(
    "-s", "--signal", default="KILL", show_default=True, metavar="SIGNAL", help="Signal to send, by name or number."
)
@click.option("--all", "to_all", is_flag=True, help="To all that the command has started, too.")
@json_option
@several
@pass_invocation
def kill_command(invocation: Invocation, ids: tuple[str, ...], signal: str, to_all: bool) -> int:
    """Send a signal to commands."""
    return _each(invocation, ids, lambda client, id: client.signal_execution(id, signal=signal, all=to_all))


@executions_command.command("rm")
@click.option("-f", "--force", is_flag=True, help="Kill and remove commands that run, too.")
@json_option
@several
@pass_invocation
def rm_command(invocation: Invocation, ids: tuple[str, ...], force: bool) -> int:
    """Remove what the agent keeps of commands: output and end."""
    return _each(invocation, ids, lambda client, id: client.remove_execution(id, force=force))


def _each(
    invocation: Invocation,
    ids: tuple[str, ...],
    action: Callable[[Client, str], Awaitable[Any]],
    shown: Callable[[str, Any], str] = lambda id, _: printable(id),
    fields: Callable[[str, Any], dict[str, Any]] = lambda _id, _result: {},
) -> int:
    """Do `action` for each id, and show each result; the exit code is 125 if one failed."""

    async def work(client: Client, _: Signals) -> int:
        code = 0
        for id in ids:
            try:
                result = await action(client, id)
            except RequestError as error:
                code = OWN_FAILURE
                if invocation.json:
                    click.echo(json.dumps({"execution": id, "ok": False, **as_object(error)}))
                else:
                    print(f"arcboxctl: {text(error)}", file=sys.stderr)
                continue
            if invocation.json:
                click.echo(json.dumps({"execution": id, "ok": True, **fields(id, result)}))
            else:
                click.echo(shown(id, result))
        return code

    return invocation.call(work)

"""create, start, stop, kill, wait, rm, ps: the life of containers."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Any, TypeVar

import click

from arcbox_agent.cli.completion import container_names
from arcbox_agent.cli.create_options import create_arguments, create_options, patience
from arcbox_agent.cli.failures import OWN_FAILURE, as_object, text
from arcbox_agent.cli.invocation import Invocation, json_option, pass_invocation
from arcbox_agent.cli.output import fields_of, warn
from arcbox_agent.cli.printable import printable
from arcbox_agent.errors import AgentFailedError, RequestError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from arcbox_agent.cli.signals import Signals
    from arcbox_agent.client import Client
    from arcbox_agent.wire import WaitContainerResponse

T = TypeVar("T")

#: Bytes of a container's texts that a truncated table can show.
TEXT_SHOWN = 1024

#: How many containers are stopped at a time.
_AT_ONCE = 8

several = click.argument("containers", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=container_names)


@click.command("create", context_settings={"allow_interspersed_args": False})
@create_options
@click.option("-i", "--interactive", is_flag=True, help="Keep standard input of the container open.")
@json_option
@click.argument("image")
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED)
@pass_invocation
def create_command(invocation: Invocation, /, **options: Any) -> int:
    """Create a container without starting it."""
    arguments = create_arguments(**options)

    async def work(client: Client, _: Signals) -> int:
        created = await client.create_container(**arguments)
        for warning in created.warnings:
            warn(warning)
        invocation.show(fields_of(created), printable(created.id))
        return 0

    return invocation.call(work)


@click.command("start")
@json_option
@several
@pass_invocation
def start_command(invocation: Invocation, containers: tuple[str, ...]) -> int:
    """Start containers, one after the other."""
    return _each(
        invocation,
        containers,
        lambda client, name: client.start_container(name),
        done_already="container is already running",
    )


@click.command("stop")
@click.option(
    "-t",
    "--time",
    "--timeout",
    "seconds",
    type=click.IntRange(min=-1, max=0xFFFFFFFF),
    help="Seconds to wait before SIGKILL; the container's own or 10 by default, -1: for ever.",
)
@json_option
@several
@pass_invocation
def stop_command(invocation: Invocation, containers: tuple[str, ...], seconds: int | None) -> int:
    """Stop containers: their stop signal, then SIGKILL."""
    return _each(
        invocation,
        containers,
        lambda client, name: client.stop_container(name, timeout=patience(seconds)),
        at_once=_AT_ONCE,
        done_already="container is not running",
    )


@click.command("kill")
@click.option(
    "-s", "--signal", default="KILL", show_default=True, metavar="SIGNAL", help="Signal to send, by name or number."
)
@json_option
@several
@pass_invocation
def kill_command(invocation: Invocation, containers: tuple[str, ...], signal: str) -> int:
    """Send a signal to containers."""
    return _each(invocation, containers, lambda client, name: client.kill_container(name, signal=signal))


@click.command("rm")
@click.option("-f", "--force", is_flag=True, help="Kill and remove running containers too.")
@json_option
@several
@pass_invocation
def rm_command(invocation: Invocation, containers: tuple[str, ...], force: bool) -> int:
    """Remove containers."""
    return _each(invocation, containers, lambda client, name: client.remove_container(name, force=force))


@click.command("wait")
@click.option(
    "--condition",
    type=click.Choice(["not-running", "next-exit", "removed"]),
    default="not-running",
    show_default=True,
    help="The condition to wait for.",
)
@json_option
@several
@pass_invocation
def wait_command(invocation: Invocation, containers: tuple[str, ...], condition: str) -> int:
    """Wait until containers end, and print their exit codes."""

    def show(name: str, ended: WaitContainerResponse) -> tuple[dict[str, Any], str]:
        if ended.error and not invocation.json:
            warn(f"{name}: {ended.error}")
        return (
            {"exit_code": ended.status_code, "signal": ended.signal, "error": ended.error},
            str(ended.status_code),
        )

    return _each(
        invocation,
        containers,
        lambda client, name: client.wait_container(name, condition=condition),
        at_once=len(containers),
        show=show,
    )


def _each(
    invocation: Invocation,
    names: tuple[str, ...],
    call: Callable[[Client, str], Awaitable[T | None]],
    *,
    at_once: int = 1,
    done_already: str = "",
    show: Callable[[str, T], tuple[dict[str, Any], str]] | None = None,
) -> int:
    """Call for each container, and print the outcomes in the order of the names.

    A call that fails does not keep the others from running.  `done_already`: how the
    agent's error ends that says that there is nothing to do; as with docker, that is no
    failure.
    """

    async def work(client: Client, _: Signals) -> int:
        room = asyncio.Semaphore(at_once)

        async def one(name: str) -> T | None:
            async with room:
                try:
                    return await call(client, name)
                except AgentFailedError as error:
                    if done_already and error.message.endswith(done_already):
                        return None
                    raise

        code = 0
        tasks = [asyncio.ensure_future(one(name)) for name in names]
        try:
            for name, task in zip(names, tasks, strict=True):
                try:
                    result = await task
                    details, line = ({}, name) if show is None or result is None else show(name, result)
                except RequestError as error:
                    code = OWN_FAILURE
                    if invocation.json:
                        click.echo(json.dumps({"container": name, "ok": False, **as_object(error)}))
                    else:
                        # With several containers the message has to name the one; not every error does.
                        which = "" if len(names) == 1 or error.message.endswith(f": {name}") else f"{printable(name)}: "
                        print(f"arcboxctl: {which}{text(error)}", file=sys.stderr)
                else:
                    click.echo(json.dumps({"container": name, "ok": True, **details}) if invocation.json else line)
                sys.stdout.flush()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return code

    return invocation.call(work)


@click.command("ps")
@click.option("-a", "--all", "show_all", is_flag=True, help="Show all containers (default: only running).")
@click.option("-q", "--quiet", is_flag=True, help="Show only container ids.")
@click.option("--no-trunc", is_flag=True, help="Do not truncate ids and commands.")
@json_option
@pass_invocation
def ps_command(invocation: Invocation, show_all: bool, quiet: bool, no_trunc: bool) -> int:
    """List containers, newest first."""
    from arcbox_agent.cli.tables import SHORT_ID
    from arcbox_agent.cli.tables import containers as table

    async def work(client: Client, _: Signals) -> int:
        # The table shows the beginning of a command, and its end is not worth asking for.
        whole = no_trunc or invocation.json
        listed = await client.list_containers(all=show_all, text_limit=0 if whole else TEXT_SHOWN)
        listed.sort(key=lambda container: container.created, reverse=True)
        if invocation.json:
            for container in listed:
                click.echo(json.dumps(fields_of(container)))
        elif quiet:
            for container in listed:
                click.echo(printable(container.id if no_trunc else container.id[:SHORT_ID]))
        else:
            click.echo(table(listed, time.time_ns(), truncate=not no_trunc))
        return 0

    return invocation.call(work)

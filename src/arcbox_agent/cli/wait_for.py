"""wait-for: until something in the guest holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from arcbox_agent.cli.completion import container_names
from arcbox_agent.cli.invocation import Invocation, json_option, pass_invocation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from arcbox_agent.cli.signals import Signals
    from arcbox_agent.client import Client

#: The exit code where the time is over, or it can never come about.
NOT_MET = 1


@click.group("wait-for")
def wait_for_command() -> None:
    """Wait until something in the guest holds.

    The agent looks, in one call.

    Exit codes: 0 it holds, 1 it did not in time or never will, 125 if arcboxctl or the agent failed.
    """


def _timeout_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "-t",
        "--timeout",
        type=click.FloatRange(min=0.001, max=4_000_000),
        default=60.0,
        metavar="SECONDS",
        help="How long to wait (default: 60).",
    )(function)


def _container_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "-c",
        "--container",
        default="",
        metavar="CONTAINER",
        shell_complete=container_names,
        help="The container whose network and files are meant; else the guest's.",
    )(function)


def _wait(invocation: Invocation, waiting: Callable[[Client], Awaitable[str | None]]) -> int:
    """`waiting`: its result is the line that was found, if one was looked for."""

    async def work(client: Client, _: Signals) -> int:
        from arcbox_agent.cli.printable import printable
        from arcbox_agent.errors import WaitTimeoutError

        try:
            found = await waiting(client)
        except WaitTimeoutError as error:
            if invocation.json:
                invocation.show({"met": False, "last": error.last}, "")
            else:
                click.echo(f"arcboxctl: {printable(str(error))}", err=True)
            return NOT_MET
        if invocation.json:
            invocation.show({"met": True, "found": found or ""}, "")
        elif found is not None:
            click.echo(printable(found))
        return 0

    return invocation.call(work)


@wait_for_command.command("port")
@click.argument("address", metavar="[HOST:]PORT")
@_container_option
@_timeout_option
@json_option
@pass_invocation
def port_command(invocation: Invocation, address: str, container: str, timeout: float) -> int:
    """Until a TCP port accepts connections.  HOST is one that the guest knows."""
    from arcbox_agent.client.endpoint import Endpoint
    from arcbox_agent.errors import AddressError

    try:
        at = Endpoint.of(address)
    except AddressError as error:
        raise click.UsageError(str(error)) from None
    if at.path or not at.port:
        raise click.UsageError(f"{address!r} is no port: for a unix socket use wait-for socket")
    return _wait(
        invocation,
        lambda client: client.wait_for_port(at.port, host=at.host, container=container, timeout=timeout),
    )


@wait_for_command.command("socket")
@click.argument("path")
@_container_option
@_timeout_option
@json_option
@pass_invocation
def socket_command(invocation: Invocation, path: str, container: str, timeout: float) -> int:
    """Until a unix socket accepts connections."""
    return _wait(invocation, lambda client: client.wait_for_socket(path, container=container, timeout=timeout))


@wait_for_command.command("file")
@click.argument("path")
@click.option("--changes", is_flag=True, help="Until it is not what it is now: another, longer, newer, or gone.")
@_container_option
@_timeout_option
@json_option
@pass_invocation
def file_command(invocation: Invocation, path: str, changes: bool, container: str, timeout: float) -> int:
    """Until there is a file."""
    return _wait(
        invocation,
        lambda client: client.wait_for_file(path, changes=changes, container=container, timeout=timeout),
    )


@wait_for_command.command("log")
@click.argument("container", shell_complete=container_names)
@click.argument("pattern")
@_timeout_option
@json_option
@pass_invocation
def log_command(invocation: Invocation, container: str, pattern: str, timeout: float) -> int:
    """Until a line of a container's log matches a regular expression, and print that line.

    The lines of its present run count, or of its last one.  The expression may match anywhere in
    the line; it has no back-references and no look-around.
    """
    return _wait(invocation, lambda client: client.wait_for_log(container, pattern, timeout=timeout))


@wait_for_command.command("process")
@click.argument("pid", type=click.IntRange(1, 2**31 - 1))
@_timeout_option
@json_option
@pass_invocation
def process_command(invocation: Invocation, pid: int, timeout: float) -> int:
    """Until a process of the guest has ended; at once where there is none."""
    return _wait(invocation, lambda client: client.wait_for_process(pid, timeout=timeout))


@wait_for_command.command("execution")
@click.argument("id")
@click.argument("pattern", default="")
@_timeout_option
@json_option
@pass_invocation
def execution_command(invocation: Invocation, id: str, pattern: str, timeout: float) -> int:
    """Until an execution has ended, or with PATTERN a line of its output matches: that line is printed."""
    return _wait(invocation, lambda client: client.wait_for_execution(id, pattern, timeout=timeout))

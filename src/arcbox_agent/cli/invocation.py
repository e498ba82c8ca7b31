"""One use of arcboxctl: its global options, and its call of the agent from start to end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from arcbox_agent.cli.signals import Signals
    from arcbox_agent.client import Client

DEFAULT_HOST = "unix:///run/arcbox-agent.sock"

F = TypeVar("F", bound="Callable[..., Any]")


class Invocation:
    """One use of arcboxctl.  A command gets it by `@pass_invocation`."""

    __slots__ = ("address", "json", "wait")

    def __init__(self) -> None:
        self.address = DEFAULT_HOST
        self.wait = 0.0
        self.json = False

    def call(self, work: Callable[[Client, Signals], Awaitable[int]]) -> int:
        """Connect, do `work`, disconnect.

        Returns the exit code of `work`, or 128 + the number of the signal that ended it.
        """
        # Imported late: `--help` and the completion of options need neither asyncio nor the client.
        import asyncio

        return asyncio.run(self._call(work))

    async def _call(self, work: Callable[[Client, Signals], Awaitable[int]]) -> int:
        from arcbox_agent.cli.signals import Signals
        from arcbox_agent.client import connect

        with Signals() as signals:
            return await signals.guard(self._connected(connect, work, signals))

    async def _connected(
        self,
        connect: Callable[..., Any],
        work: Callable[[Client, Signals], Awaitable[int]],
        signals: Signals,
    ) -> int:
        async with connect(self.address, wait=self.wait) as client:
            return await work(client, signals)

    def show(self, value: dict[str, Any], text: str) -> None:
        """Print a result: JSON for programs, text for people."""
        click.echo(json.dumps(value) if self.json else text)


pass_invocation = click.make_pass_decorator(Invocation)


def set_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        invocation = ctx.find_object(Invocation)
        assert invocation is not None
        invocation.json = True


def json_option(function: F) -> F:
    """`--json` after the command's name too, where a person tries it."""
    return click.option(
        "--json", is_flag=True, expose_value=False, callback=set_json, help="Print JSON, for programs."
    )(function)

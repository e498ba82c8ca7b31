"""What the global options said, and one call of the agent from start to end."""

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


class Session:
    """One use of arcboxctl.  Commands get it by `@pass_session`."""

    __slots__ = ("address", "json", "wait")

    def __init__(self) -> None:
        self.address = DEFAULT_HOST
        self.wait = 0.0
        self.json = False

    def call(self, work: Callable[[Client, Signals], Awaitable[int]]) -> int:
        """Connect, do `work`, disconnect: its exit code, or 128 + the signal that ended it."""
        # asyncio and the client only now: `--help` and completion of options need neither.
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
        """A result: JSON for programs, text for people."""
        click.echo(json.dumps(value) if self.json else text)


pass_session = click.make_pass_decorator(Session)


def set_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        session = ctx.find_object(Session)
        assert session is not None
        session.json = True


def json_option(function: F) -> F:
    """`--json` after the command's name too, where one looks for it."""
    return click.option("--json", is_flag=True, expose_value=False, callback=set_json, help="Output for programs.")(
        function
    )

"""forward: listeners of this host that lead into the guest, and the other way round."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import click

from arcbox_agent.cli.completion import container_names
from arcbox_agent.cli.invocation import Invocation, json_option, pass_invocation

if TYPE_CHECKING:
    from arcbox_agent.cli.signals import Signals
    from arcbox_agent.client import Client
    from arcbox_agent.client.endpoint import Endpoint

#: Where ssh listens on all addresses.
EVERYWHERE = ("", "*")


class Forwarded(NamedTuple):
    """`listen` on one side, `to` on the other.  `back`: listens in the guest."""

    back: bool
    listen: Endpoint
    to: Endpoint


def parse(value: str, back: bool) -> Forwarded:
    """`[BIND:]PORT:HOST:HOSTPORT`, where a path may stand for either half.  click.UsageError."""
    from arcbox_agent.client.endpoint import LOCALHOST, Endpoint
    from arcbox_agent.errors import AddressError

    option = "-R" if back else "-L"
    words = _split(value)
    try:
        if words[-1].startswith(("/", "./")):
            to, words = Endpoint.of(words[-1]), words[:-1]
        elif len(words) >= 3:
            to, words = Endpoint.of((words[-2] or LOCALHOST, _port(words[-1], value))), words[:-2]
        else:
            raise AddressError(value, "HOST:HOSTPORT or a path is missing at its end")
        if len(words) == 1 and words[0].startswith(("/", "./")):
            listen = Endpoint.of(words[0])
        elif len(words) == 1:
            listen = Endpoint.of(_port(words[0], value))
        elif len(words) == 2:
            bind = "0.0.0.0" if words[0] in EVERYWHERE else words[0]
            listen = Endpoint.of((bind, _port(words[1], value)))
        else:
            raise AddressError(value, "write [BIND:]PORT:HOST:HOSTPORT, with a path in the place of either half")
    except AddressError as error:
        raise click.UsageError(f"{option} {error}") from None
    if not (to.path or to.port):
        raise click.UsageError(f"{option} {value!r}: port 0 leads nowhere")
    return Forwarded(back, listen, to)


def _split(value: str) -> list[str]:
    """The words between the colons outside of brackets, without the brackets."""
    words = [""]
    depth = 0
    for char in value:
        if char == "[":
            depth += 1
        elif char == "]" and depth:
            depth -= 1
        elif char == ":" and not depth:
            words.append("")
        else:
            words[-1] += char
    return words


def _port(word: str, value: str) -> int:
    from arcbox_agent.errors import AddressError

    if not (word.isascii() and word.isdigit() and len(word) <= 5):
        raise AddressError(value, f"{word!r} is no port")
    return int(word)


@click.command("forward")
@click.option(
    "-L",
    "into",
    multiple=True,
    metavar="[BIND:]PORT:HOST:HOSTPORT",
    help="Listen on this host, and connect to HOST:HOSTPORT from the guest.  A path in the place of "
    "[BIND:]PORT or of HOST:HOSTPORT is a unix socket.  May be given several times.",
)
@click.option(
    "-R",
    "back",
    multiple=True,
    metavar="[BIND:]PORT:HOST:HOSTPORT",
    help="Listen in the guest, and connect to HOST:HOSTPORT from this host.  May be given several times.",
)
@click.option(
    "-c",
    "--container",
    default="",
    metavar="CONTAINER",
    shell_complete=container_names,
    help="The container whose network and files are meant; else the guest's.",
)
@click.option(
    "--connect-timeout",
    type=click.FloatRange(min=0.001, max=3600),
    default=10.0,
    metavar="SECONDS",
    help="How long a connection in the guest may take to be made (default: 10).",
)
@json_option
@pass_invocation
def forward_command(
    invocation: Invocation, into: tuple[str, ...], back: tuple[str, ...], container: str, connect_timeout: float
) -> int:
    """Forward connections to and from the guest, until Ctrl-C.

    -L and -R take ssh's words.

    Without BIND only programs of the same machine can connect; `*` is every address.  Port 0 is
    any that is free: the line that tells where it listens has its number.  A connection that the
    other side refuses is reset, and the reason told on standard error.

    \b
    arcboxctl forward -L 8080:localhost:80
    arcboxctl forward -L /tmp/db.sock:/run/postgresql/.s.PGSQL.5432 -R 9000:localhost:9000
    """
    wanted = [parse(value, False) for value in into] + [parse(value, True) for value in back]
    if not wanted:
        raise click.UsageError("nothing to forward: give -L or -R")

    async def work(client: Client, _: Signals) -> int:
        return await _forward(invocation, client, wanted, container, connect_timeout)

    return invocation.call(work)


async def _forward(
    invocation: Invocation, client: Client, wanted: list[Forwarded], container: str, timeout: float
) -> int:
    import asyncio
    from contextlib import AsyncExitStack

    from arcbox_agent.cli.failures import text
    from arcbox_agent.client.forwarding import BackForward, Forward

    def failed(error: Exception) -> None:
        click.echo(f"arcboxctl: {text(error)}", err=True)

    async with AsyncExitStack() as stack:
        opened: list[Forward | BackForward] = []
        for each in wanted:
            opening: Forward | BackForward
            if each.back:
                opening = client.forward_back(
                    each.listen, each.to, container=container, timeout=timeout, on_error=failed
                )
            else:
                opening = client.forward(each.listen, each.to, container=container, timeout=timeout, on_error=failed)
            opened.append(await stack.enter_async_context(opening))
            side = ("guest", "host") if each.back else ("host", "guest")
            invocation.show(
                {"side": side[0], "address": str(opening.address), "to": str(each.to)},
                f"{side[0]} {opening.address} -> {side[1]} {each.to}",
            )
        waiting = [asyncio.ensure_future(forwarding.wait()) for forwarding in opened]
        try:
            await asyncio.gather(*waiting)
        finally:
            for task in waiting:
                task.cancel()
    return 0

"""Shell completion: the script for a shell, and the names of containers."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import click

from arcbox_agent.cli.invocation import DEFAULT_HOST
from arcbox_agent.cli.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from click.shell_completion import CompletionItem

    from arcbox_agent.client import Client

#: Seconds to wait for the agent.  Somebody has pressed Tab and waits, but a guest under load needs time.
_PATIENCE = 3.0

#: The ids and names that agents allow.  A shell inserts what it is offered into the command
#: line as it is, so nothing else is offered, whatever a guest sends.
_WORD = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", re.ASCII)


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> int:
    """Print the completion script of a shell.

    \b
    bash:  source <(arcboxctl completion bash)
    zsh:   source <(arcboxctl completion zsh)
    fish:  arcboxctl completion fish | source
    """
    from click.shell_completion import get_completion_class

    from arcbox_agent.cli.main import PROGRAM, arcboxctl

    found = get_completion_class(shell)
    assert found is not None, shell
    click.echo(found(arcboxctl, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE").source())
    return 0


def container_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of containers, and ids if the word begins one."""
    from click.shell_completion import CompletionItem

    async def ask(client: Client) -> list[tuple[str, str]]:
        listed = await client.list_containers(all=True, text_limit=1024)
        names = [(container.name, container.status) for container in listed if container.name]
        # As with docker: ids only if the word begins one, or the container has no name.
        ids = [(one.id, one.status) for one in listed if incomplete or not one.name]
        return names + ids

    chosen = ctx.params.get(parameter.name or "") or ()
    return [
        CompletionItem(word, help=printable(text))
        for word, text in _ask(ctx, ask)
        if word.startswith(incomplete) and word not in chosen and _WORD.fullmatch(word)
    ]


def execution_ids(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids of executions."""
    from click.shell_completion import CompletionItem

    async def ask(client: Client) -> list[tuple[str, str]]:
        return [(each.id, " ".join(each.cmd)[:60]) for each in await client.executions(all=True)]

    chosen = ctx.params.get(parameter.name or "") or ()
    return [
        CompletionItem(word, help=printable(text))
        for word, text in _ask(ctx, ask)
        if word.startswith(incomplete) and word not in chosen and _WORD.fullmatch(word)
    ]


def first_is_container(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The same for `exec`, whose first word alone is a container."""
    if ctx.params.get(parameter.name or "") or ctx.params.get("guest"):
        return []
    return container_names(ctx, parameter, incomplete)


def _ask(
    ctx: click.Context, ask: Callable[[Client], Coroutine[Any, Any, list[tuple[str, str]]]]
) -> list[tuple[str, str]]:
    import asyncio

    from arcbox_agent.client import connect

    address = ctx.find_root().params.get("host") or os.environ.get("ARCBOX_HOST") or DEFAULT_HOST

    async def answer() -> list[tuple[str, str]]:
        async with asyncio.timeout(_PATIENCE), connect(address, timeout=_PATIENCE) as client:
            return await ask(client)

    try:
        return asyncio.run(answer())
    except Exception:
        # Whatever went wrong (no agent, a wrong address), a prompt is no place for an error.
        return []

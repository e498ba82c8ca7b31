"""top and stats: the processes of containers, and what they use."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, NamedTuple

import click

from arcbox_agent.cli.completion import container_names
from arcbox_agent.cli.invocation import Invocation, json_option, pass_invocation
from arcbox_agent.cli.output import fields_of
from arcbox_agent.cli.tables import SHORT_ID, decimal_size, short_size, table
from arcbox_agent.errors import ConflictError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from arcbox_agent.cli.signals import Signals
    from arcbox_agent.client import Client
    from arcbox_agent.wire import ContainerInfo, ContainerStatsResponse

#: Seconds between two samples.
INTERVAL = 1.0

#: Cursor to the top left corner, and all behind it gone.
_HOME = "\x1b[H\x1b[J"


@click.command("top", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@json_option
@click.argument("container", shell_complete=container_names)
@click.argument("ps_options", nargs=-1, type=click.UNPROCESSED)
@pass_invocation
def top_command(invocation: Invocation, container: str, ps_options: tuple[str, ...]) -> int:
    """Show the processes of a running container.

    PS_OPTIONS choose the columns: -ef (the default), aux, or -o with a list such as
    pid,etime,args.
    """

    async def work(client: Client, _: Signals) -> int:
        top = await client.container_top(container, ps_args=" ".join(ps_options))
        rows = [list(row.values) for row in top.processes]
        invocation.show({"titles": list(top.titles), "processes": rows}, table(top.titles, rows))
        return 0

    return invocation.call(work)


class Sample(NamedTuple):
    """What a container had used at one moment; `stats` None: it is not there any more."""

    container: ContainerInfo
    stats: ContainerStatsResponse | None


@click.command("stats")
@click.option("-a", "--all", "show_all", is_flag=True, help="Containers that do not run, too.")
@click.option("--no-stream", is_flag=True, help="Only one sample.")
@click.option("--no-trunc", is_flag=True, help="Whole ids.")
@json_option
@click.argument("containers", nargs=-1, metavar="[CONTAINER...]", shell_complete=container_names)
@pass_invocation
def stats_command(
    invocation: Invocation, containers: tuple[str, ...], show_all: bool, no_stream: bool, no_trunc: bool
) -> int:
    """Show what containers use, each second."""

    async def work(client: Client, _: Signals) -> int:
        # The share of CPUs lies between two samples.
        before = await _sample(client, containers, show_all)
        while True:
            await asyncio.sleep(INTERVAL)
            now = await _sample(client, containers, show_all)
            _show(invocation, before, now, in_place=not no_stream and sys.stdout.isatty(), truncate=not no_trunc)
            if no_stream:
                return 0
            before = now

    return invocation.call(work)


async def _sample(client: Client, names: Iterable[str], show_all: bool) -> dict[str, Sample]:
    """A sample of each container, by id.  NotFoundError: no such container.  ConflictError: several."""
    listed = await client.list_containers(all=show_all or bool(names), text_limit=1024)
    if names:
        chosen = [_named(listed, name) for name in names]
        listed = list({each.id: each for each in chosen}.values())

    async def one(container: ContainerInfo) -> Sample:
        try:
            return Sample(container, await client.container_stats(container.id))
        except NotFoundError:
            return Sample(container, None)  # removed since it was listed

    samples = await asyncio.gather(*(one(container) for container in listed))
    return {sample.container.id: sample for sample in samples}


def _named(listed: Iterable[ContainerInfo], name: str) -> ContainerInfo:
    """As the agent finds a container: by id, by name, by the only id that begins so."""
    exact = [each for each in listed if name in (each.id, each.name)]
    found = exact or [each for each in listed if each.id.startswith(name) and name]
    if not found:
        raise NotFoundError(f"container not found: {name}")
    if len(found) > 1:
        raise ConflictError(f"ambiguous container id: {name} is the beginning of {len(found)} ids")
    return found[0]


def cpu_percent(before: ContainerStatsResponse | None, now: ContainerStatsResponse) -> float:
    """100: one CPU, between two samples."""
    if before is None or not before.system_cpu_usage:
        return 0.0  # it did not run then
    used = now.cpu_usage - before.cpu_usage
    whole = now.system_cpu_usage - before.system_cpu_usage
    # Less than before: the container was started again.
    return used / whole * now.online_cpus * 100 if used > 0 and whole > 0 else 0.0


def _show(
    invocation: Invocation, before: dict[str, Sample], now: dict[str, Sample], *, in_place: bool, truncate: bool
) -> None:
    shown = []
    for id, (container, stats) in now.items():
        if stats is not None:
            earlier = before.get(id)
            shown.append((container, stats, cpu_percent(earlier.stats if earlier else None, stats)))
    if invocation.json:
        for container, stats, percent in shown:
            named = {"id": container.id, "name": container.name, "cpu_percent": round(percent, 2)}
            click.echo(json.dumps(named | fields_of(stats)))
    else:
        click.echo((_HOME if in_place else "") + stats_table(shown, truncate=truncate))
    sys.stdout.flush()


def stats_table(shown: Iterable[tuple[ContainerInfo, ContainerStatsResponse, float]], *, truncate: bool) -> str:
    """docker's columns; `shown`: container, sample, per cent of one CPU."""
    return table(
        ("CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"),
        [
            (
                container.id[:SHORT_ID] if truncate else container.id,
                container.name,
                f"{percent:.2f}%",
                f"{short_size(stats.memory_usage)} / {short_size(stats.memory_limit)}",
                f"{100 * stats.memory_usage / stats.memory_limit if stats.memory_limit else 0:.2f}%",
                f"{decimal_size(stats.network_rx_bytes)} / {decimal_size(stats.network_tx_bytes)}",
                f"{decimal_size(stats.block_read_bytes)} / {decimal_size(stats.block_write_bytes)}",
                str(stats.pids),
            )
            for container, stats, percent in shown
        ],
    )

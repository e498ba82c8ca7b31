"""ping, info, runtime, sync-time, shutdown: the guest and its agent."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from arcbox_agent.cli.printable import printable
from arcbox_agent.cli.session import Session, json_option, pass_session

if TYPE_CHECKING:
    from arcbox_agent.cli.signals import Signals
    from arcbox_agent.client import Client
    from arcbox_agent.wire import AgentInfo, SystemInfo


@click.command("ping")
@click.argument("message", default="")
@json_option
@pass_session
def ping_command(session: Session, message: str) -> int:
    """Ask the agent for a sign of life."""

    async def work(client: Client, _: Signals) -> int:
        start = time.perf_counter()
        reply = await client.ping(message)
        seconds = time.perf_counter() - start
        session.show(
            {"message": reply.message, "version": reply.version, "seconds": round(seconds, 6)},
            printable(f"{reply.message} (agent {reply.version} at {session.address}, {seconds * 1000:.2f} ms)"),
        )
        return 0

    return session.call(work)


@click.command("info")
@click.option("--agent", "about_agent", is_flag=True, help="The agent itself: its connections, queues and bounds.")
@json_option
@pass_session
def info_command(session: Session, about_agent: bool) -> int:
    """Show the guest's system, or the agent itself."""
    from arcbox_agent.cli.output import fields_of

    async def work(client: Client, _: Signals) -> int:
        if about_agent:
            agent = await client.agent_info()
            session.show(fields_of(agent), _agent_text(agent))
        else:
            system = await client.system_info()
            session.show(fields_of(system), _system_text(system))
        return 0

    return session.call(work)


def _system_text(system: SystemInfo) -> str:
    from arcbox_agent.cli.tables import fields, size
    from arcbox_agent.cli.times import NANOSECONDS, in_words

    return fields(
        [
            ("Hostname", system.hostname),
            ("Operating System", f"{system.os_name} {system.os_version}".rstrip()),
            ("Kernel Version", system.kernel_version),
            ("Architecture", system.arch),
            ("CPUs", str(system.cpu_count)),
            ("Total Memory", size(system.total_memory)),
            ("Available Memory", size(system.available_memory)),
            ("Load Average", " ".join(f"{load:.2f}" for load in system.load_average)),
            ("Uptime", in_words(system.uptime * NANOSECONDS)),
            ("IP Addresses", " ".join(system.ip_addresses)),
        ]
    )


def _agent_text(agent: AgentInfo) -> str:
    from arcbox_agent.cli.tables import fields, size, table
    from arcbox_agent.cli.times import in_words

    parts = [
        fields(
            [
                ("Version", agent.version),
                ("PID", str(agent.pid)),
                ("Uptime", in_words(agent.uptime_ms * 1_000_000)),
                ("State Directory", agent.state_dir),
                ("Runtime", agent.runtime),
                ("Connections", str(agent.connections)),
                ("Queued", size(agent.queued_bytes)),
                ("Log Lag", size(agent.log_lag_bytes)),
                ("Features", " ".join(agent.features)),
            ]
        ),
        table(
            ("LISTENER", "MODE", "CONNECTIONS"),
            [(one.address, one.mode, str(one.connections)) for one in agent.listeners],
        ),
    ]
    for title, numbers in (("LIMIT", agent.limits), ("COUNTER", agent.counters)):
        if numbers:
            parts.append(table((title, "VALUE"), [(name, str(value)) for name, value in sorted(numbers.items())]))
    return "\n\n".join(parts)


@click.command("runtime")
@click.option("--ensure", is_flag=True, help="Start it where it is not running.")
@json_option
@pass_session
def runtime_command(session: Session, ensure: bool) -> int:
    """Show the guest's container runtime.  Ends with 125 where --ensure could not make it ready."""
    from arcbox_agent.cli.failures import OWN_FAILURE
    from arcbox_agent.cli.output import fields_of
    from arcbox_agent.cli.tables import fields

    async def work(client: Client, _: Signals) -> int:
        if ensure:
            made = await client.ensure_runtime(start_if_needed=True)
            session.show(
                fields_of(made),
                fields(
                    [
                        ("Ready", _yes_no(made.ready)),
                        ("Status", made.status),
                        ("Endpoint", made.endpoint),
                        ("Message", made.message),
                    ]
                ),
            )
            return 0 if made.ready else OWN_FAILURE
        found = await client.runtime_status()
        rows = [
            ("containerd", _yes_no(found.containerd_ready)),
            ("docker", _yes_no(found.docker_ready)),
            ("Endpoint", found.endpoint),
            ("Detail", found.detail),
        ]
        rows += [(one.name, f"{one.status} {one.detail}".rstrip()) for one in found.services]
        session.show(fields_of(found), fields(rows))
        return 0

    return session.call(work)


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


@click.command("sync-time")
@json_option
@pass_session
def sync_time_command(session: Session) -> int:
    """Set the guest's clock by this host's.

    The agent does, where the two differ much.
    """

    async def work(client: Client, _: Signals) -> int:
        sent = time.time()
        await client.sync_time()
        session.show(
            {"sent": round(sent)},
            f"sent {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(round(sent)))} to {session.address}",
        )
        return 0

    return session.call(work)


@click.command("shutdown")
@click.option("-r", "--reboot", is_flag=True, help="Start again afterwards.")
@click.option(
    "-t",
    "--time",
    "seconds",
    type=click.IntRange(min=1),
    help="Seconds for the containers to stop in.  Default: the agent's.",
)
@json_option
@pass_session
def shutdown_command(session: Session, reboot: bool, seconds: int | None) -> int:
    """Stop the containers and power the guest off."""
    from arcbox_agent.cli.failures import OWN_FAILURE, ForwardedError

    async def work(client: Client, _: Signals) -> int:
        reply = await client.shutdown(timeout=seconds or 0, reboot=reboot)
        if not reply.accepted and not session.json:
            raise ForwardedError("the agent does not shut this guest down; its log says why")
        session.show({"accepted": reply.accepted}, "rebooting" if reboot else "shutting down")
        return 0 if reply.accepted else OWN_FAILURE

    return session.call(work)

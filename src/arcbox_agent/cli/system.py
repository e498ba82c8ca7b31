"""ping, info, runtime, sync-time, shutdown: the guest and its agent."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from arcbox_agent.cli.invocation import Invocation, json_option, pass_invocation
from arcbox_agent.cli.printable import printable

if TYPE_CHECKING:
    from arcbox_agent.cli.signals import Signals
    from arcbox_agent.client import Client
    from arcbox_agent.wire import AgentInfo, SystemInfo


@click.command("ping")
@click.argument("message", default="")
@json_option
@pass_invocation
def ping_command(invocation: Invocation, message: str) -> int:
    """Check that the agent answers, and how fast."""

    async def work(client: Client, _: Signals) -> int:
        start = time.perf_counter()
        reply = await client.ping(message)
        seconds = time.perf_counter() - start
        invocation.show(
            {"message": reply.message, "version": reply.version, "seconds": round(seconds, 6)},
            printable(f"{reply.message} (agent {reply.version} at {invocation.address}, {seconds * 1000:.2f} ms)"),
        )
        return 0

    return invocation.call(work)


@click.command("info")
@click.option(
    "--agent", "about_agent", is_flag=True, help="Show the agent instead: its connections, queues and limits."
)
@json_option
@pass_invocation
def info_command(invocation: Invocation, about_agent: bool) -> int:
    """Show information about the guest, or about its agent."""
    from arcbox_agent.cli.output import fields_of

    async def work(client: Client, _: Signals) -> int:
        if about_agent:
            agent = await client.agent_info()
            invocation.show(fields_of(agent), _agent_text(agent))
        else:
            system = await client.system_info()
            invocation.show(fields_of(system), _system_text(system))
        return 0

    return invocation.call(work)


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
@click.option("--ensure", is_flag=True, help="Start the runtime if it is not running.")
@json_option
@pass_invocation
def runtime_command(invocation: Invocation, ensure: bool) -> int:
    """Show the state of the guest's container runtime.

    The exit code is 125 if --ensure could not make the runtime ready.
    """
    from arcbox_agent.cli.failures import OWN_FAILURE
    from arcbox_agent.cli.output import fields_of
    from arcbox_agent.cli.tables import fields

    async def work(client: Client, _: Signals) -> int:
        if ensure:
            made = await client.ensure_runtime(start_if_needed=True)
            invocation.show(
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
        invocation.show(fields_of(found), fields(rows))
        return 0

    return invocation.call(work)


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


_CLOCK = {
    "left": "the clock is {after}, and was left alone",
    "step": "the clock was {before}, was set, and is {after}",
    "ptp": "the clock was {before}, was set by the hypervisor's, and is {after}",
    "slew": "the clock is {before}, and is brought in bit by bit",
}


def _off(seconds: float) -> str:
    """How far a clock is off: `3.2 ms ahead`."""
    size = f"{abs(seconds) * 1000:.1f} ms" if abs(seconds) < 10 else f"{abs(seconds):.1f} s"
    return f"{size} {'ahead' if seconds >= 0 else 'behind'}"


@click.command("sync-time")
@click.option("--slew", is_flag=True, help="Bring a difference below half a second in bit by bit.")
@json_option
@pass_invocation
def sync_time_command(invocation: Invocation, slew: bool) -> int:
    """Set the guest's clock to this host's clock.

    Shown is how far it was off before and afterwards.  A difference below 5 ms is left alone.
    """

    async def work(client: Client, _: Signals) -> int:
        sync = await client.sync_time(slew=slew)
        line = "sent this host's time; the agent does not tell what it did"
        if sync.before is not None and sync.after is not None:
            done = _CLOCK[sync.how].format(before=_off(sync.before), after=_off(sync.after))
            line = f"{done} (to within {sync.round_trip * 500:.1f} ms)"
        invocation.show(
            {
                "how": sync.how,
                "before_seconds": sync.before,
                "after_seconds": sync.after,
                "round_trip_seconds": sync.round_trip,
            },
            printable(f"{invocation.address}: {line}"),
        )
        return 0

    return invocation.call(work)


@click.command("shutdown")
@click.option("-r", "--reboot", is_flag=True, help="Reboot the guest instead of powering it off.")
@click.option(
    "-t",
    "--time",
    "seconds",
    type=click.IntRange(min=1),
    help="Seconds to wait for the containers to stop.  Default: the agent's setting.",
)
@json_option
@pass_invocation
def shutdown_command(invocation: Invocation, reboot: bool, seconds: int | None) -> int:
    """Stop the containers, and power the guest off."""
    from arcbox_agent.cli.failures import OWN_FAILURE, ForwardedError

    async def work(client: Client, _: Signals) -> int:
        reply = await client.shutdown(timeout=seconds or 0, reboot=reboot)
        if not reply.accepted and not invocation.json:
            raise ForwardedError("the agent does not shut this guest down; its log says why")
        invocation.show({"accepted": reply.accepted}, "rebooting" if reboot else "shutting down")
        return 0 if reply.accepted else OWN_FAILURE

    return invocation.call(work)

"""Counters and gauges of one agent, and their Prometheus text.

A counter is an int in a dict, so that the hot path pays one dict update per read
and not per request.  A gauge is a function that is called when the metrics are read.
"""

from __future__ import annotations

from collections.abc import Callable

#: Counters of the agent and what they count.  Each is 0 from the start, so that a rate over it
#: has no gap.
COUNTERS: dict[str, str] = {
    "connections_accepted": "Connections accepted.",
    "connections_refused_peer": "Connections refused because of who connected.",
    "connections_refused_limit": "Connections refused because max_connections was reached.",
    "accept_errors": "Failures to accept a connection (a full descriptor table, for instance).",
    "requests": "Requests answered, errors included.",
    "requests_failed": "Requests answered with an Error.",
    "requests_refused_mode": "Requests refused because of the listener's mode.",
    "requests_refused_memory": "Large requests refused because the guest was short of memory.",
    "memory_shed": "Times half of what peers did not read was dropped because the guest was short of memory.",
    "frames_broken": "Connections closed because of a broken frame.",
    "handler_failures": "Requests answered with 500 because a handler raised something unexpected.",
    "bytes_received": "Bytes received from peers.",
    "bytes_sent": "Bytes handed over to be sent to peers.",
    "bound_pipelined": "Times a connection was paused because of max_pipelined or max_queued_bytes.",
    "bound_slow_reader": "Times a connection was paused because its peer did not read.",
    "bound_queued_total": "Connections closed because max_queued_total was reached.",
    "bound_frame_timeout": "Connections closed because a frame took longer than frame_timeout.",
    "bound_idle_timeout": "Connections closed because of idle_timeout.",
    "bound_forwards": "Forwards refused because max_forwards was reached.",
    "bound_execs": "Commands refused because max_execs was reached.",
    "log_lines_dropped": "Lines of the agent's own log that could not be written.",
    "containers_started": "Starts of containers.",
    "container_start_failures": "Starts of containers that failed.",
    "containers_exited": "Ends of containers.",
    "containers_removed": "Containers removed.",
    "containers_recovered": "Running containers found again after a restart of the agent.",
    "processes_spawned": "Processes started, containers and commands alike.",
    "spawn_failures": "Processes that could not be started.",
    "spawns_given_up": "Processes that had not come to their program in time, and were killed.",
    "orphans_reaped": "Processes of others that the agent reaped as their init.",
    "keeper_deaths": "Keepers that were killed while they held something.",
    "exits_lost": "Ends of containers whose exit code could not be known.",
    "commands_started": "Commands run for clients.",
    "commands_timed_out": "Commands ended because of their time-out.",
    "clock_set": "Times the guest's clock was set to the host's.",
    "clock_refused": "Times the guest's clock could not be set.",
}

PREFIX = "arcbox_agent_"


class Metrics:
    """The counters and gauges of one agent."""

    __slots__ = ("counters", "gauges", "help")

    def __init__(self) -> None:
        self.counters: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        self.gauges: dict[str, Callable[[], float]] = {}
        self.help: dict[str, str] = dict(COUNTERS)

    def counter(self, name: str, text: str) -> None:
        """Declare a counter, which is shown as 0 before its first `add`."""
        self.counters.setdefault(name, 0)
        self.help[name] = text

    def add(self, name: str, n: int = 1) -> None:
        counters = self.counters
        counters[name] = counters.get(name, 0) + n

    def gauge(self, name: str, value: Callable[[], float], text: str = "") -> None:
        self.gauges[name] = value
        if text:
            self.help[name] = text

    def value(self, name: str) -> float:
        """A gauge's value now; 0 if it was never declared."""
        gauge = self.gauges.get(name)
        return gauge() if gauge is not None else 0

    def prometheus(self) -> str:
        """All counters and gauges in the Prometheus text format, version 0.0.4."""
        lines: list[str] = []
        for name in sorted(self.counters):
            _metric(lines, f"{name}_total", "counter", self.counters[name], self.help.get(name))
        for name in sorted(self.gauges):
            _metric(lines, name, "gauge", self.gauges[name](), self.help.get(name))
        return "\n".join(lines) + "\n"


def _metric(lines: list[str], name: str, kind: str, value: float, text: str | None) -> None:
    if text:
        lines.append(f"# HELP {PREFIX}{name} {text}")
    lines.append(f"# TYPE {PREFIX}{name} {kind}")
    lines.append(f"{PREFIX}{name} {value}")

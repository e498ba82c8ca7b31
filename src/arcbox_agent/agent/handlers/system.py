"""Ping and system info."""

from __future__ import annotations

import asyncio
import os
import time

from arcbox_agent.agent import clock
from arcbox_agent.agent.config.access import Access
from arcbox_agent.agent.guest.addresses import ip_addresses
from arcbox_agent.agent.processes import small_file
from arcbox_agent.wire import PingResponse, SystemInfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from typing import Any

    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.metrics import Metrics
    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.wire import PingRequest


class System:
    """`features`: the names of the requests that are served."""

    def __init__(self, settings: Settings, metrics: Metrics, version: str, features: Sequence[str]) -> None:
        self._settings = settings
        self._metrics = metrics
        self._version = version
        self._features = features

    def ping(self, request: PingRequest, call: Call) -> PingResponse | Coroutine[Any, Any, PingResponse]:
        """Pings with nothing but a message are answered in compiled code and do not come here."""
        text = f"pong: {request.message}" if request.message else "pong"
        reply = PingResponse(message=text, version=self._version, features=[*self._features] if request.detail else [])
        if request.timed or request.timestamp_ns:
            return self._timed_ping(request, reply, call)
        host_time = request.timestamp_secs
        # A host sends its time with every ping: who may only look is answered all the same.
        if host_time > 0 and self._settings.set_clock and call.allows(Access.CONTROL):
            if clock.follow_host(host_time, self._metrics):
                return _once_reseeded(host_time, reply)
        return reply

    def _timed_ping(
        self, request: PingRequest, reply: PingResponse, call: Call
    ) -> PingResponse | Coroutine[Any, Any, PingResponse]:
        stepped = False
        if request.timestamp_ns:
            reply.behind_ns = clock.compare(request.timestamp_ns, request.monotonic_ns)
            reply.clock = "forbidden"
            if self._settings.set_clock and call.allows(Access.CONTROL):
                outcome = clock.follow_host_exactly(reply.behind_ns, request.least_ns, request.slew, self._metrics)
                reply.clock = outcome.done
                stepped = outcome.stepped
        reply.time_ns, reply.monotonic_ns = time.time_ns(), time.monotonic_ns()
        return _once_reseeded(time.time_ns(), reply) if stepped else reply

    async def info(self, request: None, call: Call) -> SystemInfo:
        kernel = os.uname()
        # On a disk that may hang.
        release = await asyncio.to_thread(os_release)
        memory = meminfo()
        return SystemInfo(
            kernel_version=kernel.release,
            os_name=release.get("NAME", kernel.sysname),
            os_version=release.get("VERSION_ID", ""),
            arch=kernel.machine,
            total_memory=memory.get("MemTotal", 0),
            # Kernels before 3.14 have no MemAvailable.
            available_memory=memory.get("MemAvailable", memory.get("MemFree", 0)),
            cpu_count=os.sysconf("SC_NPROCESSORS_ONLN"),
            load_average=list(os.getloadavg()),
            hostname=kernel.nodename,
            uptime=uptime(),
            ip_addresses=ip_addresses(),
        )


async def _once_reseeded(host_time: int, reply: PingResponse) -> PingResponse:
    # The device that gives random bytes is waited for.
    await asyncio.to_thread(clock.reseed_random, host_time)
    return reply


def os_release() -> dict[str, str]:
    """The fields of os-release(5); empty where the guest has none."""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            text = small_file.read(path, 64 << 10).decode("utf-8", "replace")
        except OSError:
            continue
        fields = {}
        for line in text.splitlines():
            key, equals, value = line.strip().partition("=")
            if equals and not key.startswith("#"):
                fields[key] = _unquote(value)
        return fields
    return {}


def _unquote(value: str) -> str:
    """A value as a shell would read it: os-release is a file that may be sourced."""
    if len(value) < 2 or value[0] != value[-1] or value[0] not in "\"'":
        return value
    quote, value = value[0], value[1:-1]
    if quote == "'":
        return value
    parts = []
    escaped = False
    for character in value:
        if character == "\\" and not escaped:
            escaped = True
            continue
        if escaped and character not in '"$`\\':
            parts.append("\\")
        parts.append(character)
        escaped = False
    return "".join(parts)


def meminfo() -> dict[str, int]:
    """/proc/meminfo, in bytes."""
    values = {}
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            number, _, unit = rest.strip().partition(" ")
            values[name] = int(number) * (1024 if unit == "kB" else 1)
    return values


def uptime() -> int:
    """Seconds since the guest booted."""
    with open("/proc/uptime", encoding="ascii") as file:
        return int(float(file.read().split()[0]))

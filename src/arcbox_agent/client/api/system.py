"""Calls about the guest and its agent."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from arcbox_agent import wire
from arcbox_agent.client import calls, clock
from arcbox_agent.client.caller import Caller
from arcbox_agent.errors import ClockNotSetError

if TYPE_CHECKING:
    from arcbox_agent.client.clock import ClockSync
    from arcbox_agent.wire import (
        AgentInfo,
        PingResponse,
        RuntimeEnsureResponse,
        RuntimeStatusResponse,
        ShutdownResponse,
        SystemInfo,
    )


class SystemCalls(Caller):
    async def ping(self, message: str = "", *, set_clock: bool = False, timeout: float | None = None) -> PingResponse:
        """Ask the agent for a sign of life: the reply has its `version`, and `message` or "pong".

        `set_clock`: send this host's time too, by which the agent may set the guest's clock.
        """
        # Cut off, not rounded: the agent takes its host to be up to a second later.
        now = int(time.time()) if set_clock else 0
        request = wire.PingRequest(message=message, timestamp_secs=now)
        return await self.call(request, wire.PingResponse, timeout=timeout, repeatable=True)

    async def sync_time(self, *, slew: bool = False, timeout: float | None = None) -> ClockSync:
        """Set the guest's clock to this host's, and tell how far it was off and is now.

        `slew`: bring a difference below half a second in bit by bit, so that no time is met twice;
        it takes 2000 times as long.  The agent sets its clock only for a peer that may change
        something, and where its settings allow it.  An agent that does not tell its time is sent
        this host's in whole seconds.  `timeout`: of each ping.  Raises ClockNotSetError where the
        clocks differ and the agent does not set its own.
        """

        async def ping() -> PingResponse:
            return await self.call(wire.PingRequest(timed=True), wire.PingResponse, timeout=timeout, repeatable=True)

        found = before = await clock.measure(ping)
        if found is None or before is None:
            sent = time.monotonic()
            await self.ping(set_clock=True, timeout=timeout)
            return clock.ClockSync("sent", None, None, time.monotonic() - sent)
        how = "left"
        for _ in range(clock.TRIES):
            if not found.differs:
                break
            request = wire.PingRequest(
                timestamp_ns=found.host, monotonic_ns=found.monotonic, least_ns=int(clock.LEAST * 1e9), slew=slew
            )
            how = (await self.call(request, wire.PingResponse, timeout=timeout)).clock
            if how in ("refused", "forbidden"):
                raise ClockNotSetError(how, before.ahead / 1e9)
            again = await clock.measure(ping)
            if again is None or how == "slew":
                break
            found = again
        return clock.ClockSync(how, before.ahead / 1e9, found.ahead / 1e9, found.round_trip / 1e9)

    async def system_info(self, *, timeout: float | None = None) -> SystemInfo:
        """The guest: kernel, memory in bytes, processors, load, addresses."""
        return await self.call(wire.GetSystemInfoRequest(), wire.SystemInfo, timeout=timeout, repeatable=True)

    async def agent_info(self, *, timeout: float | None = None) -> AgentInfo:
        """The agent: its listeners, connections, counters and limits."""
        return await self.call(wire.AgentInfoRequest(), wire.AgentInfo, timeout=timeout, repeatable=True)

    async def ensure_runtime(
        self, *, start_if_needed: bool = True, timeout: float | None = None
    ) -> RuntimeEnsureResponse:
        """Make the guest's container runtime ready; the reply's `ready` says whether it is."""
        request = wire.RuntimeEnsureRequest(start_if_needed=start_if_needed)
        return await self.call(request, wire.RuntimeEnsureResponse, timeout=timeout, long=True)

    async def runtime_status(self, *, timeout: float | None = None) -> RuntimeStatusResponse:
        """The state of the guest's container runtime and its services."""
        return await self.call(
            wire.RuntimeStatusRequest(), wire.RuntimeStatusResponse, timeout=timeout, repeatable=True
        )

    async def shutdown(self, *, timeout: float = 0, reboot: bool = False) -> ShutdownResponse:
        """Power the guest off, or with `reboot` start it again.

        `timeout`: seconds for its containers to stop in; 0: the agent's default.
        """
        seconds = calls.whole("ShutdownRequest.timeout_seconds", timeout)
        request = wire.ShutdownRequest(timeout_seconds=seconds, reboot=reboot)
        return await self.call(request, wire.ShutdownResponse, timeout=self._added_to(timeout), long=True)

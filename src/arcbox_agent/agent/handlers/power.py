"""Shutdown: the answer first, then the end."""

from __future__ import annotations

from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.errors import AgentFailedError
from arcbox_agent.wire import ShutdownResponse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.wire import ShutdownRequest

log = Logger("request")

#: A host may give its containers an hour; more is a mistake.
LONGEST = 3600


class Power:
    """`end`: asks the agent for its end, and returns the action that it ends with (see Agent.request_stop)."""

    def __init__(self, settings: Settings, end: Callable[[str, float | None], str]) -> None:
        self._settings = settings
        self._end = end

    def shutdown(self, request: ShutdownRequest, call: Call) -> ShutdownResponse:
        """Accepted only where it can be done; the reply goes out before connections are closed."""
        # Once in the life of a guest, if at all: nothing for the start to pay for.
        from arcbox_agent.agent.guest import power

        action = "reboot" if request.reboot else "poweroff"
        power.way_to(action, self._settings.init)
        timeout = min(request.timeout_seconds, LONGEST) or None
        ends_with = self._end(action, timeout)
        if ends_with != action:
            raise AgentFailedError(f"failed to {action}: the agent is ending already, with {ends_with}")
        log.info("shutdown accepted", action=action, timeout=timeout)
        return ShutdownResponse(accepted=True)

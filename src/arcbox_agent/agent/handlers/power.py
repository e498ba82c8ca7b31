"""Shutdown: the answer first, then the end."""

from __future__ import annotations

from arcbox_agent.errors import AgentFailedError
from arcbox_agent.wire import ShutdownResponse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.daemon import Agent
    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.wire import ShutdownRequest

#: A host may give its containers an hour; more is a mistake.
LONGEST = 3600


def shutdown(agent: Agent, request: ShutdownRequest, call: Call) -> ShutdownResponse:
    """Accepted only where it can be done; the reply goes out before connections are closed."""
    # Once in the life of a guest, if at all: nothing for the start to pay for.
    from arcbox_agent.agent.guest import power

    action = "reboot" if request.reboot else "poweroff"
    power.way_to(action, agent.settings.init)
    timeout = min(request.timeout_seconds, LONGEST) or None
    if not agent.request_stop(action, timeout):
        raise AgentFailedError(f"failed to {action}: the agent is ending already, with {agent.action}")
    call.log.info("shutdown accepted", action=action, timeout=timeout)
    return ShutdownResponse(accepted=True)

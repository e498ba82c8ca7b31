"""What the agent says of itself: `arcboxctl info --agent`."""

from __future__ import annotations

import os
import time

from arcbox_agent.message_types import MessageType
from arcbox_agent.wire import AgentInfo, ListenerInfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.daemon import Agent
    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.wire import AgentInfoRequest

#: The settings that bound what a peer can cost, as AgentInfo.limits shows them.
LIMITS = (
    "max_connections",
    "max_containers",
    "max_execs",
    "max_frame_size",
    "max_pipelined",
    "max_queued_bytes",
    "max_queued_total",
    "exec_output_limit",
    "log_max_files",
    "log_max_size",
)

#: Those in seconds, shown in milliseconds: the message holds whole numbers.
LIMITS_IN_SECONDS = ("frame_timeout", "idle_timeout", "shutdown_timeout", "stop_timeout")


def agent_info(agent: Agent, request: AgentInfoRequest, call: Call) -> AgentInfo:
    settings = agent.settings
    metrics = agent.metrics
    limits = {name: int(getattr(settings, name)) for name in LIMITS}
    limits |= {f"{name}_ms": int(getattr(settings, name) * 1000) for name in LIMITS_IN_SECONDS}
    return AgentInfo(
        version=agent.version,
        pid=os.getpid(),
        uptime_ms=int((time.monotonic() - agent.started_at) * 1000),
        listeners=[
            ListenerInfo(address=listener.address, connections=listener.connections, mode=listener.mode)
            for listener in agent.server.listeners
        ],
        connections=len(agent.server.connections),
        queued_bytes=agent.server.queued_bytes(),
        counters=dict(metrics.counters),
        limits=limits,
        features=features(agent),
        log_lag_bytes=int(metrics.value("log_lag_bytes")),
        state_dir=settings.state_dir,
        runtime="process",
    )


def features(agent: Agent) -> list[str]:
    """What this agent serves: the names of the requests it has a route for."""
    return sorted(MessageType(type).name.lower().removesuffix("_request") for type in agent.server.routes)

"""What the agent says of itself: `arcboxctl info --agent`."""

from __future__ import annotations

import os

from arcbox_agent.wire import AgentInfo, ListenerInfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.metrics import Metrics
    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.agent.serving.listeners import Listener
    from arcbox_agent.wire import AgentInfoRequest

#: The settings that bound what a peer can cost, as AgentInfo.limits shows them.
LIMITS = (
    "max_connections",
    "max_containers",
    "max_execs",
    "max_forwards",
    "max_frame_size",
    "max_pipelined",
    "max_queued_bytes",
    "max_queued_total",
    "exec_output_limit",
    "log_max_files",
    "log_max_size",
)

#: Those in seconds, shown in milliseconds: the message holds whole numbers.
LIMITS_IN_SECONDS = ("frame_timeout", "idle_timeout", "late_output", "shutdown_timeout", "stop_timeout")


class Info:
    """`features`: the names of the requests that are served; `listeners`: those that are open, as they are now."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        version: str,
        features: Sequence[str],
        listeners: Sequence[Listener],
        runtime_name: str,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._version = version
        self._features = features
        self._listeners = listeners
        self._runtime_name = runtime_name

    def agent_info(self, request: AgentInfoRequest, call: Call) -> AgentInfo:
        settings = self._settings
        metrics = self._metrics
        limits = {name: int(getattr(settings, name)) for name in LIMITS}
        limits |= {f"{name}_ms": int(getattr(settings, name) * 1000) for name in LIMITS_IN_SECONDS}
        return AgentInfo(
            version=self._version,
            pid=os.getpid(),
            uptime_ms=int(metrics.value("uptime_seconds") * 1000),
            listeners=[
                ListenerInfo(address=listener.address, connections=listener.connections, mode=listener.mode)
                for listener in self._listeners
            ],
            connections=int(metrics.value("connections")),
            queued_bytes=int(metrics.value("queued_bytes")),
            counters=dict(metrics.counters),
            limits=limits,
            features=[*self._features],
            log_lag_bytes=int(metrics.value("log_lag_bytes")),
            state_dir=settings.state_dir,
            runtime=self._runtime_name,
        )

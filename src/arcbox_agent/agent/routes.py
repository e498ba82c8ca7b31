"""The dispatch table: which handler answers which request, and what it needs.

A handler is a function `(agent, request, call)`.  What it returns is the reply, or a
coroutine for it, which runs as the one task of its connection: the connection's next
request waits for it, and no other connection does.
"""

from __future__ import annotations

from arcbox_agent.agent.config.access import Access
from arcbox_agent.agent.handlers import agent_info, containers, exec, logs, power, runtime, system
from arcbox_agent.message_types import MessageType
from arcbox_agent.wire import (
    AgentInfoRequest,
    ContainerStatsRequest,
    ContainerTopRequest,
    CreateContainerRequest,
    ExecRequest,
    KillContainerRequest,
    ListContainersRequest,
    LogsRequest,
    PingRequest,
    RemoveContainerRequest,
    RuntimeEnsureRequest,
    RuntimeStatusRequest,
    ShutdownRequest,
    StartContainerRequest,
    StopContainerRequest,
    WaitContainerRequest,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from arcbox_agent.wire import Message


class Route:
    """How a request is answered.  `request` None: its payload is not looked at."""

    __slots__ = ("access", "handler", "request")

    def __init__(self, handler: Callable[..., Any], request: type[Message] | None, access: Access) -> None:
        self.handler = handler
        self.request = request
        self.access = access


ROUTES: dict[int, Route] = {
    MessageType.PING_REQUEST: Route(system.ping, PingRequest, Access.READ),
    # 0.0.1-alpha.1 does not look at the payload either.
    MessageType.GET_SYSTEM_INFO_REQUEST: Route(system.system_info, None, Access.READ),
    MessageType.CREATE_CONTAINER_REQUEST: Route(containers.create, CreateContainerRequest, Access.CONTROL),
    MessageType.START_CONTAINER_REQUEST: Route(containers.start, StartContainerRequest, Access.CONTROL),
    MessageType.STOP_CONTAINER_REQUEST: Route(containers.stop, StopContainerRequest, Access.CONTROL),
    MessageType.REMOVE_CONTAINER_REQUEST: Route(containers.remove, RemoveContainerRequest, Access.CONTROL),
    MessageType.LIST_CONTAINERS_REQUEST: Route(containers.list, ListContainersRequest, Access.READ),
    MessageType.KILL_CONTAINER_REQUEST: Route(containers.kill, KillContainerRequest, Access.CONTROL),
    MessageType.WAIT_CONTAINER_REQUEST: Route(containers.wait, WaitContainerRequest, Access.READ),
    MessageType.CONTAINER_STATS_REQUEST: Route(
        lambda agent, request, call: agent.usage.stats(request, call), ContainerStatsRequest, Access.READ
    ),
    MessageType.CONTAINER_TOP_REQUEST: Route(
        lambda agent, request, call: agent.usage.top(request, call), ContainerTopRequest, Access.READ
    ),
    MessageType.EXEC_REQUEST: Route(exec.exec, ExecRequest, Access.EXEC),
    MessageType.LOGS_REQUEST: Route(logs.logs, LogsRequest, Access.READ),
    MessageType.RUNTIME_ENSURE_REQUEST: Route(runtime.ensure_runtime, RuntimeEnsureRequest, Access.CONTROL),
    MessageType.RUNTIME_STATUS_REQUEST: Route(runtime.runtime_status, RuntimeStatusRequest, Access.READ),
    MessageType.SHUTDOWN_REQUEST: Route(power.shutdown, ShutdownRequest, Access.CONTROL),
    MessageType.AGENT_INFO_REQUEST: Route(agent_info.agent_info, AgentInfoRequest, Access.READ),
}

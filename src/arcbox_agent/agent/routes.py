"""The dispatch table: which handler answers which request, and what it needs."""

from __future__ import annotations

from arcbox_agent import wire
from arcbox_agent.agent.config.access import Access
from arcbox_agent.agent.handlers.agent_info import Info
from arcbox_agent.agent.handlers.containers import Lifecycle
from arcbox_agent.agent.handlers.exec import Exec
from arcbox_agent.agent.handlers.executions import ExecutionCalls
from arcbox_agent.agent.handlers.forwards import Forwards
from arcbox_agent.agent.handlers.logs import Logs
from arcbox_agent.agent.handlers.power import Power
from arcbox_agent.agent.handlers.runtime import Runtime
from arcbox_agent.agent.handlers.system import System
from arcbox_agent.agent.handlers.usage import Usage
from arcbox_agent.agent.handlers.waits import Waits
from arcbox_agent.agent.serving.route import Route
from arcbox_agent.agent.serving.stream import INPUTS
from arcbox_agent.message_types import MessageType as Type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from arcbox_agent.agent.commands.commands import Commands
    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.containers.output.capture import Capture
    from arcbox_agent.agent.containers.runtimes.protocol import CommandHost
    from arcbox_agent.agent.containers.service import Containers
    from arcbox_agent.agent.executions.executions import Executions
    from arcbox_agent.agent.forwards.forwards import Forwards as ForwardsPart
    from arcbox_agent.agent.logs.follower import Followers
    from arcbox_agent.agent.metrics import Metrics
    from arcbox_agent.agent.processes.lanes import Lanes
    from arcbox_agent.agent.serving.listeners import Listener


def bind(
    settings: Settings,
    metrics: Metrics,
    version: str,
    listeners: Sequence[Listener],
    containers: Containers,
    guest: CommandHost,
    commands: Commands,
    executions: Executions,
    followers: Followers,
    forwards: ForwardsPart,
    capture: Capture,
    runtime_name: str,
    lanes: Lanes,
    end: Callable[[str, float | None], str],
) -> dict[int, Route]:
    """The table, with each handler bound to the parts that it uses.  `end`: see Agent.request_stop."""
    features: list[str] = []
    info = Info(settings, metrics, version, features, listeners, runtime_name)
    system = System(settings, metrics, version, features)
    container = Lifecycle(containers, settings.max_frame_size)
    runtime = Runtime(runtime_name)
    exec = Exec(containers, guest, commands, settings)
    execution = ExecutionCalls(containers, guest, executions)
    logs = Logs(containers, followers, capture, settings)
    forward = Forwards(forwards, containers, lanes)
    waits = Waits(containers, executions, followers, capture, lanes)
    usage = Usage(containers, lanes)
    power = Power(settings, end)
    read, control = Access.READ, Access.CONTROL
    stream = {message.TYPE: message for message in INPUTS}
    routes: dict[int, Route] = {
        Type.PING_REQUEST: Route(system.ping, wire.PingRequest, read),
        # 0.0.1-alpha.1 does not look at the payload either.
        Type.GET_SYSTEM_INFO_REQUEST: Route(system.info, None, read),
        Type.CREATE_CONTAINER_REQUEST: Route(container.create, wire.CreateContainerRequest, control),
        Type.START_CONTAINER_REQUEST: Route(container.start, wire.StartContainerRequest, control),
        Type.STOP_CONTAINER_REQUEST: Route(container.stop, wire.StopContainerRequest, control),
        Type.REMOVE_CONTAINER_REQUEST: Route(container.remove, wire.RemoveContainerRequest, control),
        Type.LIST_CONTAINERS_REQUEST: Route(container.list, wire.ListContainersRequest, read),
        Type.KILL_CONTAINER_REQUEST: Route(container.kill, wire.KillContainerRequest, control),
        Type.WAIT_CONTAINER_REQUEST: Route(container.wait, wire.WaitContainerRequest, read),
        Type.CONTAINER_STATS_REQUEST: Route(usage.stats, wire.ContainerStatsRequest, read),
        Type.CONTAINER_TOP_REQUEST: Route(usage.top, wire.ContainerTopRequest, read),
        Type.EXEC_REQUEST: Route(exec.run, wire.ExecRequest, Access.EXEC),
        Type.START_EXECUTION_REQUEST: Route(execution.start, wire.StartExecutionRequest, Access.EXEC),
        Type.LIST_EXECUTIONS_REQUEST: Route(execution.list, wire.ListExecutionsRequest, read),
        Type.INSPECT_EXECUTION_REQUEST: Route(execution.inspect, wire.InspectExecutionRequest, read),
        Type.ATTACH_EXECUTION_REQUEST: Route(execution.attach, wire.AttachExecutionRequest, Access.EXEC, stream),
        Type.WRITE_EXECUTION_REQUEST: Route(execution.write, wire.WriteExecutionRequest, Access.EXEC),
        Type.RESIZE_EXECUTION_REQUEST: Route(execution.resize, wire.ResizeExecutionRequest, Access.EXEC),
        Type.SIGNAL_EXECUTION_REQUEST: Route(execution.signal, wire.SignalExecutionRequest, Access.EXEC),
        Type.WAIT_EXECUTION_REQUEST: Route(execution.wait, wire.WaitExecutionRequest, read),
        Type.REMOVE_EXECUTION_REQUEST: Route(execution.remove, wire.RemoveExecutionRequest, Access.EXEC),
        Type.EXEC_START_REQUEST: Route(execution.exec_start, wire.ExecStartRequest, Access.EXEC),
        Type.EXEC_RESIZE_REQUEST: Route(execution.exec_resize, wire.ExecResizeRequest, Access.EXEC),
        Type.ATTACH_REQUEST: Route(
            execution.plain_attach, wire.AttachRequest, Access.EXEC, {wire.AttachInput.TYPE: wire.AttachInput}
        ),
        Type.CONNECT_REQUEST: Route(forward.connect, wire.ConnectRequest, Access.EXEC, stream),
        Type.LISTEN_REQUEST: Route(forward.listen, wire.ListenRequest, Access.EXEC, stream),
        Type.ACCEPT_REQUEST: Route(forward.accept, wire.AcceptRequest, Access.EXEC, stream),
        Type.WAIT_FOR_REQUEST: Route(waits.wait, wire.WaitForRequest, read),
        Type.LOGS_REQUEST: Route(logs.read, wire.LogsRequest, read),
        Type.RUNTIME_ENSURE_REQUEST: Route(runtime.ensure, wire.RuntimeEnsureRequest, control),
        Type.RUNTIME_STATUS_REQUEST: Route(runtime.status, wire.RuntimeStatusRequest, read),
        Type.SHUTDOWN_REQUEST: Route(power.shutdown, wire.ShutdownRequest, control),
        Type.AGENT_INFO_REQUEST: Route(info.agent_info, wire.AgentInfoRequest, read),
    }
    # What this agent serves, by the names of the requests.
    features += sorted(Type(type).name.lower().removesuffix("_request") for type in routes)
    return routes

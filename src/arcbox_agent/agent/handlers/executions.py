"""Executions: typed request in, typed reply out; attach is a stream."""

from __future__ import annotations

import asyncio

from arcbox_agent.agent.executions.attached import Attached
from arcbox_agent.agent.executions.plain import PlainAttached
from arcbox_agent.errors import BadRequestError, ConflictError, NotFoundError
from arcbox_agent.wire import (
    Empty,
    ExecRequest,
    ExecStartResponse,
    ListExecutionsResponse,
    StartExecutionRequest,
    StreamAccepted,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.containers.runtimes.protocol import CommandHost
    from arcbox_agent.agent.containers.service import Containers
    from arcbox_agent.agent.executions.executions import Executions
    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.wire import (
        AttachExecutionRequest,
        AttachRequest,
        ExecResizeRequest,
        ExecStartRequest,
        Execution,
        InspectExecutionRequest,
        ListExecutionsRequest,
        Message,
        RemoveExecutionRequest,
        ResizeExecutionRequest,
        SignalExecutionRequest,
        WaitExecutionRequest,
        WriteExecutionRequest,
    )

#: Rows of a page, and characters of a command that a row shows.
PAGE = 256
SHOWN = 4096


class ExecutionCalls:
    """See the module."""

    def __init__(self, containers: Containers, guest: CommandHost, executions: Executions) -> None:
        self._containers = containers
        self._guest = guest
        self._executions = executions

    async def start(self, request: StartExecutionRequest, call: Call) -> Execution:
        if request.command is None:
            raise BadRequestError("no command")
        return (await self._executions.start(request, self._host)).describe()

    def _host(self, command: ExecRequest) -> CommandHost:
        if not command.container_id:
            return self._guest
        container = self._containers.resolve(command.container_id)
        command.container_id = container.id
        return self._containers.host_of(container)

    def list(self, request: ListExecutionsRequest, call: Call) -> ListExecutionsResponse:
        container = self._containers.resolve(request.container_id).id if request.container_id else ""
        found = self._executions.list(container, request.all)
        if request.after:
            ids = [each.id for each in found]
            # One that was removed meanwhile: the page after it cannot be told, so it begins anew.
            found = found[ids.index(request.after) + 1 :] if request.after in ids else found
        rows = [each.describe() for each in found[:PAGE]]
        for row in rows:
            _cut(row)
        return ListExecutionsResponse(executions=rows, next=rows[-1].id if len(found) > PAGE else "")

    def inspect(self, request: InspectExecutionRequest, call: Call) -> Execution:
        return self._executions.resolve(request.id).describe()

    async def attach(self, request: AttachExecutionRequest, call: Call) -> Message:
        call.open_ended = True
        return await Attached(self._executions, self._executions.resolve(request.id), request, call).run()

    async def exec_start(self, request: ExecStartRequest, call: Call) -> ExecStartResponse:
        """As its peers know it: the command waits for the client that attaches by `exec_id`."""
        if not request.exec_id:
            raise BadRequestError("no exec_id")
        command = ExecRequest(
            container_id=request.container_id,
            cmd=request.cmd,
            env=request.env,
            working_dir=request.working_dir,
            user=request.user,
            tty=request.tty,
            tty_width=request.tty_width,
            tty_height=request.tty_height,
        )
        attached = not request.detach
        started = await self._executions.start(
            StartExecutionRequest(id=request.exec_id, command=command, open_stdin=attached, wait_when_full=attached),
            self._host,
        )
        return ExecStartResponse(pid=started.record.pid)

    def exec_resize(self, request: ExecResizeRequest, call: Call) -> Empty:
        self._executions.resize(self._executions.resolve(request.exec_id), request.height, request.width)
        return Empty()

    async def plain_attach(self, request: AttachRequest, call: Call) -> Empty:
        if not request.exec_id:
            raise BadRequestError("no exec_id: this agent attaches to executions, and follows the logs of containers")
        execution = self._executions.resolve(request.exec_id)
        call.open_ended = True
        if execution.record.tty and (request.tty_width or request.tty_height):
            self._executions.resize(execution, request.tty_height, request.tty_width)
        return await PlainAttached(self._executions, execution, request, call).run()

    async def write(self, request: WriteExecutionRequest, call: Call) -> StreamAccepted:
        execution = self._executions.resolve(request.id)
        if not execution.record.open_stdin:
            raise BadRequestError(f"execution {execution.id} was started without input (open_stdin)")
        if execution.input_owner is not None:
            raise ConflictError(f"the input of execution {execution.id} is another client's")
        call.open_ended = True
        await self._executions.write(execution, request.offset, request.data, request.close)
        stdin = execution.channels.input if execution.channels is not None else None
        if stdin is None:
            return StreamAccepted(
                offset=execution.record.input_offset, until=execution.record.input_offset, closed=True
            )
        return StreamAccepted(offset=stdin.accepted, until=stdin.until(), closed=stdin.closed)

    def resize(self, request: ResizeExecutionRequest, call: Call) -> Empty:
        self._executions.resize(self._executions.resolve(request.id), request.rows, request.columns)
        return Empty()

    async def signal(self, request: SignalExecutionRequest, call: Call) -> Empty:
        execution = self._executions.resolve(request.id)
        if request.all:
            await self._executions.signal_all(execution, request.signal)
        else:
            self._executions.signal(execution, request.signal)
        return Empty()

    async def wait(self, request: WaitExecutionRequest, call: Call) -> Execution:
        execution = self._executions.resolve(request.id)
        call.open_ended = True
        if execution.running:
            await asyncio.wait((execution.ends,), timeout=request.timeout_ms / 1000 or None)
        if execution.gone:
            raise NotFoundError(f"execution {execution.id} was removed")
        return execution.describe()

    async def remove(self, request: RemoveExecutionRequest, call: Call) -> Empty:
        await self._executions.remove(request.id, request.force)
        return Empty()


def _cut(row: Execution) -> None:
    """A page of rows must fit into a frame: a long command is shown in part."""
    room, shown = SHOWN, []
    for word in row.cmd:
        if len(word) > room:
            shown.append(word[:room] + "…")
            break
        shown.append(word)
        room -= len(word) + 8
        if room <= 0:
            break
    row.cmd = shown

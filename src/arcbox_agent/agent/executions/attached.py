"""A client that is attached to an execution: its outputs from its own cursors, and perhaps its input."""

from __future__ import annotations

from arcbox_agent.agent.serving.stream import PIECE, Stream
from arcbox_agent.errors import BadRequestError, ConflictError
from arcbox_agent.wire import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.executions.execution import Execution
    from arcbox_agent.agent.executions.executions import Executions
    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.wire import AttachExecutionRequest, Message, StreamControl, StreamCredit


class Attached(Stream):
    """See the module.  ConflictError: another client gives the input."""

    __slots__ = ("_execution", "_executions", "_gives_input", "_reader")

    def __init__(
        self, executions: Executions, execution: Execution, request: AttachExecutionRequest, call: Call
    ) -> None:
        names = [name for name, _, _, _ in execution.outputs()]
        wanted = [each.stream for each in request.outputs]
        for name in wanted:
            if name not in names or wanted.count(name) > 1:
                raise BadRequestError(f"no output {name!r}, or named twice: it has {', '.join(names)}")
        if request.input and not execution.record.open_stdin:
            raise BadRequestError(f"execution {execution.id} was started without input (open_stdin)")
        if request.input and execution.input_owner is not None:
            raise ConflictError(f"the input of execution {execution.id} is another client's")
        super().__init__(call, request.heartbeat_ms)
        self._executions = executions
        self._execution = execution
        self._gives_input = request.input
        self._reader = executions.reader(execution)
        ends = {name: end for name, _, end, _ in execution.outputs()}
        for each in request.outputs:
            end = ends[each.stream]
            cursor = end if each.newest else each.cursor
            if cursor > end:
                self.close()
                raise BadRequestError(f"the cursor {cursor} of {each.stream} is behind its end, {end}")
            self.open_output(each.stream, cursor, request.window)
        execution.attached[self] = self._changed
        if request.input:
            execution.input_owner = self

    async def run(self) -> Message:
        """Until the execution has ended and all of it was sent, or the client detaches."""
        execution = self._execution
        try:
            self._executions.hold(execution)
            await self.send(execution.describe())
            if self._gives_input:
                stdin = execution.channels.input if execution.channels is not None else None
                await self.open_input(
                    stdin.accepted if stdin is not None else execution.record.input_offset,
                    stdin is None or stdin.closed,
                )
            while not self.detached:
                moved = False
                for name in self.outputs:
                    moved = await self._send_next(name) or moved
                if moved:
                    continue
                if not execution.running and all(output.over for output in self.outputs.values()):
                    return execution.describe()
                await self.wait()
            return Empty()
        finally:
            self.leave()

    def leave(self) -> None:
        execution = self._execution
        execution.attached.pop(self, None)
        if execution.input_owner is self:
            execution.input_owner = None
        self._reader.close()
        self.close()
        self._executions.hold(execution)

    # --------------------------------------------------------------- outputs

    async def _send_next(self, name: str) -> bool:
        """Send the next piece of an output; False: there is none that may be sent."""
        output = self.outputs[name]
        if output.over:
            return False
        gap, data, over = await self._reader.next(name, output.cursor, min(self.credit(name), PIECE))
        if gap:
            await self.send_gap(name, gap)
        elif data:
            await self.send_output(name, data)
        elif over:
            await self.end_output(name)
        else:
            return False
        return True

    def _take_credit(self, credit: StreamCredit) -> None:
        super()._take_credit(credit)
        if self._execution.record.wait_when_full:
            self._executions.hold(self._execution)

    # ----------------------------------------------------------------- input

    def input_came(self) -> None:
        self._hand_on()

    def _hand_on(self) -> None:
        """Give the execution what there is room for; tell the client what was accepted."""
        execution = self._execution
        stdin = execution.channels.input if execution.channels is not None else None
        accepted = stdin.accepted if stdin is not None else execution.record.input_offset
        if accepted > self.offset or (stdin is not None and stdin.closed and not self.closed):
            self.accept(accepted - self.offset)
        if stdin is None or stdin.over:
            if not self.closed:
                self.close_input()
            return
        at = stdin.queued - self.offset
        room = stdin.until() - stdin.queued
        octets = bytes(memoryview(self.pending)[at : at + room]) if room > 0 else b""
        close = self.ending and at + len(octets) == len(self.pending) and stdin.target < 0
        if octets or close:
            execution.write(stdin.queued, octets, close)

    def control(self, message: StreamControl) -> None:
        if message.rows or message.columns:
            self._executions.resize(self._execution, message.rows, message.columns)
        if message.signal:
            self._executions.signal(self._execution, message.signal)

    def _changed(self) -> None:
        if self._gives_input and not self.closed:
            try:
                self._hand_on()
            except Exception as error:
                self.fail(error)
        self.wake()

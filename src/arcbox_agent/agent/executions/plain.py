"""A client that is attached by AttachRequest: bytes both ways, without cursors, offsets or credit.

It reads, or the command waits in its pipe once the spool is full: backpressure takes the place of credit.
"""

from __future__ import annotations

import asyncio

from arcbox_agent.errors import BadRequestError, ConflictError, RequestError
from arcbox_agent.wire import AttachOutput, Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.executions.execution import Execution
    from arcbox_agent.agent.executions.executions import Executions
    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.wire import AttachRequest

#: Bytes of one AttachOutput.
PIECE = 64 << 10


class _Output:
    """`taken`: its cursor, as the kernel has taken all that was sent."""

    __slots__ = ("over", "taken")

    def __init__(self) -> None:
        self.taken = 0
        self.over = False


class PlainAttached:
    """See the module.  ConflictError: another client gives the input."""

    __slots__ = ("_call", "_execution", "_executions", "_failure", "_reader", "_wakes", "outputs")

    def __init__(self, executions: Executions, execution: Execution, request: AttachRequest, call: Call) -> None:
        wanted = {"stdout": request.attach_stdout or execution.record.tty, "stderr": request.attach_stderr}
        if not any(wanted.values()) and not request.attach_stdin:
            wanted = {"stdout": True, "stderr": True}
        if request.attach_stdin and not execution.record.open_stdin:
            raise BadRequestError(f"execution {execution.id} was started without input")
        if request.attach_stdin and execution.input_owner is not None:
            raise ConflictError(f"the input of execution {execution.id} is another client's")
        self.outputs = {name: _Output() for name, _, _, _ in execution.outputs() if wanted[name]}
        self._executions = executions
        self._execution = execution
        self._call = call
        self._reader = executions.reader(execution)
        self._wakes = asyncio.Event()
        self._failure: Exception | None = None
        execution.attached[self] = self._wakes.set
        if request.attach_stdin:
            execution.input_owner = self

    async def run(self) -> Empty:
        """Until the execution has ended and all of it was sent."""
        execution = self._execution
        feeding = asyncio.get_running_loop().create_task(self._feed())
        try:
            self._executions.hold(execution)
            while True:
                self._wakes.clear()
                moved = False
                for name, output in self.outputs.items():
                    moved = await self._send_next(name, output) or moved
                if self._failure is not None:
                    raise self._failure
                if moved:
                    self._executions.hold(execution)
                    continue
                if not execution.running and all(output.over for output in self.outputs.values()):
                    return Empty()
                await self._wakes.wait()
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            execution.attached.pop(self, None)
            if execution.input_owner is self:
                execution.input_owner = None
            self._reader.close()
            self._executions.hold(execution)

    async def _send_next(self, name: str, output: _Output) -> bool:
        if output.over:
            return False
        gap, data, output.over = await self._reader.next(name, output.taken, PIECE)
        if data:
            await self._call.send(AttachOutput(stream=name, data=data))
        output.taken += gap + len(data)
        return bool(gap or data)

    async def _feed(self) -> None:
        """Hand on what the client sends; its end of sending ends the input."""
        execution, gives = self._execution, self._execution.input_owner is self
        try:
            while (message := await self._call.receive()) is not None:
                if message.resize:  # type: ignore[attr-defined]
                    self._executions.resize(execution, message.height, message.width)  # type: ignore[attr-defined]
                elif gives:
                    await self._executions.write_next(execution, message.data)  # type: ignore[attr-defined]
            if gives:
                await self._executions.write_next(execution, b"")
        except RequestError as error:
            self._failure = error
            self._wakes.set()

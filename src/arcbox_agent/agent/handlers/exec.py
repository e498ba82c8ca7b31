"""Exec: one reply with everything, or a stream while the command runs."""

from __future__ import annotations

from arcbox_agent.agent.serving.frame_heads import FrameHeads
from arcbox_agent.errors import BadRequestError
from arcbox_agent.wire import ExecOutput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.commands.commands import Command, Commands, Output
    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.processes.children import ExitStatus
    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.wire import ExecRequest

#: One read of what is collected.
CHUNK = 256 << 10

#: Where it is read to, for all commands: each copies it away before another has its turn.
_ROOM = memoryview(bytearray(CHUNK))

#: The most that one frame of a stream carries.
PIECE = 1 << 20


class Exec:
    """Commands in the guest and in containers."""

    def __init__(self, commands: Commands, settings: Settings) -> None:
        self._commands = commands
        self._settings = settings

    async def run(self, request: ExecRequest, call: Call) -> ExecOutput:
        detail = request.detail or request.stream
        stream, detach = request.stream, request.detach
        command = await self._commands.start(request, stderr=detail)
        del request  # what it brings for the command's input is the command's now
        if detach:
            self._commands.detach(command)
            return ExecOutput(stream="stdout", done=True, pid=command.process.pid if detail else 0)
        try:
            if stream:
                return await _stream(command, call)
            return await _collect(command, call, self._settings.exec_output_limit, detail)
        finally:
            self._commands.leave(command)


async def _stream(command: Command, call: Call) -> ExecOutput:
    """Each piece as it comes.  While the client does not read, nor do we: the command waits in its pipe."""
    heads = FrameHeads(call.trace_id)

    async def forward(output: Output) -> int | None:
        if command.terminal:
            size = output.read_into(_ROOM)
            if size:
                await call.send(ExecOutput(stream=output.name, data=bytes(_ROOM[:size])))
            return size
        size = output.waiting()
        if size:
            # From the pipe into the socket without a copy of ours: half the work of a large output.
            size = min(size, PIECE)
            await call.send_from_pipe(heads.head(output.name, size), output.fd, size)
        return size

    status = await command.read(forward)
    return _last(command, status, True, b"", b"")


async def _collect(command: Command, call: Call, limit: int, detail: bool) -> ExecOutput:
    collected: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
    room = _ROOM[: limit + 1]

    async def keep(output: Output) -> int | None:
        size = output.read_into(room)
        if size:
            collected[output.name] += room[:size]
            if sum(map(len, collected.values())) > limit:
                raise BadRequestError(
                    f"the command's output is larger than exec_output_limit = {limit} bytes: ask for a stream"
                )
            call.hold(size)
        return size

    status = await command.read(keep)
    return _last(command, status, detail, bytes(collected["stdout"]), bytes(collected["stderr"]))


def _last(command: Command, status: ExitStatus, detail: bool, stdout: bytes, stderr: bytes) -> ExecOutput:
    return ExecOutput(
        stream="stdout",
        data=stdout,
        exit_code=-1 if status.signal else status.code,
        done=True,
        stderr=stderr if detail else b"",
        signal=status.signal if detail else 0,
        timed_out=command.timed_out and detail,
    )

"""Exec: one reply with everything, or a stream while the command runs."""

from __future__ import annotations

from asyncio import shield

from arcbox_agent.agent.processes import environment
from arcbox_agent.errors import BadRequestError
from arcbox_agent.wire import ExecOutput, encode_exec_output_head

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.commands.command import Command
    from arcbox_agent.agent.commands.commands import Commands
    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.containers.runtimes.protocol import CommandHost
    from arcbox_agent.agent.containers.service import Containers
    from arcbox_agent.agent.processes.status import ExitStatus
    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.wire import ExecRequest

#: One read of what is collected.
CHUNK = 256 << 10

#: Where it is read to, for all commands: each copies it away before another has its turn.
_ROOM = memoryview(bytearray(CHUNK))


class Exec:
    """Commands in the guest and in containers."""

    def __init__(self, containers: Containers, guest: CommandHost, commands: Commands, settings: Settings) -> None:
        self._containers = containers
        self._guest = guest
        self._commands = commands
        self._settings = settings

    async def run(self, request: ExecRequest, call: Call) -> ExecOutput:
        detail = request.detail or request.stream
        stream, detach = request.stream, request.detach
        environment.check(request.cmd, request.env)
        host = self._guest
        if request.container_id:
            host = self._containers.host_of(self._containers.resolve(request.container_id))
        # After that: an unknown container is reported before a wrong directory.
        environment.check_working_dir(request.working_dir)
        started = self._commands.start(request, host, stderr=detail)
        del request  # what it brings for the command's input is the command's now
        try:
            command = await shield(started)
            if detach:
                return ExecOutput(stream="stdout", done=True, pid=command.process.pid if detail else 0)
            if stream:
                return await _stream(command, call)
            return await _collect(command, call, self._settings.exec_output_limit, detail)
        finally:
            self._commands.leave(started)


async def _stream(command: Command, call: Call) -> ExecOutput:
    """Send each piece as it comes.  Backpressure: while the client does not read, the command blocks in its pipe."""
    if command.terminal:
        while (output := await command.next(_ROOM)) is not None:
            await call.send(ExecOutput(stream=output.name, data=bytes(_ROOM[: output.size])))
    else:
        while (output := await command.next()) is not None:
            # From the pipe into the socket without a copy here: half the work of a large output.
            head = encode_exec_output_head(output.name, output.size, call.trace_id)
            await call.outbox.send_from_pipe(head, output.fd, output.size)
    return _last(command, await command.process.wait(), True, b"", b"")


async def _collect(command: Command, call: Call, limit: int, detail: bool) -> ExecOutput:
    collected: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
    room = _ROOM[: limit + 1]
    while (output := await command.next(room)) is not None:
        collected[output.name] += room[: output.size]
        if sum(map(len, collected.values())) > limit:
            raise BadRequestError(
                f"the command's output is larger than exec_output_limit = {limit} bytes: ask for a stream"
            )
        call.charge(output.size)
    status = await command.process.wait()
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
        output_cut=command.output_cut and detail,
    )

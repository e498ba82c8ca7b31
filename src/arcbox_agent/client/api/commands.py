"""Calls that run a command, in the guest itself or in a container."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arcbox_agent import wire
from arcbox_agent.client import calls
from arcbox_agent.client.caller import Caller
from arcbox_agent.client.calls import ExecResult
from arcbox_agent.client.keywords import expands
from arcbox_agent.errors import CommandFailedError, ConnectionLostError, OutputLimitError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Unpack

    from arcbox_agent.client.keywords import CommandOptions, ExecOptions
    from arcbox_agent.client.stream import ReplyStream
    from arcbox_agent.wire import ExecOutput


class CommandCalls(Caller):
    @expands(calls.exec_request)
    async def exec(
        self,
        cmd: Iterable[str],
        *,
        check: bool = False,
        output_limit: int | None = None,
        **options: Unpack[ExecOptions],
    ) -> ExecResult:
        """Run a command in the guest, or in `container`, and wait for its end.

        The exit code is part of the result; with `check`, any other than 0 raises
        CommandFailedError.  `timeout`: seconds after which the agent kills the command.
        A command that writes more than `output_limit` bytes is killed, and raises
        OutputLimitError.
        """
        command = calls.words("ExecRequest.cmd", cmd)
        limit = self._output_limit if output_limit is None else output_limit
        # Not lists of the pieces: an agent may send any number of them, each with a byte or none.
        output = {"stdout": bytearray(), "stderr": bytearray()}
        size = 0
        async with self.exec_stream(command, **options) as parts:
            last = None
            async for last in parts:
                size += len(last.data) + len(last.stderr)
                if size > limit:
                    raise OutputLimitError(command, limit)
                if last.stream in output:
                    output[last.stream] += last.data
        if last is None or not last.done:
            raise ConnectionLostError("the agent did not say how the command ended")
        result = ExecResult(
            exit_code=calls.exit_code(last),
            signal=last.signal,
            stdout=bytes(output["stdout"]),
            stderr=bytes(output["stderr"]) + last.stderr,
            timed_out=last.timed_out,
            output_cut=last.output_cut,
        )
        if check and result.exit_code != 0:
            raise CommandFailedError(command, result.exit_code, result.stdout, result.stderr)
        return result

    @expands(calls.exec_request)
    def exec_stream(self, cmd: Iterable[str], **options: Unpack[ExecOptions]) -> ReplyStream[ExecOutput]:
        """Run a command, and iterate over its output as it is written.

        The last item has `done` set, and says how the command ended; `exit_code(item)` is
        its exit code, 128 + signal if a signal ended it.  Leaving the iterator early kills
        the command.
        """
        request = calls.exec_request(cmd, **options)
        timeout = options.get("timeout")
        # A command may be silent for as long as it may run.
        silence = None if timeout is None else self._added_to(timeout)
        return self._stream(
            request, calls.Replies("exec", calls.read_exec_output), first_timeout=silence, next_timeout=silence
        )

    @expands(calls.detached_request)
    async def exec_detached(self, cmd: Iterable[str], **options: Unpack[CommandOptions]) -> int:
        """Start a command that goes on without this client, and return its pid in the guest."""
        return (await self.call(calls.detached_request(cmd, **options), wire.ExecOutput)).pid

"""Calls for commands that do not belong to their connection."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from arcbox_agent import wire
from arcbox_agent.client import calls
from arcbox_agent.client.api.containers import signal_text
from arcbox_agent.client.byte_reader import WINDOW, ByteReader
from arcbox_agent.client.byte_writer import ByteWriter
from arcbox_agent.client.caller import Caller
from arcbox_agent.client.duplex import HEARTBEAT
from arcbox_agent.client.keywords import expands
from arcbox_agent.client.persistence import persist
from arcbox_agent.client.process import Process
from arcbox_agent.errors import DecodeError, ReplyLimitError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Unpack

    from arcbox_agent.client.keywords import AttachOptions, StartOptions

#: Seconds for which a lost agent is looked for.
REATTACH = 60.0

#: The most bytes of a list of executions, and what each costs besides its own.
_LIST_LIMIT = 64 << 20
_ROW_COST = 512


class Opening:
    """A Process that is being opened: `async with` it, or await it."""

    def __init__(self, opening: Callable[[], Coroutine[Any, Any, Process]]) -> None:
        self._opening = opening
        self._process: Process | None = None

    def __await__(self) -> Generator[Any, None, Process]:
        return self._opening().__await__()

    async def __aenter__(self) -> Process:
        self._process = await self._opening()
        return self._process

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            await self._process.__aexit__(kind, error, trace)


class ExecutionCalls(Caller):
    @expands(calls.start_request)
    def popen(
        self,
        cmd: Iterable[str],
        *,
        stdout: bool = True,
        stderr: bool = True,
        window: int = WINDOW,
        heartbeat: float = HEARTBEAT,
        reattach: float = REATTACH,
        on_cancel: Literal["kill", "leave"] = "kill",
        remove: bool = False,
        **options: Unpack[StartOptions],
    ) -> Opening:
        """Start a command that outlives its connection, and the agent, and attach to it.

        `async with` the result, or await it, for a Process.  At the end of `async with` the command's end is
        waited for; when an exception or a cancellation ends it, `on_cancel` says whether the command is killed
        or left.  `remove`: then what the agent keeps of the command is removed.

        `id`: a name for it, `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}`.  If the same command has it already, that one is
        attached to; if another has, ConflictError.  `idempotency_key`: the same, by a key; without one each call
        makes its own.  `stdin`: this client gives the input; else the command has none.  `size`: rows and columns of
        the terminal, with `tty`.  `stdout`, `stderr`: which output is wanted; the agent keeps both.

        `spool_limit`: bytes of each output that the agent keeps.  `wait_when_full`: a command whose output is not
        read waits; otherwise it loses the oldest.  `keep`: seconds that it is kept after its end.  `timeout`: seconds
        after which the agent kills it.  0 of each: the agent's own.

        `window`: bytes of each output that may be under way.  `heartbeat`: seconds between signs of life.
        `reattach`: for so many seconds a lost agent is looked for, and the streams go on; 0: they end with
        ConnectionLostError.
        """
        request = calls.start_request(cmd, **options)
        request.idempotency_key = request.idempotency_key or secrets.token_hex(16)
        # All output of a terminal is its stdout.
        wanted = ["stdout"] * stdout + ["stderr"] * (stderr and not options.get("tty"))

        async def start() -> wire.Execution:
            return await self.call(request, wire.Execution, repeatable=True)

        async def opening() -> Process:
            return await self._attached(
                await persist(self, start, reattach),
                ByteWriter() if request.open_stdin else None,
                [ByteReader(name, window=window) for name in wanted],
                {"window": window, "heartbeat": heartbeat, "reattach": reattach},
                on_cancel,
                remove,
            )

        return Opening(opening)

    def attach(
        self,
        id: str,
        *,
        input: bool = False,
        cursors: Mapping[str, int] | None = None,
        newest: bool = False,
        window: int = WINDOW,
        heartbeat: float = HEARTBEAT,
        reattach: float = REATTACH,
        on_cancel: Literal["kill", "leave"] = "leave",
    ) -> Opening:
        """Attach to a command that runs, or has ended: `async with` the result, or await it, for a Process.

        `id`: its id, or a beginning of it that no other has.  `input`: this client gives the input; ConflictError
        if another does.  `cursors`: of each output that is wanted the cursor from where, as `Process.cursors` has them;
        None: all, from the first byte.  `newest`: only what comes from now on.  The others are those of `popen`.
        """

        async def opening() -> Process:
            info = await persist(self, lambda: self.execution(id), reattach)
            there = [output.stream for output in info.outputs if output.stream in ("stdout", "stderr")]
            names = there if cursors is None else list(cursors)
            first = {} if cursors is None else cursors
            return await self._attached(
                info,
                ByteWriter() if input else None,
                [ByteReader(name, cursor=None if newest else first.get(name, 0), window=window) for name in names],
                {"window": window, "heartbeat": heartbeat, "reattach": reattach},
                on_cancel,
                False,
            )

        return Opening(opening)

    async def _attached(
        self,
        info: wire.Execution,
        stdin: ByteWriter | None,
        outputs: list[ByteReader],
        options: AttachOptions,
        on_cancel: Literal["kill", "leave"],
        remove: bool,
    ) -> Process:
        process = Process(self, info, stdin=stdin, outputs=outputs, on_cancel=on_cancel, remove=remove, **options)
        try:
            await process.attached()
        except BaseException:
            await process.aclose()
            raise
        return process

    async def executions(
        self, *, container: str = "", all: bool = False, timeout: float | None = None
    ) -> list[wire.Execution]:
        """The commands that run, the oldest first; with `all` those that have ended and are kept, too.

        `container`: only those in it.  They come in pages, each within `timeout`.
        """
        listed: list[wire.Execution] = []
        size = 0
        after = ""
        while True:
            request = wire.ListExecutionsRequest(container_id=container, all=all, after=after)
            reply = await self.call(request, wire.ListExecutionsResponse, timeout=timeout, repeatable=True)
            listed += reply.executions
            size += sum(_ROW_COST + len(each.encode()) for each in reply.executions)
            if size > _LIST_LIMIT:
                raise ReplyLimitError("the list of executions", _LIST_LIMIT, "ask for those of one container")
            if not reply.next:
                return listed
            if not reply.executions or reply.next == after:
                raise DecodeError("ListExecutionsResponse.next", "there is a next page, and nothing in this one")
            after = reply.next

    async def execution(self, id: str, *, timeout: float | None = None) -> wire.Execution:
        """What the agent knows of a command: its state, output, input and end."""
        request = wire.InspectExecutionRequest(id=id)
        return await self.call(request, wire.Execution, timeout=timeout, repeatable=True)

    async def write_execution(
        self, id: str, data: bytes = b"", *, offset: int, close: bool = False, timeout: float | None = None
    ) -> wire.StreamAccepted:
        """Give a command input without attaching.  `offset`: of the first byte, as `input_offset` of its Execution.

        What was accepted before is passed over, so a repeated call does no harm.  `close`: the input ends behind it.
        """
        request = wire.WriteExecutionRequest(id=id, offset=offset, data=data, close=close)
        return await self.call(request, wire.StreamAccepted, timeout=timeout, repeatable=True)

    async def resize_execution(self, id: str, rows: int, columns: int, *, timeout: float | None = None) -> None:
        """Tell a command's terminal its size."""
        request = wire.ResizeExecutionRequest(id=id, rows=rows, columns=columns)
        await self.call(request, wire.Empty, timeout=timeout, repeatable=True)

    async def signal_execution(
        self, id: str, *, signal: str | int = "TERM", all: bool = False, timeout: float | None = None
    ) -> None:
        """Send a signal to a command; with `all` to all that it started."""
        request = wire.SignalExecutionRequest(id=id, signal=signal_text(signal), all=all)
        await self.call(request, wire.Empty, timeout=timeout)

    async def wait_execution(self, id: str, *, timeout: float | None = None) -> wire.Execution:
        """Wait for a command's end.  After `timeout` seconds the result is one that still runs."""
        milliseconds = 0 if timeout is None else max(1, calls.whole("WaitExecutionRequest.timeout_ms", timeout * 1000))
        request = wire.WaitExecutionRequest(id=id, timeout_ms=milliseconds)
        limit = None if timeout is None else self._added_to(timeout)
        return await self._call(request, wire.Execution, seconds=limit, long=True, repeatable=True)

    async def remove_execution(self, id: str, *, force: bool = False, timeout: float | None = None) -> None:
        """Remove what the agent keeps of a command; with `force` one that runs is killed first."""
        request = wire.RemoveExecutionRequest(id=id, force=force)
        await self.call(request, wire.Empty, timeout=timeout, long=force)

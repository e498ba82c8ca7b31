"""A command of its own in the guest, as a client holds it: `client.popen`, `client.attach`.

    async with client.popen(["sort"], stdin=True) as process:
        process.stdin.write(b"b\\na\\n")
        process.stdin.close()
        print(await process.stdout.read())
        print((await process.wait()).exit_code)

    attach -> messages -> stdout, stderr, stdin, the end
      ^          |
      +-- lost --+      from the cursors that were reached

The command does not belong to its connection.  When that is lost, a new one goes on where it ended:
each byte of output is given once, and each byte of input is accepted once.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Literal

from arcbox_agent import wire
from arcbox_agent.client import calls
from arcbox_agent.client.api.containers import signal_text
from arcbox_agent.client.persistence import is_passing, persist
from arcbox_agent.errors import ArcboxError, CallTimeoutError, ConflictError, ConnectionLostError, FrameError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

    from arcbox_agent.client.byte_reader import ByteReader
    from arcbox_agent.client.byte_writer import ByteWriter
    from arcbox_agent.client.caller import Caller
    from arcbox_agent.client.duplex import DuplexCall

#: Seconds of one WaitExecution: an agent that died without a word is noticed within twice the time.
_WAIT = 10.0

#: Seconds for what is done on the way out: to detach, to kill, to remove.
_PARTING = 5.0


class Process:
    """A command that a client is attached to.

    `id`: its name at the agent.  `stdin`: a ByteWriter; None: this client does not give the input.  `stdout`,
    `stderr`: ByteReaders; None: not wanted, or a terminal, all of whose output is `stdout`.
    `info`: the agent's Execution as of the last message.

    Somebody has to read the outputs: what is not read fills the agent's spool, and then the command waits,
    or with `wait_when_full=False` loses the oldest.
    """

    def __init__(
        self,
        caller: Caller,
        info: wire.Execution,
        *,
        stdin: ByteWriter | None,
        outputs: Sequence[ByteReader],
        window: int,
        heartbeat: float,
        reattach: float,
        on_cancel: Literal["kill", "leave"],
        remove: bool,
    ) -> None:
        self.id = info.id
        self.info = info
        self.stdin = stdin
        self._outputs = {reader.stream: reader for reader in outputs}
        self.stdout = self._outputs.get("stdout")
        self.stderr = self._outputs.get("stderr")
        self._caller = caller
        self._window = window
        self._heartbeat = heartbeat
        self._reattach = reattach
        self._on_cancel = on_cancel
        self._remove = remove
        self._size = (0, 0)
        self._call: DuplexCall | None = None
        self._over = False
        self._left = False
        self._failure: Exception | None = None
        self._changed: set[asyncio.Future[None]] = set()
        self._attached = False
        for reader in outputs:
            reader.on_full = self._wake
        self._task = asyncio.get_running_loop().create_task(self._run())

    # ------------------------------------------------------------------ the user

    @property
    def pid(self) -> int:
        """Its process id in the guest."""
        return self.info.pid

    @property
    def exit_code(self) -> int | None:
        """128 + signal if a signal ended it; -1: nobody saw its end; None: it has not ended, as far as is known."""
        return calls.exit_code(self.info) if self.info.state == "ended" else None

    @property
    def reattaching(self) -> bool:
        """Whether the agent is lost, and is looked for."""
        return self._attached and not self._task.done() and (self._call is None or self._call.over)

    @property
    def cursors(self) -> dict[str, int]:
        """Of each output the cursor behind what was read: `attach` goes on there."""
        return {name: reader.taken for name, reader in self._outputs.items()}

    async def wait(self, timeout: float | None = None) -> wire.Execution:
        """How the command ended, when it has.

        Raises CallTimeoutError after `timeout` seconds; the command goes on.  It does not wait for output
        that nobody reads; but the command does, once its spool is full.
        """
        try:
            async with asyncio.timeout(timeout):
                while not self._over:
                    if self._failure is not None:
                        raise self._failure
                    if any(reader.full for reader in self._outputs.values()):
                        # The agent tells the end behind the last byte, and nobody takes those.
                        return await self._wait_aside()
                    await self._change()
        except TimeoutError as error:
            if isinstance(error, CallTimeoutError):
                raise
            raise CallTimeoutError("WaitExecution", timeout or 0.0) from None
        return self.info

    async def communicate(self, data: bytes | None = None) -> tuple[bytes, bytes]:
        """Send `data` and the end of the input, read both outputs to their end, and wait."""

        async def give() -> None:
            if self.stdin is not None:
                try:
                    if data:
                        self.stdin.write(data)
                        await self.stdin.flush()
                except BrokenPipeError:
                    pass
                self.stdin.close()

        async def take(reader: ByteReader | None) -> bytes:
            return b"" if reader is None else await reader.read()

        async with asyncio.TaskGroup() as group:
            group.create_task(give())
            out = group.create_task(take(self.stdout))
            err = group.create_task(take(self.stderr))
        await self.wait()
        return out.result(), err.result()

    async def send_signal(self, signal: str | int, *, all: bool = False) -> None:
        """Send a signal to the command; with `all` to all that it started.  ConflictError: it has ended."""
        request = wire.SignalExecutionRequest(id=self.id, signal=signal_text(signal), all=all)
        await self._caller.call(request, wire.Empty)

    async def kill(self) -> None:
        """End the command and all that it started, at once."""
        if self.info.state != "ended":
            try:
                await self.send_signal("KILL", all=True)
            except ConflictError:
                pass  # It has ended meanwhile.

    def resize(self, rows: int, columns: int) -> None:
        """Tell the command's terminal its size."""
        self._size = (rows, columns)
        if self._call is not None and self._attached:
            self._call.send(wire.StreamControl(rows=rows, columns=columns))

    async def detach(self) -> dict[str, int]:
        """Leave the command as it is.  Returns `cursors`, where `attach` can go on."""
        self._left = True
        call = self._call
        if not self._over and call is not None and not call.over:
            call.send(wire.StreamControl(detach=True))
            try:
                async with asyncio.timeout(_PARTING):
                    await asyncio.wait([self._task])
            except TimeoutError:
                pass
        await self.aclose()
        return self.cursors

    async def aclose(self) -> None:
        """Close the connection.  The command goes on."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def remove(self, *, force: bool = False) -> None:
        """Remove what the agent keeps of it.  ConflictError: it runs, and `force` is not given."""
        await self._caller.call(wire.RemoveExecutionRequest(id=self.id, force=force), wire.Empty, long=force)

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the end, without its remaining output; on an exception end the command, or leave it.

        After `detach` there is nothing to wait for.
        """
        if self._left:
            await self.aclose()
            return
        try:
            if error is None:
                if self.stdin is not None:
                    self.stdin.close()
                for reader in self._outputs.values():
                    reader.discard()
                await self.wait()
        finally:
            try:
                if error is not None and self._on_cancel == "kill":
                    await self._part(self.kill)
                if self._remove:
                    await self._part(self._removed)
            finally:
                await self.aclose()

    async def _removed(self) -> None:
        await self.remove(force=self._on_cancel == "kill")

    @staticmethod
    async def _part(action: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(_PARTING):
                await action()
        except (ArcboxError, TimeoutError):
            pass  # Of what had happened before the caller knows; this would hide it.

    # ---------------------------------------------------------------- the stream

    async def attached(self) -> None:
        """Until the agent has answered the first attach.  Raises what it refuses with."""
        while not self._attached and self._failure is None and not self._over:
            await self._change()
        if self._failure is not None:
            raise self._failure

    async def _run(self) -> None:
        try:
            while True:
                self._call = call = await persist(self._caller, self._open, self._reattach, also=self._input_is_held)
                try:
                    await self._follow(call)
                    return
                except ArcboxError as error:
                    if self._reattach <= 0 or self._caller.closed or not is_passing(error):
                        raise
                finally:
                    call.leave()
                    if self.stdin is not None:
                        self.stdin.detached()
        except asyncio.CancelledError:
            self._fail(ConnectionLostError("the process was left"))
        except Exception as error:
            self._fail(error)

    def _input_is_held(self, error: ArcboxError) -> bool:
        # The agent may not have noticed yet that this client's former connection is gone.
        return self._attached and isinstance(error, ConflictError)

    async def _open(self) -> DuplexCall:
        wanted = [
            wire.StreamCursor(stream=reader.stream, cursor=reader.cursor or 0, newest=reader.cursor is None)
            for reader in self._outputs.values()
            if not reader.over
        ]
        request = wire.AttachExecutionRequest(
            id=self.id, outputs=wanted, input=self.stdin is not None, window=self._window
        )
        call = await self._caller.duplex(request, heartbeat=self._heartbeat)
        try:
            first = await call.receive()
            if not isinstance(first, wire.Execution):
                raise FrameError(f"{type(first).__name__} at the beginning of a stream")
            self.info = first
            if self.stdin is not None:
                accepted = await call.receive()
                if not isinstance(accepted, wire.StreamAccepted):
                    raise FrameError(f"{type(accepted).__name__} where StreamAccepted was expected")
                self.stdin.attached(accepted, call.send)
        except BaseException:
            call.leave()
            raise
        ends = {output.stream: output.end for output in first.outputs}
        for reader in self._outputs.values():
            if not reader.over:
                reader.attached(ends.get(reader.stream, 0), call.send)
        if self._size != (0, 0):
            call.send(wire.StreamControl(rows=self._size[0], columns=self._size[1]))
        self._attached = True
        self._wake()
        return call

    async def _follow(self, call: DuplexCall) -> None:
        """Take messages until the stream ends."""
        outputs = self._outputs
        while True:
            message = await call.receive()
            if isinstance(message, wire.StreamAccepted):
                if self.stdin is None:
                    raise FrameError("input was accepted that this client does not give")
                self.stdin.accepted(message)
            elif isinstance(message, wire.Execution):
                if message.state != "ended":
                    raise FrameError(f"an Execution that is {message.state} at the end of a stream")
                call.finish()
                self._end(message)
                return
            elif isinstance(message, wire.Empty):
                call.finish()
                raise ConnectionLostError("this client is detached")
            elif isinstance(message, (wire.StreamOutput, wire.StreamGap, wire.StreamEnd)):
                reader = outputs.get(message.stream)
                if reader is None:
                    raise FrameError(f"output of {message.stream!r}, which was not asked for")
                if isinstance(message, wire.StreamOutput):
                    reader.arrived(message)
                elif isinstance(message, wire.StreamGap):
                    reader.lost(message)
                else:
                    reader.ended(message)
            else:
                raise FrameError(f"{type(message).__name__} in the stream of a command")

    async def _wait_aside(self) -> wire.Execution:
        request = wire.WaitExecutionRequest(id=self.id, timeout_ms=math.ceil(_WAIT * 1000))

        async def ask() -> wire.Execution:
            return await self._caller.call(request, wire.Execution, timeout=2 * _WAIT, long=True, repeatable=True)

        while not self._over:
            info = await persist(self._caller, ask, self._reattach)
            if info.state == "ended":
                self.info = info
                break
        return self.info

    def _end(self, info: wire.Execution) -> None:
        self.info = info
        self._over = True
        for reader in self._outputs.values():
            reader.ended()
        if self.stdin is not None:
            self.stdin.failed(BrokenPipeError("the command has ended"))
        self._wake()

    def _fail(self, error: Exception) -> None:
        if self._over:
            return
        self._failure = error
        for reader in self._outputs.values():
            reader.failed(error)
        if self.stdin is not None:
            self.stdin.failed(error)
        self._wake()

    async def _change(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._changed.add(waiter)
        try:
            await waiter
        finally:
            self._changed.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._changed:
            if not waiter.done():
                waiter.set_result(None)

"""A command in the guest with our standard streams, or our terminal, until it ends or is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import TYPE_CHECKING

from arcbox_agent.cli.failures import OWN_FAILURE
from arcbox_agent.cli.input_stream import Detached, feed
from arcbox_agent.cli.output import TIMED_OUT, payload, stream_fd, warn
from arcbox_agent.cli.output_stream import OutputStream
from arcbox_agent.cli.printable import printable
from arcbox_agent.cli.terminal import RawTerminal, Resizes, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from arcbox_agent.client import ByteReader, Client, Gap, Process
    from arcbox_agent.client.keywords import StartOptions
    from arcbox_agent.wire import Execution


class Showing:
    """Passes outputs on to ours of the same name, as they are or as objects."""

    def __init__(self, output: OutputStream, *, as_json: bool) -> None:
        self._output = output
        self._json = as_json
        #: Places where output is lost.
        self.gaps = 0

    async def show(self, reader: ByteReader, until: int | None = None) -> None:
        """Show what comes, to the end or up to a cursor."""
        if until is not None and reader.taken >= until:
            return
        async for item in reader.items():
            if not isinstance(item, bytes):
                await self._show_gap(reader.stream, item)
            elif self._json:
                await self._output.write_json({"stream": reader.stream, **payload(item)})
            else:
                await self._output.write(stream_fd(reader.stream), item)
            if until is not None and reader.taken >= until:
                return

    async def _show_gap(self, stream: str, gap: Gap) -> None:
        self.gaps += 1
        if self._json:
            await self._output.write_json({"stream": stream, "gap": {"cursor": gap.cursor, "bytes": gap.bytes}})
        else:
            warn(f"output is lost here: {gap.bytes} bytes of {stream} are not kept any more")


class Session:
    """`process` with our standard streams.

    `keys`: what leaves the command when it is typed at a terminal.  `as_json`: output as objects.
    """

    def __init__(self, process: Process, *, keys: bytes = b"", as_json: bool = False) -> None:
        self._process = process
        self._keys = keys
        self._json = as_json
        #: Whether the command was left, and goes on.
        self.detached = False
        #: Places where output is lost.
        self.gaps = 0

    async def stay(self) -> int:
        """Until the command ends, or is left; the exit code."""
        process = self._process
        tty = process.info.tty
        with contextlib.ExitStack() as stack:
            if tty and process.stdin is not None:
                stack.enter_context(RawTerminal())
            if tty:
                stack.enter_context(Resizes(process.resize))
            # git closes its end when it has the answer, and then wants to know how the command ended.
            async with OutputStream(watch=process.stdin is None) as output:
                try:
                    await self._pass_on(output)
                except Detached:
                    self.detached = True
                    await process.detach()
        if self.detached:
            if not self._json:
                print(f"arcboxctl: left {printable(process.id)}, which goes on", file=sys.stderr)
            return 0
        return await self._report(process.info)

    async def _pass_on(self, output: OutputStream) -> None:
        process = self._process
        showing = Showing(output, as_json=self._json)
        feeding = None
        if process.stdin is not None:
            feeding = asyncio.ensure_future(feed(process.stdin, self._keys if process.info.tty else b""))
        shown = [
            asyncio.ensure_future(showing.show(reader))
            for reader in (process.stdout, process.stderr)
            if reader is not None
        ]
        # Together: `gather` would go on with the others when one fails.
        ending = asyncio.ensure_future(self._until_the_end(shown))
        tasks = [task for task in (feeding, *shown, ending) if task is not None]
        try:
            pending: set[asyncio.Future[None]] = set(tasks)
            while not ending.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.gaps = showing.gaps

    async def _until_the_end(self, shown: Sequence[asyncio.Future[None]]) -> None:
        if shown:
            await asyncio.wait(shown)
        await self._process.wait()

    async def _report(self, info: Execution) -> int:
        from arcbox_agent.client import exit_code

        code = exit_code(info)
        if self._json:
            async with OutputStream() as output:
                await output.write_json(
                    {
                        "exit_code": code,
                        "signal": info.signal,
                        "timed_out": info.cause == "timeout",
                        "output_cut": info.output_cut,
                    }
                )
        else:
            _explain(info)
        if info.cause == "timeout":
            return TIMED_OUT
        return OWN_FAILURE if info.cause == "unknown" or self.gaps else code


def _explain(info: Execution) -> None:
    """What an exit code alone does not tell."""
    if info.output_cut:
        warn("the output may be cut off: the command has ended, and something it started still holds its output open")
    if info.cause == "timeout":
        print("arcboxctl: the command was killed, as its time was over", file=sys.stderr)
    elif info.cause == "unknown":
        print("arcboxctl: the command has ended, and nobody saw how", file=sys.stderr)
    elif info.cause == "oom":
        print("arcboxctl: the command was killed, as it had no memory left", file=sys.stderr)


async def attended(
    client: Client, cmd: Iterable[str], options: StartOptions, *, keys: bytes = b"", as_json: bool = False
) -> int:
    """Start a command, and stay until it ends or is left; the exit code.  Leaving it early, by a signal, ends it."""
    if options.get("tty"):
        env = {**(options.get("env") or {})}
        if "TERM" in os.environ:
            env.setdefault("TERM", os.environ["TERM"])
        options = {**options, "size": size(), "env": env}
    async with client.popen(cmd, remove=True, **options) as process:
        return await Session(process, keys=keys, as_json=as_json).stay()

"""A command of its own in the guest, for code without an event loop: `arcbox_agent.sync`'s popen and attach."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from arcbox_agent.client.byte_reader import ByteReader
from arcbox_agent.client.byte_writer import ByteWriter
from arcbox_agent.client.process import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from types import TracebackType

    from arcbox_agent.client.byte_reader import Gap
    from arcbox_agent.client.loop_thread import LoopThread
    from arcbox_agent.wire import Execution

P = ParamSpec("P")
T = TypeVar("T")


class _OnLoop:
    """Something that lives on the loop's thread.  `owner` is kept: a client that nothing refers to closes itself."""

    def __init__(self, owner: object, thread: LoopThread, inner: Any) -> None:
        self._owner = owner
        self._thread = thread
        self._inner = inner


def _waits(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    @functools.wraps(method)
    def call(self: _OnLoop, /, *arguments: P.args, **options: P.kwargs) -> T:
        return self._thread.run(method(self._inner, *arguments, **options))

    return call


def _at_once(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    @functools.wraps(method)
    def call(self: _OnLoop, /, *arguments: P.args, **options: P.kwargs) -> T:
        async def on_loop() -> T:
            return method(self._inner, *arguments, **options)

        return self._thread.run(on_loop())

    return call


class BlockingReader(_OnLoop):
    """An output: as ByteReader, each method waits for its result."""

    read = _waits(ByteReader.read)
    readline = _waits(ByteReader.readline)
    readuntil = _waits(ByteReader.readuntil)
    readexactly = _waits(ByteReader.readexactly)
    discard = _at_once(ByteReader.discard)
    at_eof = _at_once(ByteReader.at_eof)

    def __iter__(self) -> Iterator[bytes]:
        """The next bytes, however many there are.  Raises GapError where bytes are missing."""
        while data := self.read(1 << 18):
            yield data

    def items(self) -> Iterator[bytes | Gap]:
        """The output to its end; a gap is an item."""
        items = self._inner.items()
        while (item := self._thread.run(anext(items, None))) is not None:
            yield item


class BlockingWriter(_OnLoop):
    """The input: as ByteWriter, but `write` waits until what is kept is little enough."""

    drain = _waits(ByteWriter.drain)
    flush = _waits(ByteWriter.flush)
    write_eof = _at_once(ByteWriter.write_eof)
    close = _at_once(ByteWriter.close)
    is_closing = _at_once(ByteWriter.is_closing)
    wait_closed = _waits(ByteWriter.wait_closed)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes.  Raises BrokenPipeError if nobody reads the input any more."""

        async def write() -> None:
            self._inner.write(data)
            await self._inner.drain()

        self._thread.run(write())


class BlockingProcess(_OnLoop):
    """A command that a client is attached to: as Process, each method waits for its result."""

    _inner: Process

    def __init__(self, owner: object, thread: LoopThread, process: Process) -> None:
        super().__init__(owner, thread, process)
        self.id = process.id
        self.stdin = None if process.stdin is None else BlockingWriter(owner, thread, process.stdin)
        self.stdout = None if process.stdout is None else BlockingReader(owner, thread, process.stdout)
        self.stderr = None if process.stderr is None else BlockingReader(owner, thread, process.stderr)

    @property
    def info(self) -> Execution:
        return self._inner.info

    @property
    def pid(self) -> int:
        return self._inner.pid

    @property
    def exit_code(self) -> int | None:
        return self._inner.exit_code

    @property
    def reattaching(self) -> bool:
        return self._inner.reattaching

    @property
    def cursors(self) -> dict[str, int]:
        return self._inner.cursors

    wait = _waits(Process.wait)
    communicate = _waits(Process.communicate)
    send_signal = _waits(Process.send_signal)
    kill = _waits(Process.kill)
    resize = _at_once(Process.resize)
    detach = _waits(Process.detach)
    close = _waits(Process.aclose)
    remove = _waits(Process.remove)

    def __enter__(self) -> BlockingProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.run(self._inner.__aexit__(kind, error, trace))

"""The client for code without an event loop: `arcbox_agent.sync`.

    with connect("vsock://3:1024") as client:
        print(client.exec(["uname", "-r"]).stdout)

A client has an event loop in a thread of its own, which runs the async client, so there is
one pool and one protocol, not two.  Any number of threads may use a client.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from arcbox_agent.client import opening
from arcbox_agent.client.as_socket import as_socket
from arcbox_agent.client.blocking_process import BlockingProcess
from arcbox_agent.client.client import Client as AsyncClient
from arcbox_agent.client.keywords import like
from arcbox_agent.client.loop_thread import LoopThread
from arcbox_agent.errors import ConnectionLostError

if TYPE_CHECKING:
    import socket
    from types import TracebackType

    from arcbox_agent.client.api.executions import Opening
    from arcbox_agent.client.endpoint import Endpoint
    from arcbox_agent.client.forwarding import Forwarding
    from arcbox_agent.client.process import Process
    from arcbox_agent.client.stream import ReplyStream
    from arcbox_agent.client.tunnel import Tunnel

P = ParamSpec("P")
T = TypeVar("T")


@like(opening.connect)
def connect(*arguments: Any, **options: Any) -> Client:
    """As `arcbox_agent.connect`; the client is closed by `with`, or by `close()`."""
    connecting = opening.connect(*arguments, **options)

    async def connected() -> AsyncClient:
        return await connecting

    thread = LoopThread()
    try:
        return Client(thread, thread.run(connected()))
    except BaseException:
        thread.stop()
        raise


class BlockingStream(Generic[T]):
    """A call with many replies, as an iterator.

    To leave it early, use `with`, call `close()`, or drop it.  Another thread than the one
    that reads may close it; the reader's `next` then ends.
    """

    def __init__(self, client: Client, thread: LoopThread, stream: ReplyStream[T]) -> None:
        self._client = client  # A client that nothing refers to closes itself.
        self._thread = thread
        self._stream = stream
        self._ready: list[T] = []
        self._closed = False

    def __iter__(self) -> BlockingStream[T]:
        return self

    def __next__(self) -> T:
        # Another thread may close the stream at any time, so `_ready` is read only once.
        ready = self._ready
        if self._closed:
            raise StopIteration
        if not ready:
            # In batches, because a switch of threads costs more than an item.
            try:
                ready = self._thread.run(self._stream.batch())
            except ConnectionLostError:
                if self._closed:
                    raise StopIteration from None
                raise
            if not ready:
                raise StopIteration
            ready.reverse()
            self._ready = ready
        return ready.pop()

    def close(self) -> None:
        """Leave the stream: the agent ends what it does for this call."""
        self._closed = True
        self._ready = []
        try:
            self._thread.run(self._stream.aclose())
        except ConnectionLostError:
            pass  # The client was closed, which closed this stream too.

    def __enter__(self) -> BlockingStream[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BlockingForward:
    """A forward that runs until `close()`, or the end of its `with`.  `address`: where it listens."""

    def __init__(self, client: Client, thread: LoopThread, forwarding: Forwarding) -> None:
        self._client = client
        self._thread = thread
        self._forwarding = forwarding
        thread.run(forwarding.open())

    @property
    def address(self) -> Endpoint:
        return self._forwarding.address

    @property
    def connections(self) -> int:
        """Connections that are forwarded now."""
        return self._forwarding.connections

    def wait(self) -> None:
        """Until another thread closes it.  Raises what ended the listener."""
        self._thread.run(self._forwarding.wait())

    def close(self) -> None:
        """Close the listener, and every connection that came by it."""
        try:
            self._thread.run(self._forwarding.aclose())
        except ConnectionLostError:
            pass  # The client was closed, and its connections with it.

    def __enter__(self) -> BlockingForward:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _call(method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Client, P], T]:
    """A method of the async client that waits for its result."""

    @functools.wraps(method)
    def call(self: Client, /, *arguments: P.args, **options: P.kwargs) -> T:
        return self._run(method(self._client, *arguments, **options))

    return call


def _stream(
    method: Callable[Concatenate[AsyncClient, P], ReplyStream[T]],
) -> Callable[Concatenate[Client, P], BlockingStream[T]]:
    """A method of the async client whose result is an iterator."""

    @functools.wraps(method)
    def stream(self: Client, /, *arguments: P.args, **options: P.kwargs) -> BlockingStream[T]:
        return BlockingStream(self, self._thread, method(self._client, *arguments, **options))

    signature = inspect.signature(method)
    result = signature.return_annotation.replace("ReplyStream", "BlockingStream")
    stream.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]
    return stream


def _process(
    method: Callable[Concatenate[AsyncClient, P], Opening],
) -> Callable[Concatenate[Client, P], BlockingProcess]:
    """A method of the async client that opens a Process."""

    @functools.wraps(method)
    def opened(self: Client, /, *arguments: P.args, **options: P.kwargs) -> BlockingProcess:
        opening = method(self._client, *arguments, **options)

        async def wait() -> Process:
            return await opening

        return BlockingProcess(self, self._thread, self._run(wait()))

    signature = inspect.signature(method)
    opened.__signature__ = signature.replace(return_annotation="BlockingProcess")  # type: ignore[attr-defined]
    return opened


def _value(method: Callable[Concatenate[AsyncClient, P], T]) -> Callable[Concatenate[Client, P], T]:
    """A method of the async client that does not wait."""

    @functools.wraps(method)
    def value(self: Client, /, *arguments: P.args, **options: P.kwargs) -> T:
        return method(self._client, *arguments, **options)

    return value


def _connection(
    method: Callable[Concatenate[AsyncClient, P], object], opening: Callable[..., Coroutine[Any, Any, Tunnel]]
) -> Callable[Concatenate[Client, P], socket.socket]:
    """A method of the async client that connects; here its result is a socket of the operating system."""

    @functools.wraps(method)
    def connection(self: Client, /, *arguments: P.args, **options: P.kwargs) -> socket.socket:
        return self._run(as_socket(opening(self._client, *arguments, **options)))

    signature = inspect.signature(method)
    connection.__signature__ = signature.replace(return_annotation="socket.socket")  # type: ignore[attr-defined]
    return connection


def _forwarding(
    method: Callable[Concatenate[AsyncClient, P], Forwarding],
) -> Callable[Concatenate[Client, P], BlockingForward]:
    """A method of the async client whose result forwards connections until it is closed."""

    @functools.wraps(method)
    def forward(self: Client, /, *arguments: P.args, **options: P.kwargs) -> BlockingForward:
        return BlockingForward(self, self._thread, method(self._client, *arguments, **options))

    signature = inspect.signature(method)
    forward.__signature__ = signature.replace(return_annotation="BlockingForward")  # type: ignore[attr-defined]
    return forward


class Client:
    """An agent, as `arcbox_agent.sync.connect` gives it; its methods are those of the async client."""

    def __init__(self, thread: LoopThread, client: AsyncClient) -> None:
        self._thread = thread
        self._client = client
        self._run = thread.run
        # It also runs at the end of the interpreter, while its threads still run.
        self._finalizer = weakref.finalize(self, thread.stop, client.aclose)

    def close(self) -> None:
        """Close all connections, and end the thread.  Calls that are still running get ConnectionLostError."""
        self._finalizer()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    ping = _call(AsyncClient.ping)
    sync_time = _call(AsyncClient.sync_time)
    system_info = _call(AsyncClient.system_info)
    agent_info = _call(AsyncClient.agent_info)
    ensure_runtime = _call(AsyncClient.ensure_runtime)
    runtime_status = _call(AsyncClient.runtime_status)
    shutdown = _call(AsyncClient.shutdown)

    create_container = _call(AsyncClient.create_container)
    start_container = _call(AsyncClient.start_container)
    stop_container = _call(AsyncClient.stop_container)
    kill_container = _call(AsyncClient.kill_container)
    wait_container = _call(AsyncClient.wait_container)
    remove_container = _call(AsyncClient.remove_container)
    list_containers = _call(AsyncClient.list_containers)
    container_top = _call(AsyncClient.container_top)
    container_stats = _call(AsyncClient.container_stats)

    exec = _call(AsyncClient.exec)
    exec_stream = _stream(AsyncClient.exec_stream)
    exec_detached = _call(AsyncClient.exec_detached)

    popen = _process(AsyncClient.popen)
    attach = _process(AsyncClient.attach)
    executions = _call(AsyncClient.executions)
    execution = _call(AsyncClient.execution)
    write_execution = _call(AsyncClient.write_execution)
    resize_execution = _call(AsyncClient.resize_execution)
    signal_execution = _call(AsyncClient.signal_execution)
    wait_execution = _call(AsyncClient.wait_execution)
    remove_execution = _call(AsyncClient.remove_execution)

    logs = _stream(AsyncClient.logs)

    wait_for_port = _call(AsyncClient.wait_for_port)
    wait_for_socket = _call(AsyncClient.wait_for_socket)
    wait_for_file = _call(AsyncClient.wait_for_file)
    wait_for_log = _call(AsyncClient.wait_for_log)
    wait_for_execution = _call(AsyncClient.wait_for_execution)
    wait_for_process = _call(AsyncClient.wait_for_process)

    open_connection = _connection(AsyncClient.open_connection, AsyncClient._connect)
    forward = _forwarding(AsyncClient.forward)
    forward_back = _forwarding(AsyncClient.forward_back)

    call = _call(AsyncClient.call)
    knows = _value(AsyncClient.knows)
    knows_field = _value(AsyncClient.knows_field)

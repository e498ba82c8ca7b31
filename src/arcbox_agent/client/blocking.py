"""The client for code without an event loop: `arcbox_agent.sync`.

    with connect("vsock://3:1024") as client:
        print(client.exec(["uname", "-r"]).stdout)

A client has an event loop in a thread of its own, which runs the async client;
so there is one pool and one protocol, not two.  Any number of threads may use it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from arcbox_agent import client as async_client
from arcbox_agent import wire
from arcbox_agent.client.calls import ExecResult, Time
from arcbox_agent.client.client import DEFAULT_OUTPUT_LIMIT, DEFAULT_TIMEOUT
from arcbox_agent.client.opening import new_trace_id
from arcbox_agent.client.stream import ReplyStream
from arcbox_agent.errors import ConnectionLostError
from arcbox_agent.wire import MAX_FRAME_SIZE

if TYPE_CHECKING:
    from types import TracebackType

    from arcbox_agent.wire import (
        AgentInfo,
        ContainerInfo,
        CreateContainerResponse,
        ExecOutput,
        LogEntry,
        Mount,
        PingResponse,
        RuntimeEnsureResponse,
        RuntimeStatusResponse,
        ShutdownResponse,
        SystemInfo,
        WaitContainerResponse,
    )

M = TypeVar("M", bound=wire.Message)
T = TypeVar("T")


def connect(
    address: str,
    *,
    timeout: float | None = DEFAULT_TIMEOUT,
    wait: float = 0.0,
    frame_version: Literal[1, 2] | None = None,
    trace_id: str | Callable[[], str] = new_trace_id,
    max_connections: int = 8,
    max_streams: int = 64,
    output_limit: int = DEFAULT_OUTPUT_LIMIT,
    max_frame_size: int = MAX_FRAME_SIZE,
) -> Client:
    """As `arcbox_agent.connect`; the client is closed by `with`, or by `close()`."""
    connecting = async_client.connect(
        address,
        timeout=timeout,
        wait=wait,
        frame_version=frame_version,
        trace_id=trace_id,
        max_connections=max_connections,
        max_streams=max_streams,
        output_limit=output_limit,
        max_frame_size=max_frame_size,
    )

    async def connected() -> async_client.Client:
        return await connecting

    thread = _LoopThread()
    try:
        return Client(thread, thread.run(connected()))
    except BaseException:
        thread.stop()
        raise


class _LoopThread:
    """A thread that runs an event loop until `stop`."""

    def __init__(self) -> None:
        # A fork has no threads but the one that forked: nothing would ever run on its loop.
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._stopped = False
        self._last: asyncio.Task[None] | None = None
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        # A daemon, so that a client somebody forgot to close does not keep the
        # interpreter from its end; the client's finaliser stops it there.
        self._thread = threading.Thread(target=self._serve, args=(started,), name="arcbox-agent-client", daemon=True)
        self._thread.start()
        started.wait()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of `coroutine`, run on the loop.

        Ctrl-C, and any other exception raised in this thread meanwhile, cancels it.
        """
        if self._process != os.getpid():
            coroutine.close()
            raise ConnectionLostError("the client belongs to the process that this one was forked from: connect anew")
        with self._lock:
            if self._stopped:
                coroutine.close()
                raise ConnectionLostError("the client was closed")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            # Nobody but `stop` cancels what runs on the loop.
            raise ConnectionLostError("the client was closed") from None
        except BaseException:
            future.cancel()
            raise

    def stop(self, last: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Run `last`, then end the loop and the thread.  Nothing runs after it."""
        if self._process != os.getpid():
            return  # Its connections are the other process's, too.
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            self._loop.call_soon_threadsafe(self._end, last)
        # The garbage collector may bring a client's finaliser here in any thread,
        # and a thread cannot wait for itself.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _end(self, last: Callable[[], Coroutine[Any, Any, None]] | None) -> None:
        if last is None:
            self._loop.stop()
        else:
            self._last = self._loop.create_task(last())
            self._last.add_done_callback(lambda _: self._loop.stop())

    def _serve(self, started: threading.Event) -> None:
        loop = self._loop
        asyncio.set_event_loop(loop)
        loop.call_soon(started.set)
        try:
            loop.run_forever()
            # What was cancelled, or failed as the client was closed, still has to say so.
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks))
        finally:
            loop.close()


class BlockingStream(Generic[T]):
    """A call with many replies, as an iterator.

    Leaving early: `with`, `close()`, or dropping it.  It may be closed by another
    thread than the one that reads it; that one's `next` then ends.
    """

    def __init__(self, client: Client, thread: _LoopThread, stream: ReplyStream[T]) -> None:
        self._client = client  # It would close itself, were this the last that uses it.
        self._thread = thread
        self._stream = stream
        self._ready: list[T] = []
        self._closed = False

    def __iter__(self) -> BlockingStream[T]:
        return self

    def __next__(self) -> T:
        # Another thread may close it at any time: what is taken from is looked up once.
        ready = self._ready
        if self._closed:
            raise StopIteration
        if not ready:
            # In batches, because a change of threads costs more than an item.
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
        self._closed = True
        self._ready = []
        try:
            self._thread.run(self._stream.aclose())
        except ConnectionLostError:
            pass  # The client is closed, and this with it.

    def __enter__(self) -> BlockingStream[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Client:
    """An agent, as `arcbox_agent.sync.connect` gives it; the methods are those of the async client."""

    def __init__(self, thread: _LoopThread, client: async_client.Client) -> None:
        self._thread = thread
        self._client = client
        self._run = thread.run
        # At the end of the interpreter too, while its threads still run.
        self._finalizer = weakref.finalize(self, thread.stop, client.aclose)

    def close(self) -> None:
        """Close all connections, and end the thread.  Calls that still run get ConnectionLostError."""
        self._finalizer()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---------------------------------------------------------------- system

    def ping(self, message: str = "", *, set_clock: bool = False, timeout: float | None = None) -> PingResponse:
        return self._run(self._client.ping(message, set_clock=set_clock, timeout=timeout))

    def sync_time(self, *, timeout: float | None = None) -> PingResponse:
        return self._run(self._client.sync_time(timeout=timeout))

    def system_info(self, *, timeout: float | None = None) -> SystemInfo:
        return self._run(self._client.system_info(timeout=timeout))

    def agent_info(self, *, timeout: float | None = None) -> AgentInfo:
        return self._run(self._client.agent_info(timeout=timeout))

    def ensure_runtime(self, *, start_if_needed: bool = True, timeout: float | None = None) -> RuntimeEnsureResponse:
        return self._run(self._client.ensure_runtime(start_if_needed=start_if_needed, timeout=timeout))

    def runtime_status(self, *, timeout: float | None = None) -> RuntimeStatusResponse:
        return self._run(self._client.runtime_status(timeout=timeout))

    def shutdown(self, *, timeout: float = 0, reboot: bool = False) -> ShutdownResponse:
        return self._run(self._client.shutdown(timeout=timeout, reboot=reboot))

    # ------------------------------------------------------------ containers

    def create_container(
        self,
        *,
        name: str = "",
        image: str = "",
        cmd: Iterable[str] = (),
        entrypoint: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
        working_dir: str = "",
        user: str = "",
        mounts: Sequence[Mount] = (),
        tty: bool = False,
        open_stdin: bool = False,
        rootfs: str = "",
        id: str = "",
        timeout: float | None = None,
    ) -> CreateContainerResponse:
        return self._run(
            self._client.create_container(
                name=name,
                image=image,
                cmd=cmd,
                entrypoint=entrypoint,
                env=env,
                working_dir=working_dir,
                user=user,
                mounts=mounts,
                tty=tty,
                open_stdin=open_stdin,
                rootfs=rootfs,
                id=id,
                timeout=timeout,
            )
        )

    def start_container(self, id: str, *, timeout: float | None = None) -> None:
        self._run(self._client.start_container(id, timeout=timeout))

    def stop_container(self, id: str, *, timeout: float = 10) -> None:
        self._run(self._client.stop_container(id, timeout=timeout))

    def kill_container(self, id: str, *, signal: str | int = "KILL", timeout: float | None = None) -> None:
        self._run(self._client.kill_container(id, signal=signal, timeout=timeout))

    def wait_container(
        self, id: str, *, condition: str = "not-running", timeout: float | None = None
    ) -> WaitContainerResponse:
        return self._run(self._client.wait_container(id, condition=condition, timeout=timeout))

    def remove_container(self, id: str, *, force: bool = False, timeout: float | None = None) -> None:
        self._run(self._client.remove_container(id, force=force, timeout=timeout))

    def list_containers(
        self, *, all: bool = False, filter: str = "", timeout: float | None = None
    ) -> list[ContainerInfo]:
        return self._run(self._client.list_containers(all=all, filter=filter, timeout=timeout))

    # -------------------------------------------------------------- commands

    def exec(
        self,
        cmd: Iterable[str],
        *,
        container: str = "",
        env: Mapping[str, str] | None = None,
        working_dir: str = "",
        user: str = "",
        tty: bool = False,
        tty_width: int = 0,
        tty_height: int = 0,
        stdin: bytes = b"",
        timeout: float | None = None,
        check: bool = False,
        output_limit: int | None = None,
    ) -> ExecResult:
        return self._run(
            self._client.exec(
                cmd,
                container=container,
                env=env,
                working_dir=working_dir,
                user=user,
                tty=tty,
                tty_width=tty_width,
                tty_height=tty_height,
                stdin=stdin,
                timeout=timeout,
                check=check,
                output_limit=output_limit,
            )
        )

    def exec_stream(
        self,
        cmd: Iterable[str],
        *,
        container: str = "",
        env: Mapping[str, str] | None = None,
        working_dir: str = "",
        user: str = "",
        tty: bool = False,
        tty_width: int = 0,
        tty_height: int = 0,
        stdin: bytes = b"",
        timeout: float | None = None,
    ) -> BlockingStream[ExecOutput]:
        stream = self._client.exec_stream(
            cmd,
            container=container,
            env=env,
            working_dir=working_dir,
            user=user,
            tty=tty,
            tty_width=tty_width,
            tty_height=tty_height,
            stdin=stdin,
            timeout=timeout,
        )
        return BlockingStream(self, self._thread, stream)

    def exec_detached(
        self,
        cmd: Iterable[str],
        *,
        container: str = "",
        env: Mapping[str, str] | None = None,
        working_dir: str = "",
        user: str = "",
        stdin: bytes = b"",
    ) -> int:
        return self._run(
            self._client.exec_detached(
                cmd, container=container, env=env, working_dir=working_dir, user=user, stdin=stdin
            )
        )

    # ------------------------------------------------------------------ logs

    def logs(
        self,
        container: str,
        *,
        follow: bool = False,
        tail: int = 0,
        since: Time | None = None,
        until: Time | None = None,
        stdout: bool = False,
        stderr: bool = False,
        timestamps: bool = False,
    ) -> BlockingStream[LogEntry]:
        stream = self._client.logs(
            container,
            follow=follow,
            tail=tail,
            since=since,
            until=until,
            stdout=stdout,
            stderr=stderr,
            timestamps=timestamps,
        )
        return BlockingStream(self, self._thread, stream)

    # -------------------------------------------------------------- any call

    def call(
        self,
        request: wire.Message,
        reply_class: type[M],
        *,
        timeout: float | None = None,
        long: bool = False,
        repeatable: bool = False,
    ) -> M:
        return self._run(self._client.call(request, reply_class, timeout=timeout, long=long, repeatable=repeatable))

    def knows(self, request_class: type[wire.Message]) -> bool:
        return self._client.knows(request_class)

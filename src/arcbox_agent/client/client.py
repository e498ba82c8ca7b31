"""The async client: every call of the agent as a typed method."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from arcbox_agent import wire
from arcbox_agent.client import calls
from arcbox_agent.client.calls import AgentKind, ExecResult, Time
from arcbox_agent.client.pool import Lease, Pool
from arcbox_agent.client.stream import LogStream, ReplyStream
from arcbox_agent.errors import (
    BadRequestError,
    CallTimeoutError,
    CommandFailedError,
    ConnectionLostError,
    FrameTooLargeError,
    OutputLimitError,
    RequestError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from types import TracebackType

    from arcbox_agent.client.connection import Connection
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

DEFAULT_TIMEOUT = 30.0
DEFAULT_OUTPUT_LIMIT = 64 * 1024 * 1024


class _Request(NamedTuple):
    """A message, and the frame of that version that it is sent in."""

    message: wire.Message
    version: Literal[1, 2]
    frame: bytes
    trace_id: str | None


class Client:
    """An agent, as `arcbox_agent.connect` gives it.

    Every method may raise the classes of errors.py: RequestError where the agent
    refused, TransportError where it could not be asked.  `timeout` of a method is the
    seconds to wait for its reply, instead of the client's; where the call itself has
    a time-out (stop, exec, shutdown), `timeout` is that, and the client's is added.

    It belongs to the event loop it was made on; any number of tasks may use it.
    """

    def __init__(
        self,
        dial: Callable[[Literal[1, 2]], Awaitable[Connection]],
        *,
        timeout: float | None,
        versions: tuple[Literal[1, 2], ...],
        trace_id: Callable[[], str],
        max_connections: int,
        max_streams: int,
        output_limit: int,
        max_frame_size: int,
    ) -> None:
        self._dial = dial
        self._pool = Pool(self._open, max_calls=max_connections, max_streams=max_streams)
        self._timeout = timeout
        self._versions = versions
        self._trace_id = trace_id
        self._output_limit = output_limit
        self._max_frame_size = max_frame_size
        #: What the agent was that answered last.
        self._agent = AgentKind(versions[0], is_ours=True)

    async def aclose(self) -> None:
        """Close all connections.  Calls that still run get ConnectionLostError."""
        await self._pool.close()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # ---------------------------------------------------------------- system

    async def ping(self, message: str = "", *, set_clock: bool = False, timeout: float | None = None) -> PingResponse:
        """`set_clock`: tell the agent this host's time, by which it may set the guest's clock."""
        now = round(time.time()) if set_clock else 0
        request = wire.PingRequest(message=message, timestamp_secs=now)
        return await self.call(request, wire.PingResponse, timeout=timeout, repeatable=True)

    async def sync_time(self, *, timeout: float | None = None) -> PingResponse:
        """Let the agent set the guest's clock by this host's."""
        return await self.ping(set_clock=True, timeout=timeout)

    async def system_info(self, *, timeout: float | None = None) -> SystemInfo:
        return await self.call(wire.GetSystemInfoRequest(), wire.SystemInfo, timeout=timeout, repeatable=True)

    async def agent_info(self, *, timeout: float | None = None) -> AgentInfo:
        return await self.call(wire.AgentInfoRequest(), wire.AgentInfo, timeout=timeout, repeatable=True)

    async def ensure_runtime(
        self, *, start_if_needed: bool = True, timeout: float | None = None
    ) -> RuntimeEnsureResponse:
        request = wire.RuntimeEnsureRequest(start_if_needed=start_if_needed)
        return await self.call(request, wire.RuntimeEnsureResponse, timeout=timeout, long=True)

    async def runtime_status(self, *, timeout: float | None = None) -> RuntimeStatusResponse:
        return await self.call(
            wire.RuntimeStatusRequest(), wire.RuntimeStatusResponse, timeout=timeout, repeatable=True
        )

    async def shutdown(self, *, timeout: float = 0, reboot: bool = False) -> ShutdownResponse:
        """Power the guest off.  `timeout`: seconds for its containers to stop in; 0: the agent's default."""
        seconds = calls.whole("ShutdownRequest.timeout_seconds", timeout)
        request = wire.ShutdownRequest(timeout_seconds=seconds, reboot=reboot)
        return await self.call(request, wire.ShutdownResponse, timeout=self._added_to(timeout), long=True)

    # ------------------------------------------------------------ containers

    async def create_container(
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
        """`id` and `warnings`: what was asked and will not be done."""
        request = wire.CreateContainerRequest(
            name=name,
            image=image,
            cmd=calls.words("CreateContainerRequest.cmd", cmd),
            entrypoint=calls.words("CreateContainerRequest.entrypoint", entrypoint),
            env=calls.text_map(env),
            working_dir=working_dir,
            user=user,
            mounts=list(mounts),
            tty=tty,
            open_stdin=open_stdin,
            rootfs=rootfs,
            id=id,
            detail=True,
        )
        return await self.call(request, wire.CreateContainerResponse, timeout=timeout)

    async def start_container(self, id: str, *, timeout: float | None = None) -> None:
        await self.call(wire.StartContainerRequest(id=id), wire.Empty, timeout=timeout)

    async def stop_container(self, id: str, *, timeout: float = 10) -> None:
        """SIGTERM, after `timeout` seconds SIGKILL; returns when all of it is dead."""
        request = wire.StopContainerRequest(id=id, timeout=calls.whole("StopContainerRequest.timeout", timeout))
        await self.call(request, wire.Empty, timeout=self._added_to(timeout), long=True)

    async def kill_container(self, id: str, *, signal: str | int = "KILL", timeout: float | None = None) -> None:
        """`signal`: by name, with or without SIG, or by number."""
        request = wire.KillContainerRequest(id=id, signal=str(int(signal)) if isinstance(signal, int) else signal)
        await self.call(request, wire.Empty, timeout=timeout)

    async def wait_container(
        self, id: str, *, condition: str = "not-running", timeout: float | None = None
    ) -> WaitContainerResponse:
        """`condition`: `not-running`, `next-exit` or `removed`.  Waits without limit, if no `timeout` is given."""
        request = wire.WaitContainerRequest(id=id, condition=condition)
        return await self._call(
            request,
            wire.WaitContainerResponse,
            seconds=timeout,
            long=True,
            # The exit that a second request would wait for may be another one.
            repeatable=condition in ("", "not-running"),
        )

    async def remove_container(self, id: str, *, force: bool = False, timeout: float | None = None) -> None:
        request = wire.RemoveContainerRequest(id=id, force=force)
        await self.call(request, wire.Empty, timeout=timeout, long=force)

    async def list_containers(
        self, *, all: bool = False, filter: str = "", timeout: float | None = None
    ) -> list[ContainerInfo]:
        """The running ones, or `all`.  `filter`: only this id, id prefix or name."""
        request = wire.ListContainersRequest(all=all, detail=True, filter=filter)
        reply = await self.call(request, wire.ListContainersResponse, timeout=timeout, repeatable=True)
        return reply.containers

    # -------------------------------------------------------------- commands

    async def exec(
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
        """Run a command in the guest, or in `container`, to its end.

        Its exit code is data; with `check`, one other than 0 raises
        CommandFailedError.  `timeout`: seconds after which the agent kills it.
        More output than `output_limit` bytes ends it, and raises OutputLimitError.
        """
        command = calls.words("ExecRequest.cmd", cmd)
        limit = self._output_limit if output_limit is None else output_limit
        output: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        size = 0
        async with self.exec_stream(
            command,
            container=container,
            env=env,
            working_dir=working_dir,
            user=user,
            tty=tty,
            tty_width=tty_width,
            tty_height=tty_height,
            stdin=stdin,
            timeout=timeout,
        ) as parts:
            last = None
            async for last in parts:
                size += len(last.data)
                if size > limit:
                    raise OutputLimitError(command, limit)
                output.setdefault(last.stream, []).append(last.data)
        if last is None or not last.done:
            raise ConnectionLostError("the agent did not say how the command ended")
        result = ExecResult(
            exit_code=calls.exit_code(last),
            signal=last.signal,
            stdout=b"".join(output["stdout"]),
            stderr=b"".join(output["stderr"]) + last.stderr,
            timed_out=last.timed_out,
        )
        if check and result.exit_code != 0:
            raise CommandFailedError(command, result.exit_code, result.stdout, result.stderr)
        return result

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
    ) -> ReplyStream[ExecOutput]:
        """Run a command, and iterate over its output as it comes.

        The last item has `done`, and how the command ended; `exit_code(item)` makes
        128 + signal of it.  Leaving the iterator early kills the command.
        """
        request = calls.exec_request(
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
        # A command may be silent for as long as it may run.
        silence = None if timeout is None else self._added_to(timeout)
        return self._stream(
            request, calls.Replies("exec", calls.read_exec_output), first_timeout=silence, next_timeout=silence
        )

    async def exec_detached(
        self,
        cmd: Iterable[str],
        *,
        container: str = "",
        env: Mapping[str, str] | None = None,
        working_dir: str = "",
        user: str = "",
        stdin: bytes = b"",
    ) -> int:
        """Start a command that goes on without this client, and return its pid in the guest."""
        request = calls.exec_request(
            cmd,
            container=container,
            env=env,
            working_dir=working_dir,
            user=user,
            tty=False,
            tty_width=0,
            tty_height=0,
            stdin=stdin,
            timeout=None,
            detach=True,
        )
        return (await self.call(request, wire.ExecOutput)).pid

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
    ) -> ReplyStream[LogEntry]:
        """Iterate over a container's log; `LogEntry.timestamp` is in Unix nanoseconds.

        `follow`: go on until the container ends.  `tail`: the last so many lines; 0:
        all.  `stdout`, `stderr`: only those; neither: both.
        """
        request = calls.logs_request(
            container,
            follow=follow,
            tail=tail,
            since=since,
            until=until,
            stdout=stdout,
            stderr=stderr,
            timestamps=timestamps,
        )
        # A container that is followed may be silent for ever; reading a file may not.
        silence = None if follow else self._timeout
        return self._stream(
            request,
            calls.Replies("logs", calls.read_log_entry),
            first_timeout=silence,
            next_timeout=silence,
            kind=ReplyStream if follow else LogStream,
        )

    # -------------------------------------------------------------- any call

    async def call(
        self,
        request: wire.Message,
        reply_class: type[M],
        *,
        timeout: float | None = None,
        long: bool = False,
        repeatable: bool = False,
    ) -> M:
        """Send any request that has one reply; the methods above are made of this.

        `long`: one that may take its time, so that short ones need not wait behind
        it.  `repeatable`: one that may be sent again when a connection that had been
        idle turns out to be closed.
        """
        seconds = self._timeout if timeout is None else timeout
        return await self._call(request, reply_class, seconds=seconds, long=long, repeatable=repeatable)

    def knows(self, request_class: type[wire.Message]) -> bool:
        """Whether the agent has this call, as far as its answer to the first ping tells."""
        return self._agent.knows(request_class)

    # --------------------------------------------------------------- private

    async def _reach(self, *, timeout: float | None) -> None:
        """Have a connection over which the agent has answered; for `connect` alone."""
        try:
            async with asyncio.timeout(timeout):
                lease = await self._pool.lease(stream=False)
        except TimeoutError:
            raise CallTimeoutError("Ping", timeout or 0.0) from None
        lease.release()

    def _added_to(self, seconds: float) -> float | None:
        return None if self._timeout is None else seconds + self._timeout

    async def _open(self) -> Connection:
        """A connection of which is known what answers at its other end.

        As long as one connection lives, it is the same agent that further ones are opened to.
        When none does, it may have been replaced meanwhile, and is asked anew.
        """
        living = self._pool.living()
        if living is not None and living.agent is not None:
            connection = await self._dial(living.agent.version)
            self._pool.adopt(connection)
            if living.is_alive():
                connection.agent = living.agent
                return connection
            self._pool.drop(connection)
        *before, last = self._versions
        for version in before:
            try:
                return await self._meet(version)
            except BadRequestError:
                pass  # So says an agent that takes the trace id for part of the message.
        return await self._meet(last)

    async def _meet(self, version: Literal[1, 2]) -> Connection:
        """A connection over which the agent has told what it is."""
        sent = self._request(wire.PingRequest(detail=True), version)
        connection = await self._dial(version)
        self._pool.adopt(connection)
        try:
            connection.send(sent.frame, sent.trace_id)
            reply = calls.decode_reply(await connection.receive(), wire.PingResponse)
        except BaseException:
            self._pool.drop(connection)
            raise
        connection.agent = self._agent = AgentKind(version, is_ours=bool(reply.features))
        return connection

    def _request(self, message: wire.Message, version: Literal[1, 2]) -> _Request:
        trace_id = self._trace_id() if version == 2 else None
        frame = wire.encode_message(message, trace_id)
        if len(frame) > self._max_frame_size:
            raise FrameTooLargeError(len(frame), self._max_frame_size)
        return _Request(message, version, frame, trace_id)

    def _send(self, request: _Request, connection: Connection) -> None:
        """Send it as the agent at the other end takes it.  Raises UnsupportedError where that would not."""
        agent = connection.agent
        assert agent is not None
        calls.check_is_known(request.message, agent)
        if request.version != agent.version:
            request = self._request(request.message, agent.version)
        connection.send(request.frame, request.trace_id)

    async def _call(
        self, message: wire.Message, reply_class: type[M], *, seconds: float | None, long: bool, repeatable: bool
    ) -> M:
        request = self._request(message, self._agent.version)
        bounded = seconds is not None
        try:
            async with asyncio.timeout(seconds):
                reply = await self._exchange(request, reply_class, long=long, fresh=False, bounded=bounded)
                if reply is None and repeatable:
                    reply = await self._exchange(request, reply_class, long=long, fresh=True, bounded=bounded)
        except TimeoutError:
            name = type(message).__name__.removesuffix("Request")
            # Without one of the caller's only the wait for a connection is limited, by the client's.
            waited = self._timeout if seconds is None else seconds
            raise CallTimeoutError(name, waited or 0.0) from None
        if reply is None:
            raise ConnectionLostError("the agent closed the connection, perhaps after it had read the request")
        return reply

    async def _lease(self, *, stream: bool, fresh: bool = False) -> Lease:
        """A connection for a call that may wait for its reply for ever, but not for this."""
        async with asyncio.timeout(self._timeout):
            return await self._pool.lease(stream=stream, fresh=fresh)

    async def _exchange(
        self, request: _Request, reply_class: type[M], *, long: bool, fresh: bool, bounded: bool
    ) -> M | None:
        """The reply; None where a connection that had been idle was lost instead.

        `bounded`: whether the caller's time-out already holds.
        """
        lease = await (self._pool.lease if bounded else self._lease)(stream=long, fresh=fresh)
        connection = lease.connection
        try:
            self._send(request, connection)
            reply = calls.decode_reply(await connection.receive(), reply_class)
        except (RequestError, UnsupportedError):
            # An answer like any other, or nothing was asked: the connection is in order.
            lease.release()
            raise
        except ConnectionLostError:
            lease.discard()
            if lease.reused and not self._pool.closed:
                return None
            raise
        except BaseException:
            # A time-out, a cancellation, a broken reply: what may still come over
            # this connection belongs to no later call.
            lease.discard()
            raise
        lease.release()
        return reply

    def _stream(
        self,
        message: wire.Message,
        replies: calls.Replies[T],
        *,
        first_timeout: float | None,
        next_timeout: float | None,
        kind: type[ReplyStream[T]] = ReplyStream,
    ) -> ReplyStream[T]:
        request = self._request(message, self._agent.version)

        async def start() -> Lease:
            try:
                lease = await self._lease(stream=True)
            except TimeoutError:
                raise CallTimeoutError(replies.call, self._timeout or 0.0) from None
            try:
                self._send(request, lease.connection)
            except UnsupportedError:
                lease.release()
                raise
            except BaseException:
                lease.discard()
                raise
            return lease

        return kind(replies, start, first_timeout=first_timeout, next_timeout=next_timeout)

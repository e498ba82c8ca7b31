"""Requests and replies, without any connection.

This module builds the requests that take more than naming their fields, and converts the
replies whose shape on the wire differs from what a user wants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, TypeVar

from arcbox_agent import wire
from arcbox_agent.client.keywords import expands
from arcbox_agent.errors import DecodeError, EncodeError, FrameError, UnsupportedError

if TYPE_CHECKING:
    from typing import Unpack

    from arcbox_agent.client.endpoint import Endpoint
    from arcbox_agent.client.keywords import CommandOptions, Time
    from arcbox_agent.wire import ExecOutput, Execution, Frame, LogEntry

#: Bytes of a forwarded connection that may be under way to this host.
WINDOW = 512 << 10

#: Seconds of silence after which each side of a stream gives a sign of life.
HEARTBEAT = 10.0

M = TypeVar("M", bound=wire.Message)
T = TypeVar("T")


# ------------------------------------------------------------------ requests


def words(field: str, value: Iterable[str]) -> list[str]:
    """The value of a repeated string field.  A str is refused: it would be taken as a list of letters."""
    if isinstance(value, (str, bytes)):
        raise EncodeError(field, f"a list of words is wanted, not {value!r}")
    return list(value)


def text_map(value: Mapping[str, str] | None) -> dict[str, str]:
    return dict(value) if value else {}


def whole(field: str, number: float) -> int:
    """A length of time as a whole number, rounded up because 0 often means something else."""
    if not math.isfinite(number):
        raise EncodeError(field, f"{number} is no length of time")
    return math.ceil(number)


def stop_seconds(timeout: float) -> int:
    """The time of a Stop; math.inf: without end."""
    return 0xFFFFFFFF if timeout == math.inf else whole("StopContainerRequest.timeout", timeout)


def stop_milliseconds(timeout: float | None) -> int:
    """The stop_timeout of a container, where 0 on the wire says nothing and -1 means without end."""
    if timeout is None:
        return 0
    if timeout == math.inf:
        return -1
    milliseconds = whole("CreateContainerRequest.stop_timeout_ms", timeout * 1000)
    if milliseconds < 0:
        raise EncodeError("CreateContainerRequest.stop_timeout_ms", f"{timeout} s are no length of time")
    return max(1, milliseconds)


def seconds_and_nanos(when: Time | None) -> tuple[int, int]:
    """`when` as two fields of a LogsRequest; None becomes 0, which means no limit."""
    if when is None:
        return 0, 0
    if isinstance(when, datetime):
        # Without the microseconds, for which a float of today's date has no room.
        whole = math.floor(when.replace(microsecond=0).timestamp())
        return whole, when.microsecond * 1000
    if isinstance(when, int):
        return when, 0
    whole = math.floor(when)
    nanos = round((when - whole) * 1_000_000_000)
    return (whole + 1, 0) if nanos == 1_000_000_000 else (whole, nanos)


#: The calls of 0.0.1-alpha.1, the only agent that speaks nothing but V1.  It closes the
#: connection on any other call.
ALPHA1_CALLS = frozenset(
    {
        wire.PingRequest,
        wire.GetSystemInfoRequest,
        wire.CreateContainerRequest,
        wire.StartContainerRequest,
        wire.StopContainerRequest,
        wire.RemoveContainerRequest,
        wire.ListContainersRequest,
        wire.ExecRequest,
        wire.LogsRequest,
    }
)

#: Fields that alpha.1 does not know or ignores, though they change what is requested.
_ALPHA1_IGNORES: dict[type[wire.Message], tuple[str, ...]] = {
    wire.PingRequest: ("timestamp_secs",),
    wire.CreateContainerRequest: ("user", "mounts", "tty", "open_stdin", "rootfs", "id"),
    wire.ExecRequest: ("user", "tty"),
}
#: Fields of a LogsRequest that alpha.1 ignores unless the log is followed.
_ALPHA1_KNOWS_IN_A_FOLLOW = ("stdout", "stderr", "since", "until", "timestamps")
#: Fields that only our agent knows.
_OURS: dict[type[wire.Message], tuple[str, ...]] = {
    wire.ListContainersRequest: ("filter",),
    wire.PingRequest: ("timestamp_ns",),
    wire.CreateContainerRequest: ("stop_signal", "stop_timeout_ms"),
    wire.ExecRequest: ("timeout_ms", "detach", "stdin"),
    wire.LogsRequest: ("after", "only_new", "attach"),
    wire.ShutdownRequest: ("reboot",),
}


#: Calls that not every agent of ours has; each with its name among an agent's features.
_NEWER: dict[type[wire.Message], str] = {
    wire.StartExecutionRequest: "start_execution",
    wire.ListExecutionsRequest: "list_executions",
    wire.InspectExecutionRequest: "inspect_execution",
    wire.AttachExecutionRequest: "attach_execution",
    wire.WriteExecutionRequest: "write_execution",
    wire.ResizeExecutionRequest: "resize_execution",
    wire.SignalExecutionRequest: "signal_execution",
    wire.WaitExecutionRequest: "wait_execution",
    wire.RemoveExecutionRequest: "remove_execution",
    wire.ConnectRequest: "connect",
    wire.ListenRequest: "listen",
    wire.AcceptRequest: "accept",
    wire.WaitForRequest: "wait_for",
}


@dataclass(frozen=True, slots=True)
class AgentKind:
    """The kind of an agent, as its answer to the first ping shows it.

    `version`: the version of its frames; only alpha.1 speaks nothing but 1.
    `features`: the calls that it listed in the answer, which no agent but ours does.
    """

    version: Literal[1, 2]
    features: frozenset[str]

    @property
    def is_ours(self) -> bool:
        return bool(self.features)

    def knows(self, request_class: type[wire.Message]) -> bool:
        name = _NEWER.get(request_class)
        if name is not None:
            return name in self.features
        return self.is_ours or self.version == 2 or request_class in ALPHA1_CALLS

    def knows_field(self, request_class: type[wire.Message], field: str) -> bool:
        return self.is_ours or field not in _OURS.get(request_class, ())


def check_is_known(request: wire.Message, agent: AgentKind) -> None:
    """Raise UnsupportedError for a request that an agent other than ours would refuse or ignore in part."""
    kind = type(request)
    if kind in _NEWER and not agent.knows(kind):
        raise UnsupportedError(kind.__name__)
    if agent.is_ours:
        return
    version = agent.version
    if version == 1 and kind not in ALPHA1_CALLS:
        raise UnsupportedError(kind.__name__)
    fields = _OURS.get(kind, ())
    if version == 1:
        fields += _ALPHA1_IGNORES.get(kind, ())
        if isinstance(request, wire.LogsRequest) and not request.follow:
            fields += _ALPHA1_KNOWS_IN_A_FOLLOW
    for field in fields:
        if getattr(request, field):
            raise UnsupportedError(f"{kind.__name__}.{field}")


def logs_request(
    container: str,
    *,
    follow: bool = False,
    tail: int = 0,
    since: Time | None = None,
    until: Time | None = None,
    stdout: bool = False,
    stderr: bool = False,
    timestamps: bool = False,
    after: str = "",
    only_new: bool = False,
    attach: bool = False,
) -> wire.LogsRequest:
    since_seconds, since_nanos = seconds_and_nanos(since)
    until_seconds, until_nanos = seconds_and_nanos(until)
    return wire.LogsRequest(
        container_id=container,
        follow=follow,
        stdout=stdout,
        stderr=stderr,
        since=since_seconds,
        until=until_seconds,
        timestamps=timestamps,
        tail=tail,
        stream=True,
        since_nanos=since_nanos,
        until_nanos=until_nanos,
        detail=True,
        after=after,
        only_new=only_new,
        attach=attach,
    )


def command_request(
    cmd: Iterable[str],
    *,
    container: str = "",
    env: Mapping[str, str] | None = None,
    working_dir: str = "",
    user: str = "",
    stdin: bytes = b"",
) -> wire.ExecRequest:
    """A command, as far as it does not matter who reads its output."""
    return wire.ExecRequest(
        container_id=container,
        cmd=words("ExecRequest.cmd", cmd),
        env=text_map(env),
        working_dir=working_dir,
        user=user,
        stdin=stdin,
        detail=True,
    )


def milliseconds(field: str, seconds: float) -> int:
    """A length of time as whole milliseconds: at least one, because 0 would be the agent's default."""
    if seconds <= 0:
        raise EncodeError(field, f"{seconds} s are no length of time")
    return max(1, whole(field, seconds * 1000))


def connect_request(
    to: Endpoint, *, container: str = "", timeout: float = 10.0, heartbeat: float = HEARTBEAT
) -> wire.ConnectRequest:
    """A connection into the guest.  `timeout`, `heartbeat`: seconds."""
    return wire.ConnectRequest(
        host=to.host,
        port=to.port,
        path=to.path,
        container_id=container,
        window=WINDOW,
        heartbeat_ms=milliseconds("ConnectRequest.heartbeat_ms", heartbeat),
        timeout_ms=milliseconds("ConnectRequest.timeout_ms", timeout),
    )


class ForwardValues(NamedTuple):
    """What `forward_options` was given."""

    container: str
    timeout: float
    heartbeat: float
    on_error: Callable[[Exception], object] | None


def forward_options(
    *,
    container: str = "",
    timeout: float = 10.0,
    heartbeat: float = HEARTBEAT,
    on_error: Callable[[Exception], object] | None = None,
) -> ForwardValues:
    """What a forward takes besides its two ends."""
    return ForwardValues(container, timeout, heartbeat, on_error)


@expands(command_request)
def exec_request(
    cmd: Iterable[str],
    *,
    tty: bool = False,
    tty_width: int = 0,
    tty_height: int = 0,
    timeout: float | None = None,
    **options: Unpack[CommandOptions],
) -> wire.ExecRequest:
    """A command whose output this client reads.  `timeout`: seconds."""
    request = command_request(cmd, **options)
    request.stream = True
    request.tty = tty
    request.tty_width = tty_width
    request.tty_height = tty_height
    request.timeout_ms = _milliseconds(timeout)
    return request


@expands(command_request)
def detached_request(cmd: Iterable[str], **options: Unpack[CommandOptions]) -> wire.ExecRequest:
    """A command that goes on without this client."""
    request = command_request(cmd, **options)
    request.detach = True
    return request


def start_request(
    cmd: Iterable[str],
    *,
    container: str = "",
    env: Mapping[str, str] | None = None,
    working_dir: str = "",
    user: str = "",
    tty: bool = False,
    size: tuple[int, int] = (0, 0),
    stdin: bool = False,
    id: str = "",
    idempotency_key: str = "",
    spool_limit: int = 0,
    wait_when_full: bool = True,
    keep: float = 0,
    timeout: float | None = None,
) -> wire.StartExecutionRequest:
    """A command that does not belong to its connection.  `size`: rows and columns."""
    command = wire.ExecRequest(
        container_id=container,
        cmd=words("ExecRequest.cmd", cmd),
        env=text_map(env),
        working_dir=working_dir,
        user=user,
        tty=tty,
        tty_width=size[1],
        tty_height=size[0],
        timeout_ms=_milliseconds(timeout),
    )
    return wire.StartExecutionRequest(
        id=id,
        command=command,
        open_stdin=stdin,
        idempotency_key=idempotency_key,
        spool_limit=spool_limit,
        wait_when_full=wait_when_full,
        keep_ms=whole("StartExecutionRequest.keep_ms", keep * 1000),
    )


def _milliseconds(timeout: float | None) -> int:
    """At least 1 ms, as 0 would be no limit at all."""
    return 0 if timeout is None else max(1, whole("ExecRequest.timeout_ms", timeout * 1000))


# ------------------------------------------------------------------- replies


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How a command ended, and what it wrote.

    `exit_code`: as in a shell, 128 + signal if a signal ended the command.
    `signal`: that signal, or 0.  `timed_out`: whether the time-out ended the command.
    `output_cut`: something that the command started still held its output open when it had
    ended; what that writes later is not in `stdout` and `stderr`.
    """

    exit_code: int
    signal: int
    stdout: bytes
    stderr: bytes
    timed_out: bool
    output_cut: bool = False


def exit_code(output: ExecOutput | Execution) -> int:
    """The exit code in a command's last ExecOutput, or in its Execution: 128 + signal if a signal ended it."""
    return 128 + output.signal if output.signal else output.exit_code


@dataclass(frozen=True, slots=True)
class Replies(Generic[T]):
    """How to read the frames that answer a streaming call.

    `read` returns the item of a frame, and whether the stream ends with that frame.
    """

    call: str
    read: Callable[[Frame], tuple[T | None, bool]]


def read_exec_output(frame: Frame) -> tuple[ExecOutput | None, bool]:
    output = decode_reply(frame, wire.ExecOutput)
    return output, output.done


def read_log_entry(frame: Frame) -> tuple[LogEntry | None, bool]:
    """The LogEntry in a frame of either version."""
    if frame.type == wire.MessageType.EMPTY:
        return None, True
    if frame.trace_id is None:
        return decode_reply(frame, wire.LogEntry), False
    entry = decode_reply(frame, wire.LogEntryV2)
    time = entry.timestamp
    nanoseconds = 0 if time is None else time.seconds * 1_000_000_000 + time.nanos
    if not -(1 << 63) <= nanoseconds < 1 << 63:
        raise DecodeError("LogEntryV2.timestamp", f"{nanoseconds} ns are no time that a log can have")
    v1 = wire.LogEntry(
        stream=entry.stream,
        data=entry.data,
        timestamp=nanoseconds,
        partial=entry.partial,
        cursor=entry.cursor,
        gap=entry.gap,
    )
    return v1, False


def decode_reply(frame: Frame, reply_class: type[M]) -> M:
    """The message in `frame`.  Raises FrameError if it is not a `reply_class`."""
    if frame.type != reply_class.TYPE:
        raise FrameError(f"a frame of type {frame.type:#06x}, where {reply_class.__name__} was expected")
    return reply_class.decode(frame.payload)

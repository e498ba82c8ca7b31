"""What a call is made of, before any connection is involved.

The requests that take more than naming their fields are put together here, and
the replies whose shape on the wire is not the one a person wants are taken apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from arcbox_agent import wire
from arcbox_agent.client.keywords import expands
from arcbox_agent.errors import DecodeError, EncodeError, FrameError, UnsupportedError

if TYPE_CHECKING:
    from typing import Unpack

    from arcbox_agent.client.keywords import CommandOptions, Time
    from arcbox_agent.wire import ExecOutput, Frame, LogEntry

M = TypeVar("M", bound=wire.Message)
T = TypeVar("T")


# ------------------------------------------------------------------ requests


def words(field: str, value: Iterable[str]) -> list[str]:
    """A repeated string field.  A str is iterable too, and never what was meant."""
    if isinstance(value, (str, bytes)):
        raise EncodeError(field, f"a list of words is wanted, not {value!r}")
    return list(value)


def text_map(value: Mapping[str, str] | None) -> dict[str, str]:
    return dict(value) if value else {}


def whole(field: str, number: float) -> int:
    """Of a length of time; upwards, because 0 often means something else."""
    if not math.isfinite(number):
        raise EncodeError(field, f"{number} is no length of time")
    return math.ceil(number)


def seconds_and_nanos(when: Time | None) -> tuple[int, int]:
    """`when` as the two fields of a LogsRequest; None is 0, which is no limit."""
    if when is None:
        return 0, 0
    if isinstance(when, datetime):
        # Not datetime.timestamp(): a float of today has no room for microseconds.
        whole = math.floor(when.replace(microsecond=0).timestamp())
        return whole, when.microsecond * 1000
    if isinstance(when, int):
        return when, 0
    whole = math.floor(when)
    nanos = round((when - whole) * 1_000_000_000)
    return (whole + 1, 0) if nanos == 1_000_000_000 else (whole, nanos)


#: The calls of 0.0.1-alpha.1, the only agent that speaks V1 alone.  It closes the
#: connection at any other.
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

#: Fields that alpha.1 does not know or does not heed, and without which the request
#: would be another one; then those that no agent but ours knows.
_ALPHA1_PASSES_OVER: dict[type[wire.Message], tuple[str, ...]] = {
    wire.PingRequest: ("timestamp_secs",),
    wire.CreateContainerRequest: ("user", "mounts", "tty", "open_stdin", "rootfs", "id"),
    wire.ExecRequest: ("user", "tty"),
}
_ALPHA1_HEEDS_IN_A_FOLLOW = ("stdout", "stderr", "since", "until", "timestamps")
_OURS: dict[type[wire.Message], tuple[str, ...]] = {
    wire.ListContainersRequest: ("filter",),
    wire.ExecRequest: ("timeout_ms", "detach", "stdin"),
    wire.ShutdownRequest: ("reboot",),
}


@dataclass(frozen=True, slots=True)
class AgentKind:
    """What an agent has told of itself by its answer to a first ping.

    `version`: of its frames, by which alpha.1 is told from the agents after it.
    `is_ours`: it names its calls; one that does not is 0.0.1-alpha.1, or one of those
    after it.
    """

    version: Literal[1, 2]
    is_ours: bool

    def knows(self, request_class: type[wire.Message]) -> bool:
        return self.is_ours or self.version == 2 or request_class in ALPHA1_CALLS


def check_is_known(request: wire.Message, agent: AgentKind) -> None:
    """Raise UnsupportedError for what an agent other than ours would refuse or pass over."""
    if agent.is_ours:
        return
    kind = type(request)
    version = agent.version
    if version == 1 and kind not in ALPHA1_CALLS:
        raise UnsupportedError(kind.__name__)
    fields = _OURS.get(kind, ())
    if version == 1:
        fields += _ALPHA1_PASSES_OVER.get(kind, ())
        if isinstance(request, wire.LogsRequest) and not request.follow:
            fields += _ALPHA1_HEEDS_IN_A_FOLLOW
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
    if timeout is not None:
        # At least 1 ms: 0 would be no limit at all.
        request.timeout_ms = max(1, whole("ExecRequest.timeout_ms", timeout * 1000))
    return request


@expands(command_request)
def detached_request(cmd: Iterable[str], **options: Unpack[CommandOptions]) -> wire.ExecRequest:
    """A command that goes on without this client."""
    request = command_request(cmd, **options)
    request.detach = True
    return request


# ------------------------------------------------------------------- replies


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How a command ended, and what it wrote.

    `exit_code`: as a shell tells it, 128 + signal where a signal ended it.
    `signal`: that signal, or 0.  `timed_out`: whether its time-out did.
    """

    exit_code: int
    signal: int
    stdout: bytes
    stderr: bytes
    timed_out: bool


def exit_code(output: ExecOutput) -> int:
    """The exit code in the last ExecOutput of a command: 128 + signal where one ended it."""
    return 128 + output.signal if output.signal else output.exit_code


@dataclass(frozen=True, slots=True)
class Replies(Generic[T]):
    """How to read the frames that answer a streaming call.

    `read` gives a frame's item, and whether the stream ends with this frame.
    """

    call: str
    read: Callable[[Frame], tuple[T | None, bool]]


def read_exec_output(frame: Frame) -> tuple[ExecOutput | None, bool]:
    output = decode_reply(frame, wire.ExecOutput)
    return output, output.done


def read_log_entry(frame: Frame) -> tuple[LogEntry | None, bool]:
    """A LogEntry, whichever version the frame has."""
    if frame.type == wire.MessageType.EMPTY:
        return None, True
    if frame.trace_id is None:
        return decode_reply(frame, wire.LogEntry), False
    entry = decode_reply(frame, wire.LogEntryV2)
    time = entry.timestamp
    nanoseconds = 0 if time is None else time.seconds * 1_000_000_000 + time.nanos
    if not -(1 << 63) <= nanoseconds < 1 << 63:
        raise DecodeError("LogEntryV2.timestamp", f"{nanoseconds} ns are no time that a log can have")
    return wire.LogEntry(stream=entry.stream, data=entry.data, timestamp=nanoseconds, partial=entry.partial), False


def decode_reply(frame: Frame, reply_class: type[M]) -> M:
    """The message in `frame`.  Raises FrameError where it is another than expected."""
    if frame.type != reply_class.TYPE:
        raise FrameError(f"a frame of type {frame.type:#06x}, where {reply_class.__name__} was expected")
    return reply_class.decode(frame.payload)

"""Every exception of arcbox-agent.  This module imports nothing of ours.

    ArcboxError
    ├── WireError                     bytes or values that the protocol refuses
    │   ├── EncodeError               fix the value you passed (also ValueError)
    │   ├── DecodeError               the peer sent a broken message: refuse that request
    │   │   └── TooManyItemsError     a message holds more than its reader takes: ask for less
    │   └── FrameError                the stream is broken: close the connection
    │       ├── FrameTooShortError    a length below the minimum of its version
    │       ├── FrameTooLargeError    a length above the limit
    │       ├── TraceLengthError      a trace id that does not fit its frame
    │       ├── TruncatedFrameError   the stream ended inside a frame
    │       └── DecoderFailedError    fed or asked again after one of the above
    ├── ConfigError                   fix the setting it names
    ├── AddressError                  fix the address (also ValueError)
    ├── TransportError                the agent could not be reached, or went away
    │   ├── ConnectError              no agent answers at the address: is it running?
    │   ├── ConnectionLostError       the connection ended before the reply did
    │   └── CallTimeoutError          no reply in time (also TimeoutError)
    ├── WaitTimeoutError              what was waited for did not come about (also TimeoutError)
    ├── RequestError                  the agent answered with Error(code, message)
    │   ├── BadRequestError           400: fix the request
    │   ├── ForbiddenError            403: this listener does not allow that call
    │   ├── NotFoundError             404: no such container or execution
    │   ├── ConflictError             409: not in the container's present state
    │   ├── BusyError                 429: a limit was reached, try again later
    │   ├── UnavailableError          503: the guest is short of memory, try again later
    │   └── AgentFailedError          500: all else; the agent's log says more
    ├── UnsupportedError              the agent is too old for what was asked: bring it up to date
    ├── ClockNotSetError              the guest's clock differs, and its agent does not set it
    ├── LogFileError              a file that is not read as a log: a symbolic link (also OSError)
    ├── CommandFailedError            a command failed that was run with check=True
    ├── OutputLimitError              a command wrote more than `exec` may keep: exec_stream
    ├── GapError                      bytes of an execution's output that are not kept any more: read on behind them
    └── ReplyLimitError               the replies to a call are more than the client keeps: ask for less

The agent's handlers raise RequestError classes; the client raises the same
classes for the Error frames it receives.  All of them pickle.
"""

from __future__ import annotations

# The guest pays for every import: `typing` is for the type checker alone.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class ArcboxError(Exception):
    """The root of all exceptions of this package."""

    def __reduce__(self) -> Any:
        # The default calls the class with self.args, which are the formatted
        # message and not the parameters of a subclass's __init__.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[ArcboxError], args: tuple[Any, ...], state: dict[str, Any]) -> ArcboxError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


# ------------------------------------------------------------------ the wire


class WireError(ArcboxError):
    """Bytes or values that the protocol refuses."""


class EncodeError(WireError, ValueError):
    """A field's value is of the wrong type or out of range.

    `path`: the field, from the message down, as in `CreateContainerRequest.mounts[1].target`.
    """

    path: str

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path


class DecodeError(WireError, ValueError):
    """A message's bytes are broken.

    `path`: the field that could not be read, from the message down.
    """

    path: str

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path


class TooManyItemsError(DecodeError):
    """A message holds more items than its reader takes; those of a list or a map, or all together.

    `limit`: how many it takes.  docs/protocol.md has the bounds.
    """

    limit: int

    def __init__(self, path: str, limit: int, what: str) -> None:
        super().__init__(path, f"more than {limit} {what}: send fewer in one message")
        self.limit = limit


class FrameError(WireError):
    """The stream of frames is broken and cannot be picked up again."""


class FrameTooShortError(FrameError):
    """A frame's length is below the minimum of its version."""

    length: int
    minimum: int

    def __init__(self, length: int, minimum: int) -> None:
        super().__init__(f"frame length {length} is below the minimum of {minimum}")
        self.length, self.minimum = length, minimum


class FrameTooLargeError(FrameError):
    """A frame's length is above the limit."""

    length: int
    limit: int

    def __init__(self, length: int, limit: int) -> None:
        super().__init__(f"frame length {length} is above the limit of {limit}")
        self.length, self.limit = length, limit


class TraceLengthError(FrameError):
    """A trace id is longer than the frame that holds it, or than the version can tell."""

    trace_length: int
    available: int

    def __init__(self, trace_length: int, available: int) -> None:
        super().__init__(f"trace id of {trace_length} bytes does not fit the {available} there are")
        self.trace_length, self.available = trace_length, available


class TruncatedFrameError(FrameError):
    """The stream ended inside a frame."""

    received: int
    expected: int

    def __init__(self, received: int, expected: int) -> None:
        super().__init__(f"stream ended after {received} of a frame's {expected} bytes")
        self.received, self.expected = received, expected


class DecoderFailedError(FrameError):
    """A decoder that failed once was used again; `__cause__` is the first error."""


# ------------------------------------------------------------ configuration


class ConfigError(ArcboxError):
    """A setting is unknown, or its value is not allowed.

    `setting`: its name, or "" if no single setting is at fault.
    """

    setting: str

    def __init__(self, setting: str, reason: str) -> None:
        super().__init__(f"{setting}: {reason}" if setting else reason)
        self.setting = setting


class AddressError(ArcboxError, ValueError):
    """An address of an agent or a listener cannot be understood."""

    address: str

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"{address!r}: {reason}")
        self.address = address


# ---------------------------------------------------------------- transport


class TransportError(ArcboxError):
    """The agent could not be reached, or went away."""


class ConnectError(TransportError):
    """No agent answers at the address."""

    address: str
    reason: str

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"cannot connect to {address}: {reason}")
        self.address, self.reason = address, reason


class ConnectionLostError(TransportError):
    """The connection ended before the reply did."""


class CallTimeoutError(TransportError, TimeoutError):
    """No reply came in time.  `seconds`: how long the client waited."""

    call: str
    seconds: float

    def __init__(self, call: str, seconds: float) -> None:
        super().__init__(f"{call}: no reply after {seconds:g} s")
        self.call, self.seconds = call, seconds


class WaitTimeoutError(ArcboxError, TimeoutError):
    """What was waited for did not come about in time, or never will.

    `last`: why not, as the agent's last look found.  `seconds`: how long it could wait.
    """

    last: str
    seconds: float

    def __init__(self, last: str, seconds: float) -> None:
        super().__init__(last or f"it did not come about within {seconds:g} s")
        self.last, self.seconds = last, seconds


# ------------------------------------------------------- the agent's answers


class RequestError(ArcboxError):
    """The agent answered a request with an Error frame.

    `code`: the frame's code.  `message`: the frame's text.
    """

    code: int = 500
    message: str

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code

    @staticmethod
    def from_reply(code: int, message: str) -> RequestError:
        """The exception of the class that belongs to an Error frame's code."""
        return _BY_CODE.get(code, AgentFailedError)(message, code)


class BadRequestError(RequestError):
    """The request itself is at fault: it does not parse, or asks for something impossible."""

    code = 400


class ForbiddenError(RequestError):
    """The listener does not allow this call."""

    code = 403


class NotFoundError(RequestError):
    """No such container or execution."""

    code = 404


class ConflictError(RequestError):
    """The container's present state does not allow the call."""

    code = 409


class BusyError(RequestError):
    """A limit of the agent was reached; the message names it."""

    code = 429


class UnavailableError(RequestError):
    """The guest is short of memory, and the request a large one."""

    code = 503


class AgentFailedError(RequestError):
    """The agent failed; its log says more."""

    code = 500


_BY_CODE: dict[int, type[RequestError]] = {
    cls.code: cls
    for cls in (
        BadRequestError,
        ForbiddenError,
        NotFoundError,
        ConflictError,
        BusyError,
        UnavailableError,
        AgentFailedError,
    )
}


class UnsupportedError(ArcboxError):
    """The agent in the guest does not have the call, or would ignore a part of the request.

    Nothing was sent.  `what`: the call, or its field, by its name in the protocol.
    """

    what: str

    def __init__(self, what: str) -> None:
        super().__init__(f"the agent in the guest is too old for {what}")
        self.what = what


class ClockNotSetError(ArcboxError):
    """The guest's clock differs from this host's, and the agent did not set it.

    `reason`: `forbidden` (by set_clock = false, or to this peer by its listener) or `refused` (by the
    guest's kernel).  `ahead`: how many seconds the guest's clock is ahead of this host's.
    """

    reason: str
    ahead: float

    def __init__(self, reason: str, ahead: float) -> None:
        why = {
            "forbidden": "its agent may not set it, by set_clock = false or mode=read-only",
            "refused": "the guest's kernel does not let its agent set it; the agent's log says more",
        }[reason]
        super().__init__(f"the guest's clock is {ahead:+.3f} s off: {why}")
        self.reason = reason
        self.ahead = ahead


class LogFileError(ArcboxError, OSError):
    """A file that is not read as a log, because it is, or its path leads through, a symbolic link.

    Whoever wrote to a guest's disk chose where a link leads: to a file of this machine, as like as not.
    """

    path: str

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path}: there is a symbolic link in this path; name the file that it leads to, if you trust it"
        )
        self.path = path


# ----------------------------------------------------------------- commands


class CommandFailedError(ArcboxError):
    """A command that was run with `check=True` ended with an exit code other than 0.

    `exit_code`: 128 + signal if a signal ended the command.
    """

    cmd: list[str]
    exit_code: int
    stdout: bytes
    stderr: bytes

    def __init__(self, cmd: list[str], exit_code: int, stdout: bytes, stderr: bytes) -> None:
        # The last line of standard error is most often the reason.
        said = stderr.decode(errors="replace").strip().rpartition("\n")[2].strip()[-200:]
        super().__init__(f"command {cmd!r} ended with exit code {exit_code}" + (f": {said}" if said else ""))
        self.cmd, self.exit_code, self.stdout, self.stderr = cmd, exit_code, stdout, stderr


class OutputLimitError(ArcboxError):
    """A command wrote more than `exec` may keep, and was killed.

    `limit`: bytes, stdout and stderr together.
    """

    cmd: list[str]
    limit: int

    def __init__(self, cmd: list[str], limit: int) -> None:
        super().__init__(f"command {cmd!r} wrote more than {limit} bytes: raise output_limit, or use exec_stream")
        self.cmd, self.limit = cmd, limit


class GapError(ArcboxError):
    """A part of an execution's output is not kept any more: its spool was full, or begins later.

    `stream`: the output.  `cursor`: of the first byte that is missing.  `bytes`: how many are.
    """

    stream: str
    cursor: int
    bytes: int

    def __init__(self, stream: str, cursor: int, size: int) -> None:
        super().__init__(f"{stream}: {size} bytes from {cursor} on are not kept any more")
        self.stream, self.cursor, self.bytes = stream, cursor, size


class ReplyLimitError(ArcboxError):
    """The replies to one call are more than the client keeps in memory.

    `limit`: bytes.
    """

    limit: int

    def __init__(self, what: str, limit: int, advice: str) -> None:
        super().__init__(f"{what} is longer than {limit} bytes: {advice}")
        self.limit = limit

"""What a client wants of a log."""

from __future__ import annotations

from arcbox_agent.errors import BadRequestError
from arcbox_agent.logs.reader import LogReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from arcbox_agent.wire import LogsRequest

_SECOND = 1_000_000_000


class Options:
    """What a client wants of a log, in the words of LogReader; follows with equal keys share a flow.

    `version`, `trace`: of the frames that the client is sent.
    """

    __slots__ = ("since", "stderr", "stdout", "tail", "timestamps", "trace", "until", "version")

    def __init__(
        self,
        *,
        version: int = 1,
        trace: bytes = b"",
        stdout: bool = True,
        stderr: bool = True,
        tail: int = 0,
        since: int | None = None,
        until: int | None = None,
        timestamps: bool = False,
    ) -> None:
        self.version = version
        self.trace = trace
        self.stdout = stdout
        self.stderr = stderr
        self.tail = tail
        self.since = since
        self.until = until
        self.timestamps = timestamps

    @classmethod
    def of(cls, request: LogsRequest, trace_id: str | None) -> Options:
        """What a request asks for; `trace_id`: None where it came in V1.  BadRequestError: it makes no sense."""
        if request.tail < 0:
            raise BadRequestError(f"tail must not be negative: {request.tail}")
        neither = not (request.stdout or request.stderr)
        return cls(
            version=1 if trace_id is None else 2,
            trace=(trace_id or "").encode("utf-8", "surrogateescape"),
            stdout=request.stdout or neither,
            stderr=request.stderr or neither,
            tail=request.tail,
            # Zero is no bound.
            since=_time(request.since, request.since_nanos) if request.since or request.since_nanos else None,
            until=_time(request.until, request.until_nanos) if request.until or request.until_nanos else None,
            timestamps=request.timestamps,
        )

    def key(self, path: str) -> tuple[Any, ...]:
        """All that tells one flow from another: a tail only says where a follow begins."""
        return path, self.version, self.stdout, self.stderr, self.since, self.until, self.timestamps

    def reader(
        self, path: str, output: str = "", trace: bytes = b"", unended: bool = False, keep_open: bool = False
    ) -> LogReader:
        return LogReader(
            path,
            output=output or f"v{self.version}",
            trace=trace,
            stdout=self.stdout,
            stderr=self.stderr,
            tail=self.tail,
            since=self.since,
            until=self.until,
            timestamps=self.timestamps,
            unended=unended,
            keep_open=keep_open,
            own=True,
        )


def _time(seconds: int, nanos: int) -> int:
    # What lies beyond the times that a log can have is as good as its last one.
    return max(-(1 << 63) + 1, min(seconds * _SECOND + nanos, (1 << 63) - 1))

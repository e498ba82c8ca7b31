"""Reads a log with its rotated siblings: the last lines, or those of a time, oldest first.

Needs no agent: it works in a rescue shell, and on any host that has the files.
"""

from __future__ import annotations

from contextlib import suppress

from arcbox_agent._logs import BLOCKED, CHANGED, END, Engine
from arcbox_agent._logscan import TailScan, bisect
from arcbox_agent.errors import BadRequestError
from arcbox_agent.logs.files import LogFile, open_neighbour, open_newest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import Any

    from arcbox_agent._log_output import Entry
    from arcbox_agent.wire import LogsRequest

#: A larger file is searched for a time by bisection.  That assumes that its times are in order,
#: within SLACK ns: if the clock was set back by more, lines before the step may be left out.
#: No line outside the range is ever given.
BISECT_FROM = 1 << 20
_SECOND = 1_000_000_000
SLACK = 60 * _SECOND

#: The times that a line can have: one outside becomes the nearest inside, and so does the end of a range.
_FIRST, _LAST = -(1 << 63) + 1, (1 << 63) - 1

#: How often a log that is truncated during the search for its end is searched again.
_ATTEMPTS = 5


class Options:
    """What is wanted of a log: which lines, and how they are given.

    `tail`: only so many of the last lines, 0: all.  `since`, `until`: Unix ns, both inclusive; a line whose
    time is not known is outside every range.  `timestamps`: each line begins with its time.
    `version`, `trace`: of the frames that a client is sent.
    """

    __slots__ = ("since", "stderr", "stdout", "tail", "timestamps", "trace", "until", "version")

    def __init__(
        self,
        *,
        stdout: bool = True,
        stderr: bool = True,
        tail: int = 0,
        since: int | None = None,
        until: int | None = None,
        timestamps: bool = False,
        version: int = 1,
        trace: bytes = b"",
    ) -> None:
        if tail < 0:
            raise ValueError("tail must not be negative")
        self.stdout = stdout
        self.stderr = stderr
        self.tail = tail
        self.since = None if since is None else _nearest(since)
        self.until = None if until is None else _nearest(until)
        self.timestamps = timestamps
        self.version = version
        self.trace = trace

    @classmethod
    def of(cls, request: LogsRequest, trace_id: str | None) -> Options:
        """What a request asks for; `trace_id`: None where it came in V1.  BadRequestError: it makes no sense."""
        if request.tail < 0:
            raise BadRequestError(f"tail must not be negative: {request.tail}")
        neither = not (request.stdout or request.stderr)
        return cls(
            stdout=request.stdout or neither,
            stderr=request.stderr or neither,
            tail=request.tail,
            since=_bound(request.since, request.since_nanos),
            until=_bound(request.until, request.until_nanos),
            timestamps=request.timestamps,
            version=1 if trace_id is None else 2,
            trace=(trace_id or "").encode("utf-8", "surrogateescape"),
        )

    def reader(
        self, path: str, output: str = "", trace: bytes = b"", unended: bool = False, keep_open: bool = False
    ) -> LogReader:
        """A reader of the agent's own log at `path`, which gives frames where no other `output` is named."""
        return LogReader(
            path, self, output=output or f"v{self.version}", trace=trace, unended=unended, keep_open=keep_open, own=True
        )


class LogReader:
    """Reads a log for one request, step by step, so that the caller chooses the thread of each step.

    `output`, `trace`, `part_limit`: as `_logs.Engine` has them.  `unended`: a last line
    without its newline is given too (else it is taken to be in the making).
    `keep_open`: `engine` and `file` are left where a follower goes on, with the
    texts whose end has not been seen.  `own`: the log is in a directory that only
    we write to.  Elsewhere a symbolic link anywhere in its path is refused.

    What is written after the first step is not given.
    """

    __slots__ = (
        "_bounds",
        "_files",
        "_filters",
        "_keep_open",
        "_no_links",
        "_nowait",
        "_options",
        "_steps",
        "_unended",
        "engine",
        "file",
        "path",
    )  # fmt: skip

    def __init__(
        self,
        path: str,
        options: Options | None = None,
        *,
        output: str = "entries",
        trace: bytes = b"",
        unended: bool = True,
        keep_open: bool = False,
        own: bool = False,
        part_limit: int = 1 << 20,
    ) -> None:
        self.path = path
        self._options = options = options or Options()
        self._filters: dict[str, Any] = {
            "stdout": options.stdout, "stderr": options.stderr, "since": options.since, "until": options.until,
        }  # fmt: skip
        self.engine = Engine(output, trace=trace, timestamps=options.timestamps, part_limit=part_limit, **self._filters)
        self.file: LogFile | None = None
        self._files: list[LogFile] = []  # newest first
        self._bounds: list[tuple[int, int]] = []  # of each: from, to
        self._unended = unended
        self._keep_open = keep_open
        self._no_links = not own
        self._nowait = False
        self._steps = self._run()

    def step(self, nowait: bool = False) -> Any:
        """The next piece of output, which may be empty; None: that was all.

        nowait: BLOCKED if the step had to wait for the disk; nothing is lost then, and
        a step without nowait goes on.
        """
        self._nowait = nowait
        return next(self._steps, None)

    async def next(self) -> Any:
        """The next output, for an event loop: a thread makes the steps that wait for the disk.  None: that was all."""
        # Not at the top: without an agent there is no event loop.
        from asyncio import get_running_loop, sleep

        while True:
            piece = self.step(nowait=True)
            if piece is BLOCKED:
                piece = await get_running_loop().run_in_executor(None, self.step)
            if piece is None or piece:
                return piece
            await sleep(0)

    def close(self) -> None:
        """Close the files before the end is reached."""
        with suppress(ValueError):  # a thread is in the middle of a step, and the last to hold on
            self._steps.close()
        self._files.clear()
        self.file = None

    def _run(self) -> Generator[Any, None, None]:
        starts = None
        for attempt in range(_ATTEMPTS):
            try:
                starts = yield from self._plan()
                break
            except BlockingIOError:
                # Truncated while we looked.
                if attempt + 1 == _ATTEMPTS:
                    raise
        for number in range(len(self._files) - 1, -1, -1):
            file = self.file = self._files[number]
            low, high = self._bounds[number]
            skip = None
            if starts is not None:
                skip = tuple(0 if f > number else at if f == number else high for f, at in starts)
                low = max(low, min(skip))
            self.engine.seek(low, skip)
            yield from self._forward(file, high)
            if number:
                # Nothing is ever added to a rotated file; a torn last line is not continued in the next.
                yield self.engine.end_file(file.fd, high)
        if not self._keep_open and self.file is not None:
            yield self.engine.finish(self.file.fd if self._unended else None, self._bounds[0][1])

    def _forward(self, file: LogFile, end: int) -> Iterator[Any]:
        while True:
            status, output = self.engine.read(file.fd, end=end, nowait=self._nowait)
            if output:
                yield output
            if status == BLOCKED:
                yield BLOCKED
            elif status in (END, CHANGED):
                # CHANGED: truncated and written anew.  What was there is gone; a follower begins anew.
                return
            elif not output:
                yield output

    def _plan(self) -> Generator[Any, None, tuple[tuple[int, int], ...] | None]:
        """Choose the files and where in them to read; gives the streams' beginnings where there is a tail."""
        self._files.clear()
        self._bounds.clear()
        tail, since, until = self._options.tail, self._options.since, self._options.until
        scan = TailScan(tail, unended=self._unended, **self._filters) if tail else None
        file: LogFile | None = None
        while file is None:
            try:
                file = open_newest(self.path, self._nowait, self._no_links)
            except BlockingIOError:
                yield BLOCKED
        while file is not None:
            low, high, complete = 0, file.size(), False
            if high > BISECT_FROM and self._nowait and (since is not None or until is not None):
                yield BLOCKED
            if high > BISECT_FROM and since is not None:
                low = bisect(file.fd, high, _nearest(since - SLACK))
                complete = low > 0
            if high > BISECT_FROM and until is not None:
                cut = bisect(file.fd, high, _nearest(until + SLACK), after=True)
                high = max(cut, low)
            self._files.append(file)
            self._bounds.append((low, high))
            if scan is not None:
                scan.open(high, low)
                while (status := scan.step(file.fd, nowait=self._nowait)) != END:
                    yield BLOCKED if status == BLOCKED else self.engine.nothing
                if scan.done:
                    break
            if complete:
                break
            newer: LogFile = file
            try:
                file = open_neighbour(self.path, newer, 1, self._nowait, self._no_links)
            except BlockingIOError:
                yield BLOCKED
                file = open_neighbour(self.path, newer, 1, no_links=self._no_links)
        return None if scan is None else scan.starts


def _nearest(stamp: int) -> int:
    return max(_FIRST, min(stamp, _LAST))


def _bound(seconds: int, nanos: int) -> int | None:
    """An end of a request's range in ns; zero is none."""
    return seconds * _SECOND + nanos if seconds or nanos else None


def read_log(
    path: str,
    *,
    stdout: bool = True,
    stderr: bool = True,
    tail: int = 0,
    since: int | None = None,
    until: int | None = None,
    timestamps: bool = False,
) -> Iterator[Entry]:
    """The entries of a log file and its rotated siblings, oldest first.

    `path`: the log itself, `ID.log`; older lines are taken from `ID.log.1` and
    so on.  Options says what the keyword arguments mean.

    An entry has `stream`, `data` (the line, without its newline), `timestamp`
    (Unix ns, 0: not known) and `partial` (the line goes on in the next entry
    of this stream, or its end is missing).  Memory stays under 8 MiB whatever
    the files' size.  OSError: the log cannot be read.
    """
    options = Options(stdout=stdout, stderr=stderr, tail=tail, since=since, until=until, timestamps=timestamps)
    reader = LogReader(path, options)
    try:
        while (entries := reader.step()) is not None:
            yield from entries
    finally:
        reader.close()

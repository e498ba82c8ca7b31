"""Reads a log with its rotated siblings: the last lines, or those of a time, oldest first.

Needs no agent: it works in a rescue shell, and on any host that has the files.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from arcbox_agent._logs import BLOCKED, CHANGED, END, Engine, line_at
from arcbox_agent._logscan import TailScan, bisect
from arcbox_agent.errors import BadRequestError
from arcbox_agent.logs.files import (
    MOST_DECOMPRESSED_TOGETHER,
    CompressedError,
    LogFile,
    open_neighbour,
    open_newest,
    unread,
)  # fmt: skip
from arcbox_agent.logs.mark import Mark

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

#: The longest line that an agent writes.
LINE_WINDOW = 262144

#: How often a log that is truncated during the search for its end is searched again.
_ATTEMPTS = 5


class Options:
    """What is wanted of a log: which lines, and how they are given.

    `tail`: only so many of the last lines, 0: all.  `since`, `until`: Unix ns, both inclusive; a line whose
    time is not known is outside every range.  `timestamps`: each line begins with its time.
    `after`: only what comes behind the entry with this cursor.  `only_new`: only what comes behind the
    present end.  `version`, `trace`, `detail`: of the frames that a client is sent.
    """

    __slots__ = (
        "after", "detail", "only_new", "since", "stderr", "stdout", "tail", "timestamps", "trace", "until", "version",
    )  # fmt: skip

    def __init__(
        self,
        *,
        stdout: bool = True,
        stderr: bool = True,
        tail: int = 0,
        since: int | None = None,
        until: int | None = None,
        timestamps: bool = False,
        after: str = "",
        only_new: bool = False,
        version: int = 1,
        trace: bytes = b"",
        detail: bool = False,
    ) -> None:
        """ValueError: they exclude each other, or `after` is no cursor."""
        if tail < 0:
            raise ValueError("tail must not be negative")
        if (tail > 0) + bool(after) + only_new > 1:
            raise ValueError("only one of tail, after and only_new can say where to begin")
        self.after = Mark(after) if after else None
        self.only_new = only_new
        self.detail = detail
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
        try:
            return cls._of(request, trace_id, neither)
        except ValueError as error:
            raise BadRequestError(str(error)) from None

    @classmethod
    def _of(cls, request: LogsRequest, trace_id: str | None, neither: bool) -> Options:
        return cls(
            stdout=request.stdout or neither,
            stderr=request.stderr or neither,
            tail=request.tail,
            since=_bound(request.since, request.since_nanos),
            until=_bound(request.until, request.until_nanos),
            timestamps=request.timestamps,
            version=1 if trace_id is None else 2,
            trace=(trace_id or "").encode("utf-8", "surrogateescape"),
            after=request.after,
            only_new=request.only_new,
            detail=request.detail,
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
        "_complete",
        "_damaged",
        "_files",
        "_filters",
        "_form",
        "_keep_open",
        "_no_links",
        "_nowait",
        "_options",
        "_output",
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
        self._form: dict[str, Any] = {
            "trace": trace, "timestamps": options.timestamps, "part_limit": part_limit,
            "detail": options.detail or output == "entries", "eager": options.detail and keep_open,
        }  # fmt: skip
        self._output = output
        self.engine = Engine(output, **self._form, **self._filters)
        self.file: LogFile | None = None
        self._files: list[LogFile] = []  # newest first
        self._bounds: list[tuple[int, int]] = []  # of each: from, to
        self._unended = unended
        self._keep_open = keep_open
        self._no_links = not own
        self._nowait = False
        self._complete = False
        self._damaged = ""
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
        stream = "stdout" if self._options.stdout else "stderr"
        if self._damaged:
            yield self.engine.gap(stream, 0, 0, True, self._damaged)
        if self._no_links and self._complete:
            for name in unread(self.path):
                reason = f"{name} is not read: only regular files named .1, .1.gz ... are"
                yield self.engine.gap(stream, 0, 0, True, reason)
        for number in range(len(self._files) - 1, -1, -1):
            file = self.file = self._files[number]
            low, high = self._bounds[number]
            skip = None
            if starts is not None:
                skip = tuple(0 if f > number else at if f == number else high for f, at in starts)
                low = max(low, min(skip))
            self.engine.seek(low, skip, file.inode)
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
        self._damaged = ""
        if self._options.after is not None:
            return (yield from self._plan_after(self._options.after))
        tail, since, until = self._options.tail, self._options.since, self._options.until
        scan = TailScan(tail, unended=self._unended, **self._filters) if tail else None
        file: LogFile | None = None
        while file is None:
            try:
                file = open_newest(self.path, self._nowait, self._no_links)
            except BlockingIOError:
                yield BLOCKED
        if self._options.only_new:
            if self._nowait:
                yield BLOCKED
            end = _last_line(file.fd, file.size())
            self._files.append(file)
            self._bounds.append((end, end))
            return None
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
                # Without a wait none is decompressed, so none can be damaged.
                file = open_neighbour(self.path, newer, 1, True, self._no_links) if self._nowait else self._older(newer)
            except BlockingIOError:
                yield BLOCKED
                file = self._older(newer)
        # All older files were wanted.
        self._complete = file is None
        return None if scan is None else scan.starts

    def _older(self, file: LogFile) -> LogFile | None:
        """The next older file; None: there is none, or it is damaged, which ends the log there and is told.

        CompressedError: it is damaged, and there is no gap to tell it by.
        """
        try:
            older = open_neighbour(self.path, file, 1, no_links=self._no_links)
            if older is not None and older.decompressed:
                if sum(each.decompressed for each in (*self._files, older)) > MOST_DECOMPRESSED_TOGETHER:
                    text = f"with newer ones it has more than {MOST_DECOMPRESSED_TOGETHER >> 20} MiB decompressed"
                    raise CompressedError(errno.EFBIG, text, "a compressed file")
            return older
        except CompressedError as error:
            if not self._form["detail"]:
                raise
            name = os.path.basename(error.filename)
            self._damaged = f"{name} is not read, nor what is older: {error.strerror}"
            return None

    def _plan_after(self, mark: Mark) -> Generator[Any, None, tuple[tuple[int, int], ...] | None]:
        """As _plan, for what comes behind a cursor."""
        needed = {mark.file, *(start[0] for start in mark.starts if start is not None)}
        if self._nowait:
            yield BLOCKED
        file: LogFile | None = open_newest(self.path, no_links=self._no_links)
        while file is not None:
            self._files.append(file)
            self._bounds.append((0, file.size()))
            needed.discard(file.inode)
            if not needed:
                break
            file = self._older(file)
        found = self._find(mark) if not needed else None
        if found is not None:
            starts, left_out = found
            self.engine.go_on_in_texts(mark.began, left_out)
            return starts
        first = line_at(self._files[-1].fd, 0)
        if mark.stamp and first is not None and first[0] <= mark.stamp:
            # There are lines from before it: another file has its lines, or the clock was set back.
            filters = {**self._filters, "since": max(self._filters["since"] or _FIRST, _nearest(mark.stamp + 1))}
            self.engine = Engine(self._output, **self._form, **filters)
        stream = "stdout" if self._options.stdout else "stderr"
        yield self.engine.gap(stream, 0, 0, True, "the place of the cursor is not in the log any more")
        return None

    def _find(self, mark: Mark) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]] | None:
        """Where each stream goes on: (file, offset), and bytes of its next line to leave out; None: it is gone."""
        numbers = {file.inode: number for number, file in reversed(list(enumerate(self._files)))}
        number = numbers[mark.file]
        size = self._bounds[number][1]
        if mark.taken == 0 and mark.stamp == 0 and mark.offset == size:
            line = (0, 0, size)
        else:
            found = line_at(self._files[number].fd, mark.offset)
            if found is None or (found[0] != mark.stamp and not (mark.taken == 0 and mark.stamp == 0)):
                return None
            line = found
        starts = [(number, line[2])] * 3
        left_out = [0, 0, 0]
        if mark.taken is not None:
            starts[line[1]] = (number, mark.offset)
            left_out[line[1]] = mark.taken
            if mark.stamp == 0 and mark.taken == 0:
                starts = [(number, mark.offset)] * 3
        for stream, start in enumerate(mark.starts):
            if start is not None:
                starts[stream] = (numbers[start[0]], start[1])
                left_out[stream] = start[2]
        return tuple(starts), tuple(left_out)


def _last_line(fd: int, size: int) -> int:
    """Where the last line begins, if its newline is missing, or else the end."""
    low = max(0, size - LINE_WINDOW)
    block = os.pread(fd, size - low, low)
    return low + block.rfind(b"\n") + 1 if b"\n" in block or low == 0 else size


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
    after: str = "",
) -> Iterator[Entry]:
    """The entries of a log file and its rotated siblings, oldest first.

    `path`: the log itself, `ID.log`; older lines are taken from `ID.log.1` and
    so on.  Options says what the keyword arguments mean.

    An entry has `stream`, `data` (the line, without its newline), `timestamp`
    (Unix ns, 0: not known) and `partial` (the line goes on in the next entry
    of this stream, or its end is missing), `cursor` (the place behind it, for `after`)
    and `gap` (None, or a Gap: output is lost in this place).  Memory stays under 8 MiB whatever
    the files' size.  OSError: the log cannot be read.
    """
    options = Options(
        stdout=stdout, stderr=stderr, tail=tail, since=since, until=until, timestamps=timestamps, after=after
    )
    reader = LogReader(path, options)
    try:
        while (entries := reader.step()) is not None:
            yield from entries
    finally:
        reader.close()

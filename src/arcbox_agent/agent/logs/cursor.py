"""A place in a log that moves on with it: over rotation, truncation, removal and re-creation.

It follows the file and not its writer, so the log may have any writer.
"""

from __future__ import annotations

import enum

from arcbox_agent import _logs
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.logs.files import LogFile, find, look, open_if_there, open_neighbour, place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from arcbox_agent._log_history import LogHistory
    from arcbox_agent._logs import Engine

log = Logger("logs")

#: Bytes of output of one read, about: enough to make the overhead of a reply small, and few
#: enough to let other connections run.
TARGET = 131072
#: Bytes of input of one read, as filters may let little through.
BUDGET = 1 << 20


class Read(enum.Enum):
    """How a read ended; the values are those of Engine.read."""

    MORE = _logs.MORE  # there is more to read now
    END = _logs.END  # that was all for now
    BLOCKED = _logs.BLOCKED  # only with nowait: the rest has to wait for the disk
    CHANGED = _logs.CHANGED  # the file was truncated, or is not the one to read on in


#: By the engine's number.
_READS = tuple(Read)
MORE, END, BLOCKED, CHANGED = _READS


class Cursor:
    """Reads a log's lines as they come, each once."""

    __slots__ = ("_history", "_older", "engine", "file", "next_file", "path")

    def __init__(self, path: str, engine: Engine, file: LogFile | None, history: LogHistory | None = None) -> None:
        """history: what the log's capture knows of files that are gone."""
        self.path = path
        self._history = history
        self.engine = engine
        self.file = file
        #: A newer file that has nothing in it yet: to be watched as well.
        self.next_file: LogFile | None = None
        self._older = self._look_at_older()

    def fork(self) -> Cursor:
        """Another cursor at the same place."""
        other = Cursor.__new__(Cursor)
        other.path = self.path
        other._history = self._history
        other.engine = self.engine.clone()
        other.file = self.file
        other.next_file = self.next_file
        other._older = self._older
        return other

    def is_at(self, other: Cursor) -> bool:
        """The same place, with no half-read text: what comes next is the same for both."""
        return (
            self.file is not None
            and other.file is not None
            and self.file.inode == other.file.inode
            and self.file.device == other.file.device
            and self.engine.is_like(other.engine)
        )

    def read(self, nowait: bool = False, end: int | None = None) -> tuple[Read, Any]:
        """The next output: `(MORE | END | BLOCKED, output)`; END without output: that is all for now.

        end: read no further in the present file.  OSError: the log cannot be read.
        """
        while True:
            if self.file is None:
                first = self._oldest_unknown()
                if first is None:
                    return END, self.engine.nothing
                self._enter(first)
            file = self.file
            assert file is not None
            status, output = self._read(file, nowait, end)
            if status is CHANGED:
                return self._begin_again(file)
            if status is not END or output or (end is not None and self.engine.offset >= end):
                return status, output
            if file.size() < self.engine.offset:
                return self._begin_again(file)
            status, output = self._go_on(file, nowait)
            if status is not CHANGED:
                return status, output
            end = None
            if output:
                return END, output

    def _read(self, file: LogFile, nowait: bool, end: int | None = None) -> tuple[Read, Any]:
        number, output = self.engine.read(file.fd, end=end, target=TARGET, budget=BUDGET, nowait=nowait)
        return _READS[number], output

    def _begin_again(self, file: LogFile) -> tuple[Read, Any]:
        # The file was truncated: what was not read before is gone, and what comes is new.
        line = self.engine.line_offset
        if line is not None and file.size() >= line:
            # Only an unfinished line was cut away.  Where more was, the next read finds that.
            return MORE, self.engine.step_back()
        output = self.engine.cut() + self._gap((0, 0), (0, 0), False, "the log was truncated")
        self.engine.seek(0, None, file.inode)
        # What was truncated may have been copied first.
        self._older = self._look_at_older()
        return MORE, output

    def _go_on(self, file: LogFile, nowait: bool) -> tuple[Read, Any]:
        """At the file's end: CHANGED if there is a newer one to go on with."""
        if file.is_same(look(self.path)):
            self.next_file = None
            return END, self.engine.nothing
        newer = self._newer(file)
        if newer is None:
            return END, self.engine.nothing
        newer = self._begun(newer)
        if newer.size() == 0:
            # It exists, but its writer may not have left the old file yet.
            self.next_file = newer
            return END, self.engine.nothing
        # The writer has left the old file, so this is its true end.
        status, output = self._read(file, nowait)
        if output or status is not END:
            return status, output
        output = self.engine.end_file(file.fd)
        if find(self.path, file) is None:
            output += self._missed(file, newer)
        self._enter(newer)
        return CHANGED, output

    def _missed(self, file: LogFile, newer: LogFile) -> Any:
        """The file is gone, and perhaps others behind it that were not read."""
        exact, lost_bytes, lost_lines = False, (0, 0), (0, 0)
        if self._history is not None:
            exact, lost_bytes, lost_lines = self._history.lost_between(file.inode, newer.inode)
        reason = "it was rotated away before it was read"
        if not exact and lost_lines == (0, 0):
            log.warning("a log that was being read was removed; it is read on in the next file", path=self.path)
            reason = "the log was removed while it was read"
        return self._gap(lost_bytes, lost_lines, exact, reason)

    def _gap(self, lost_bytes: Sequence[int], lost_lines: Sequence[int], exact: bool, reason: str) -> Any:
        """An entry for each stream that has lost something; one, where it is not known which."""
        wanted = [stream for stream in (0, 1) if self.engine.wants[stream]]
        lost = [stream for stream in wanted if lost_bytes[stream]]
        output = self.engine.nothing
        if lost or not exact:
            output = self.engine.cut()
        for stream in lost or ([] if exact else wanted[:1]):
            name = ("stdout", "stderr")[stream]
            output += self.engine.gap(name, lost_bytes[stream], lost_lines[stream], not exact, reason)
        return output

    def _newer(self, file: LogFile) -> LogFile | None:
        if find(self.path, file) is not None:
            return open_neighbour(self.path, file, -1)
        return self._oldest_unknown()

    def _begun(self, newer: LogFile) -> LogFile:
        """The first that has something in it, where a file was rotated empty; or the newest, to be waited for."""
        files = [newer]
        while files[-1].size() == 0:
            after = open_neighbour(self.path, files[-1], -1)
            if after is None:
                break
            files.append(after)
        # Each but the last could be written to until the last one was: so look at their sizes again.
        return next((file for file in files if file.size()), files[-1])

    def _oldest_unknown(self) -> LogFile | None:
        """The oldest of the files that were not there before ours."""
        oldest = None
        for number in range(1000):
            status = look(place(self.path, number))
            if status is None:
                if number > 2:
                    break
                continue
            if _identity(status) in self._older:
                break
            oldest = open_if_there(place(self.path, number)) or oldest
        return oldest

    def _enter(self, file: LogFile) -> None:
        self.file = file
        self.next_file = None
        self.engine.seek(0, None, file.inode)
        self._older = self._look_at_older()

    def _look_at_older(self) -> frozenset[int]:
        """The files that are older than this one: they must not be taken for new when this one is removed."""
        number = find(self.path, self.file) if self.file is not None else 0
        older = set()
        while number is not None and (status := look(place(self.path, number + 1))) is not None:
            older.add(_identity(status))
            number += 1
        return frozenset(older) if older else _NONE


_NONE: frozenset[int] = frozenset()


def _identity(status: Any) -> int:
    # Not the inode alone: by the time of the comparison another file may have it.
    return hash((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))

"""The agent's own log: a line per event on stderr, for people and for grep.

    2026-11-23T20:01:02.345Z info  server: connection refused peer="uid 1000" listener=unix:/run/a.sock

A value that is not plain text is quoted, so an event is always one line and no peer
can forge another.  While a request is served, its lines carry its peer and, in V2,
its trace id: they come from a context variable, which tasks inherit.

Writing never blocks the loop.  A line goes out when stderr has room for it and is
dropped, and counted, when it has not; the count follows with the next line that
goes through.  O_NONBLOCK is no way to do that: it would belong to the open file,
which the agent shares with whoever started it.  Any thread may write.

A line never ends what it tells of: nothing here is imported or opened when there may
be no descriptor left for it, and what goes wrong all the same counts as a line dropped.
"""

from __future__ import annotations

import select
import sys
import time
from _thread import allocate_lock
from contextvars import ContextVar
from os import write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40
LEVELS = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR}
_NAMES = {level: f"{name:<7}" for name, level in LEVELS.items()}

#: Characters of a value that a line shows: a peer's request may hold a megabyte of them.
MOST_OF_VALUE = 1024
#: The same for the trace of an error: its beginning and its end.
MOST_OF_TRACE = 8192

#: A pipe or a tty that polls as writable takes this much without blocking (pipe(7)).
_ATOMIC = 4096
#: Seconds.  A line of another thread takes no time: it is written where there is room.
_PATIENCE = 1.0


#: What the lines of the request being served end with: its peer (`uid 0 pid 123`, `cid 2`) and its
#: trace id.  A tuple, which tasks and contexts that outlive the request may keep.
current_labels: ContextVar[tuple[str, str | None] | None] = ContextVar("current_labels", default=None)


class Sink:
    """Where lines go, and from which level on."""

    __slots__ = ("_lock", "_poll", "_torn", "dropped", "fd", "level")

    def __init__(self, fd: int = 2, level: int = INFO) -> None:
        self.fd = fd
        self.level = level
        self.dropped = 0  # since the last line that went through
        self._torn = False  # of the last line only the beginning went through
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        # A poll object that is in use refuses a second thread.
        self._lock = allocate_lock()

    def write(self, line: str) -> bool:
        """Write one line; whether all of it went out.  A short one does so whole or not at all."""
        # Not for ever: a signal's handler may log in the middle of a line of the same thread.
        if self._lock.acquire(timeout=_PATIENCE):
            try:
                if self.dropped:
                    lost = self.dropped
                    if self._write(f"{_now()} {_NAMES[WARNING]} log: {lost} lines could not be written and are lost\n"):
                        self.dropped -= lost
                if not self.dropped and self._write(line):
                    return True
            finally:
                self._lock.release()
        self.drop()
        return False

    def drop(self) -> None:
        """Count a line that cannot be written."""
        self.dropped += 1
        on_drop()

    def _write(self, line: str) -> bool:
        octets = line.encode("utf-8", "backslashreplace")
        if self._torn:
            octets = b"\n" + octets
        start = 0
        try:
            for start in range(0, len(octets), _ATOMIC):
                if not any(event & select.POLLOUT for _, event in self._poll.poll(0)):
                    break
                write(self.fd, octets[start : start + _ATOMIC])
            else:
                self._torn = False
                return True
        except OSError:
            pass  # the reader is gone (EPIPE), or the disk is full: nobody can be told
        self._torn |= start > 0
        return False


def _count_nowhere() -> None:
    pass


sink = Sink()
#: Called for each line that was dropped: the daemon counts them.
on_drop: Callable[[], None] = _count_nowhere


def _now() -> str:
    seconds = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"


def quote(value: object, most: int = MOST_OF_VALUE) -> str:
    """A value as it stands in a line: bare where it is one plain word, cut behind `most` characters.

    What was cut is counted behind it: `"aaa"...+97`.
    """
    text = value if isinstance(value, str) else str(value)
    if len(text) > most:
        return f"{quote(text[:most])}...+{len(text) - most}"
    if text and text.isascii() and text.isprintable() and not any(c in text for c in ' "=\\'):
        return text
    return f'"{"".join(map(_escape, text))}"'


#: As Python's literals have them.  (The codec that does the same is a file to be opened.)
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}


def _escape(c: str) -> str:
    known = _ESCAPES.get(c)
    if known is not None:
        return known
    if c.isprintable():
        return c
    number = ord(c)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def fields(values: dict[str, Any]) -> str:
    return "".join([f" {name}={quote(value)}" for name, value in values.items()])


def _of_request() -> str:
    labels = current_labels.get()
    if labels is None:
        return ""
    peer, trace_id = labels
    trace = f" trace={quote(trace_id)}" if trace_id else ""
    return f" peer={quote(peer)}{trace}"


def prepare_traces() -> ModuleType:
    """What traces are made with, imported when the agent listens: later there may be no descriptor for it."""
    import traceback

    return traceback


class Logger:
    """The lines of one component."""

    __slots__ = ("component",)

    def __init__(self, component: str) -> None:
        self.component = component

    def _log(self, level: int, message: str, values: dict[str, Any], trace: str = "") -> None:
        if level < sink.level:
            return
        # A message is ours and plain; what came from elsewhere belongs into the values.
        try:
            sink.write(f"{_now()} {_NAMES[level]} {self.component}: {message}{fields(values)}{trace}{_of_request()}\n")
        except Exception:  # a value that has no text, no memory
            sink.drop()

    def log(self, level: int, message: str, **values: Any) -> None:
        self._log(max((known for known in _NAMES if known <= level), default=DEBUG), message, values)

    def debug(self, message: str, **values: Any) -> None:
        self._log(DEBUG, message, values)

    def info(self, message: str, **values: Any) -> None:
        self._log(INFO, message, values)

    def warning(self, message: str, **values: Any) -> None:
        self._log(WARNING, message, values)

    def error(self, message: str, **values: Any) -> None:
        self._log(ERROR, message, values)

    def exception(self, message: str, error: BaseException, **values: Any) -> None:
        """An error with its trace, which stays on the one line."""
        try:
            traceback = prepare_traces()
            trace = "".join(traceback.format_exception(error))
        except Exception:  # no descriptor to import it with, or to read the sources
            trace = _places(error)
        trace = trace.rstrip("\n")
        if len(trace) > MOST_OF_TRACE:
            half = MOST_OF_TRACE // 2
            trace = f"{trace[:half]}\n... {len(trace) - 2 * half} characters ...\n{trace[-half:]}"
        self._log(ERROR, message, {**values, "error": repr(error)}, f" traceback={quote(trace, 2 * MOST_OF_TRACE)}")


def _places(error: BaseException) -> str:
    """Where an error came by, the least that tells it, with nothing that must be imported."""
    places = []
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        places.append(f"{code.co_filename}:{step.tb_lineno} in {code.co_name}")
        step = step.tb_next
    return "\n".join(places)


def write_stderr(text: str) -> None:
    """For what must be said before or after there is a log: it may block."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        pass

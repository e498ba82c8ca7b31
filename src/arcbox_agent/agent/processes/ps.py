"""Processes as rows of ps: what `top` shows of a container.

psutil is imported with the first table: it takes 30 ms and 3 MB, which an agent that is
never asked for one need not spend.
"""

from __future__ import annotations

import os
import time

from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.processes.stat_line import stat_fields
from arcbox_agent.errors import BadRequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    import psutil

    class Members(Protocol):
        def pids(self) -> set[int]: ...

    #: A column: its heading, and its value for one process.
    Column = tuple[str, Callable[["_Row"], str]]

log = Logger("processes")

#: Processes in one table, those of the lowest pids: a container that forks without end must not
#: make a reply that no frame can hold.
MAX_PROCESSES = 1024
#: Characters of one command line, for the same reason.
MAX_COMMAND = 4096

# Of /proc/PID/stat, counted from the state on.
_STATE, _PGRP, _SESSION, _TTY, _FOREGROUND = 0, 2, 3, 4, 5

_DAY = 24 * 60 * 60


class _Row:
    """One process, and what several columns need of it."""

    __slots__ = ("fields", "now", "process")

    def __init__(self, process: psutil.Process, fields: list[bytes], now: float) -> None:
        self.process = process
        self.fields = fields
        self.now = now

    def cpu(self) -> float:
        """Seconds of CPU time, without that of its children."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def age(self) -> float:
        return max(0.0, self.now - self.process.create_time())


def _user(row: _Row) -> str:
    return str(row.process.username())


def _share(row: _Row) -> float:
    """Per cent of one CPU, over the whole life of the process: as ps counts it."""
    age = row.age()
    return 100 * row.cpu() / age if age > 0 else 0.0


def _stat(row: _Row) -> str:
    nice = row.process.nice()
    state = row.fields[_STATE].decode()
    state += "<" if nice < 0 else "N" if nice > 0 else ""
    state += "s" if int(row.fields[_SESSION]) == row.process.pid else ""
    state += "l" if row.process.num_threads() > 1 else ""
    return state + ("+" if row.fields[_FOREGROUND] == row.fields[_PGRP] else "")


def _tty(row: _Row) -> str:
    # Not psutil's terminal(): its list of terminals is made once, and a container's may be newer.
    number = int(row.fields[_TTY])
    major, minor = os.major(number), os.minor(number)
    if 136 <= major <= 143:
        return f"pts/{minor + 256 * (major - 136)}"
    if major == 4:
        return f"tty{minor}" if minor < 64 else f"ttyS{minor - 64}"
    return "?"


def _started(row: _Row) -> str:
    began, now = time.localtime(row.process.create_time()), time.localtime(row.now)
    if began.tm_year != now.tm_year:
        return str(began.tm_year)
    return time.strftime("%H:%M" if began.tm_yday == now.tm_yday else "%b%d", began)


def _clock(seconds: float) -> str:
    """`[DD-]HH:MM:SS`."""
    days, rest = divmod(int(seconds), _DAY)
    return (f"{days}-" if days else "") + f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"


def _elapsed(row: _Row) -> str:
    """`[[DD-]HH:]MM:SS`."""
    text = _clock(row.age())
    return text.removeprefix("00:")


def _minutes(row: _Row) -> str:
    seconds = int(row.cpu())
    return f"{seconds // 60}:{seconds % 60:02}"


def _name(row: _Row) -> str:
    return str(row.process.name())


def _command(row: _Row) -> str:
    words = row.process.cmdline()
    if words:
        return " ".join(words)[:MAX_COMMAND]
    return f"[{_name(row)}]" + (" <defunct>" if row.fields[_STATE] == b"Z" else "")


#: The words of `ps -o`; several may mean the same.
COLUMNS: dict[str, Column] = {
    "pid": ("PID", lambda row: str(row.process.pid)),
    "ppid": ("PPID", lambda row: str(row.process.ppid())),
    "pgid": ("PGID", lambda row: row.fields[_PGRP].decode()),
    "sid": ("SID", lambda row: row.fields[_SESSION].decode()),
    "user": ("USER", _user),
    "uid": ("UID", lambda row: str(row.process.uids().effective)),
    "gid": ("GID", lambda row: str(row.process.gids().effective)),
    "c": ("C", lambda row: str(min(99, int(_share(row))))),
    "pcpu": ("%CPU", lambda row: f"{_share(row):.1f}"),
    "pmem": ("%MEM", lambda row: f"{row.process.memory_percent():.1f}"),
    "vsz": ("VSZ", lambda row: str(row.process.memory_info().vms // 1024)),
    "rss": ("RSS", lambda row: str(row.process.memory_info().rss // 1024)),
    "nlwp": ("NLWP", lambda row: str(row.process.num_threads())),
    "ni": ("NI", lambda row: str(row.process.nice())),
    "s": ("S", lambda row: row.fields[_STATE].decode()),
    "stat": ("STAT", _stat),
    "tty": ("TTY", _tty),
    "stime": ("STIME", _started),
    "start": ("START", _started),
    "etime": ("ELAPSED", _elapsed),
    "etimes": ("ELAPSED", lambda row: str(int(row.age()))),
    "time": ("TIME", lambda row: _clock(row.cpu())),
    "bsdtime": ("TIME", _minutes),
    "comm": ("COMMAND", _name),
    "args": ("COMMAND", _command),
}
COLUMNS |= {
    alias: COLUMNS[word]
    for alias, word in {
        "pgrp": "pgid", "sess": "sid", "euser": "user", "euid": "uid", "egid": "gid", "%cpu": "pcpu", "%mem": "pmem",
        "vsize": "vsz", "rssize": "rss", "thcount": "nlwp", "nice": "ni", "state": "s", "tt": "tty", "cputime": "time",
        "ucmd": "comm", "command": "args",
    }.items()
}  # fmt: skip
COLUMNS["cmd"] = ("CMD", _command)

#: `ps -ef`, `ps aux`, and ps without either.
FULL: Sequence[Column] = [("UID", _user), *(COLUMNS[word] for word in "pid ppid c stime tty time cmd".split())]
USERS: Sequence[Column] = [
    COLUMNS[word] for word in "user pid %cpu %mem vsz rss tty stat start bsdtime command".split()
]
BASIC: Sequence[Column] = [*(COLUMNS[word] for word in "pid tty time".split()), ("CMD", _name)]


def columns(ps_args: str) -> Sequence[Column]:
    """The columns that options of ps ask for; without any, those of `-ef`.

    `-ef`, `aux` and `-o WORD,WORD=HEADING` are known.  BadRequestError: others.
    """
    layout = BASIC
    chosen: list[Column] = []
    words = iter(ps_args.split())
    for word in words:
        letters, o, rest = word.removeprefix("-").partition("o")
        if not (letters or o) or set(letters) - set("aAefux"):
            raise BadRequestError(f"unknown ps option {word!r}: -ef, aux and -o with a list of columns are known")
        layout = USERS if "u" in letters else FULL if "f" in letters else layout
        if o:
            chosen += _listed(rest or next(words, ""))
    return chosen or (layout if ps_args.strip() else FULL)


def _listed(text: str) -> list[Column]:
    """`pid,comm=NAME`: the columns of one -o."""
    found: list[Column] = []
    for item in text.split(","):
        word, equals, heading = item.partition("=")
        if word not in COLUMNS:
            raise BadRequestError(f"unknown ps column {word!r}: known are {', '.join(sorted(COLUMNS))}")
        title, value = COLUMNS[word]
        found.append((heading if equals else title, value))
    return found


def table(scope: Members, wanted: Sequence[Column]) -> list[list[str]]:
    """The values of `wanted`, a row for each process of a scope, in order of pid.  For a thread.

    A process that ends meanwhile is left out.
    """
    import psutil

    now = time.time()
    found: dict[int, list[str]] = {}
    pids = sorted(scope.pids())
    if len(pids) > MAX_PROCESSES:
        log.warning("not all processes of a container are shown", processes=len(pids), shown=MAX_PROCESSES)
    for pid in pids[:MAX_PROCESSES]:
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                fields = stat_fields(pid)
                if not fields:
                    continue
                row = _Row(process, fields, now)
                found[pid] = [value(row) for _, value in wanted]
        except (psutil.NoSuchProcess, OSError):
            continue
    # Still in the scope after it was read: so the number was not used again by another process.
    still = scope.pids()
    return [row for pid, row in found.items() if pid in still]

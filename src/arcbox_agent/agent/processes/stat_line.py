"""/proc/PID/stat: the state of a process, its parent, and when it began.

    PID (NAME) STATE PPID PGRP SESSION ...

The fields are counted from STATE on: NAME is whatever the process chose.
"""

from __future__ import annotations

import os

from arcbox_agent.agent.processes.status import ExitStatus

STATE, PPID, PGRP, SESSION, START_TIME = 0, 1, 2, 3, 19

#: Addresses of a process's code and stack.
_MEMORY = slice(23, 26)
#: Since Linux 3.5.
_EXIT_CODE = 49


def fields_of(line: bytes) -> list[bytes]:
    """The fields of a line of /proc/PID/stat, from STATE on."""
    # The name may hold spaces and brackets; what follows it cannot.
    return line[line.rfind(b")") + 2 :].split()


def stat_fields(pid: int | str) -> list[bytes] | None:
    """As fields_of; None: there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            line = file.read(4096)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields_of(line)


def start_time_in(line: bytes) -> int:
    """When a process began, from its stat line; 0: it is not whole."""
    fields = fields_of(line)
    return int(fields[START_TIME]) if len(fields) > START_TIME else 0


def start_time_of(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None: there is no such process."""
    fields = stat_fields(pid)
    return int(fields[START_TIME]) if fields else None


def zombie_status(pid: int, start_time: int) -> ExitStatus | None:
    """How a process ended whose status its parent has not taken yet; None: it is no such zombie."""
    fields = stat_fields(pid)
    if not fields or fields[STATE] != b"Z" or int(fields[START_TIME]) != start_time or len(fields) <= _EXIT_CODE:
        return None
    return ExitStatus.of_wait_status(int(fields[_EXIT_CODE]))


def zombies() -> list[int]:
    """Children of this process that have ended and whose status nobody has taken."""
    try:
        first = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return []
    if first is None:
        return []
    # WNOWAIT always shows the same child, which may have an owner: look at all of them.
    return _children_in(b"Z", os.getpid())


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal."""
    fields = stat_fields(pid)
    return fields is not None and fields[:1] == [b"T"]


def stopped_before_exec(parent: int) -> list[int]:
    """Children that were stopped before they executed their program: their memory is still their parent's."""
    spawner = stat_fields(parent)
    if not spawner:
        return []
    found = []
    for pid in _children_in(b"T", parent):
        fields = stat_fields(pid)
        if fields and fields[STATE] == b"T" and fields[_MEMORY] == spawner[_MEMORY]:
            found.append(pid)
    return found


def _children_in(state: bytes, parent: int) -> list[int]:
    found = []
    me = str(parent).encode()
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = stat_fields(name)
            if fields and fields[STATE] == state and fields[PPID] == me:
                found.append(int(name))
    return found

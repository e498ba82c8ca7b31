"""The scope of a process where there is no cgroup2: its session, and the descendants of that.

A process that leaves its session after its parent has ended is missed.  A cgroup misses
nothing.
"""

from __future__ import annotations

import os
import signal

from arcbox_agent.agent.processes.stat_line import PGRP, PPID, SESSION, START_TIME, STATE, stat_fields

#: Later than the start of any process.
_NEVER = 1 << 62


class ProcessSession:
    """The session that `leader` began, and the descendants of what is in it.  Leader 0: nothing yet."""

    __slots__ = ("_leader", "_seen", "_start_time")

    reusable = False

    def __init__(self, leader: int = 0, start_time: int = _NEVER) -> None:
        self._leader = leader
        self._start_time = start_time
        #: Members found before, pid to start time: they stay members when their parents are gone.
        self._seen: dict[int, int] = {}

    def child(self, name: str) -> ProcessSession:
        """A command has a session of its own wherever it runs."""
        return ProcessSession()

    def create(self, parents: bool = True) -> None:
        """Nothing has to be made."""

    def open(self) -> int:
        return -1

    def keep_open(self) -> int:
        return -1

    def bind(self, pid: int, start_time: int) -> None:
        self._leader = pid
        self._start_time = start_time

    def alive(self) -> bool:
        try:
            return bool(self._members())
        except OSError:
            return True  # no descriptor is left to look with: the caller asks again

    def pids(self) -> set[int]:
        return set(self._members())

    def counted(self) -> dict[str, int]:
        """The kernel counts nothing for a session (see Cgroup.counted)."""
        return {}

    def send_signal(self, sig: int) -> int:
        sent = 0
        for pid, start in self._members().items():
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                fields = stat_fields(pid)
                if fields and int(fields[START_TIME]) == start:
                    signal.pidfd_send_signal(pidfd, sig)
                    sent += 1
            except ProcessLookupError:
                continue
            finally:
                os.close(pidfd)
        return sent

    def kill(self) -> None:
        # Again until none is left: one of them may fork meanwhile.
        for _ in range(100):
            if not self.send_signal(signal.SIGKILL):
                return

    def frozen(self) -> bool:
        return False

    def remove(self) -> bool:
        return True

    def dissolve(self) -> None:
        """What runs goes on."""

    def _members(self) -> dict[int, int]:
        """The processes that run, pid to start time."""
        if not self._leader:
            return {}
        table: dict[int, tuple[int, int, int, int]] = {}
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            fields = stat_fields(name)
            if fields and fields[STATE] not in (b"Z", b"X"):
                table[int(name)] = (
                    int(fields[PPID]),
                    int(fields[PGRP]),
                    int(fields[SESSION]),
                    int(fields[START_TIME]),
                )
        leader = table.get(self._leader)
        # The kernel does not reuse the number of a session while anything is in it.  So where a
        # process of that pid began at another time, nothing of this session is left.
        reused = leader is not None and leader[3] != self._start_time
        found = {
            pid: row[3]
            for pid, row in table.items()
            if (not reused and self._leader in (row[1], row[2]) and row[3] >= self._start_time)
            or self._seen.get(pid) == row[3]
        }
        # Descendants that made sessions of their own.
        grown = True
        while grown:
            grown = False
            for pid, row in table.items():
                if pid not in found and row[0] in found:
                    found[pid] = row[3]
                    grown = True
        self._seen = found
        return found

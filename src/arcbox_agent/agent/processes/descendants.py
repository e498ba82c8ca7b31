"""Everything that a process started, where there is no cgroup to tell: by session and by ancestry.

A process that leaves its session after its parent has ended is missed; a cgroup
misses nothing.
"""

from __future__ import annotations

import os
import signal

from arcbox_agent.agent.processes.children import stat_fields

# Of /proc/PID/stat, counted from the state on.
_STATE, _PPID, _PGRP, _SESSION, _START = 0, 1, 2, 3, 19


class Session:
    """The session that `leader` began, and the descendants of what is in it."""

    __slots__ = ("leader", "seen", "start_time")

    def __init__(self, leader: int, start_time: int) -> None:
        self.leader = leader
        self.start_time = start_time
        #: What was found once, by pid and start time: it is still ours when its parent is gone.
        self.seen: dict[int, int] = {}

    def alive(self) -> bool:
        try:
            return bool(self._members())
        except OSError:
            return True  # no descriptor left to look with: whoever asks, asks again

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
                if fields and int(fields[_START]) == start:
                    signal.pidfd_send_signal(pidfd, sig)
                    sent += 1
            except ProcessLookupError:
                continue
            finally:
                os.close(pidfd)
        return sent

    def kill(self) -> None:
        # Again until none is left: one of them may fork while we look.
        for _ in range(100):
            if not self.send_signal(signal.SIGKILL):
                return

    def remove(self) -> bool:
        return True

    def _members(self) -> dict[int, int]:
        """Those that run, by pid: when they began."""
        table: dict[int, tuple[int, int, int, int]] = {}
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            fields = stat_fields(name)
            if fields and fields[_STATE] not in (b"Z", b"X"):
                table[int(name)] = (
                    int(fields[_PPID]),
                    int(fields[_PGRP]),
                    int(fields[_SESSION]),
                    int(fields[_START]),
                )
        leader = table.get(self.leader)
        # The number of a session stays taken as long as anything is in it.  A leader that
        # began at another time is a stranger's, and then nothing of ours is left in it.
        stranger = leader is not None and leader[3] != self.start_time
        found = {
            pid: row[3]
            for pid, row in table.items()
            if (not stranger and self.leader in (row[1], row[2]) and row[3] >= self.start_time)
            or self.seen.get(pid) == row[3]
        }
        # Descendants that made sessions of their own.
        grown = True
        while grown:
            grown = False
            for pid, row in table.items():
                if pid not in found and row[0] in found:
                    found[pid] = row[3]
                    grown = True
        self.seen = found
        return found

"""The pid file of a container: what became of its spawn, for an agent that did not see it.

    RUN_DIR/containers/ID/pid    the child's own stat line, or `failed ERRNO STEP` behind it

The agent that spawns holds the file's lock, and so does the child until it executes its
program.  A later agent reads how the spawn ended once it gets the lock.  Another child that the
killed agent made meanwhile, and that somebody froze before its first step, may hold the lock too:
then the child itself tells, which has the file open until it executes its program.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time

from arcbox_agent._spawn import STEPS
from arcbox_agent.agent.config import budget
from arcbox_agent.agent.containers.runtimes.protocol import NotStarted
from arcbox_agent.agent.processes.stat_line import START_TIME, STATE, fields_of, start_time_of, stat_fields

#: In the run directory of the container.
NAME = "pid"

#: Seconds between two attempts to take the lock.
_PAUSE = 0.002


def create(path: str) -> int:
    """An empty pid file, locked: the descriptor for SpawnSpec.pid_fd."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read(path: str) -> tuple[int, int] | NotStarted | None:
    """(pid, start time); None: there is no file.  BlockingIOError: that spawn is under way, or has failed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if (child := _executed(fd)) is None:
                raise
            return child
        octets = os.read(fd, 8192)
    finally:
        os.close(fd)
    line, _, rest = octets.partition(b"\n")
    fields = fields_of(line)
    if not line or len(fields) <= START_TIME:
        return NotStarted("the agent was killed while it started the container")
    words = rest.split()
    if words[:1] == [b"failed"] and len(words) == 3:
        return NotStarted(f"{STEPS[int(words[2])]}: {os.strerror(int(words[1]))}")
    return int(line.split()[0]), int(fields[START_TIME])


def _executed(fd: int) -> tuple[int, int] | None:
    """The child that a locked file names, where it is there and has come to its program."""
    line = os.pread(fd, 8192, 0).partition(b"\n")[0]
    fields = fields_of(line)
    if len(fields) <= START_TIME:
        return None
    pid, start_time = int(line.split()[0]), int(fields[START_TIME])
    # By name: to ask what a file is, its file system may have to answer.
    name = os.readlink(f"/proc/self/fd/{fd}")
    try:
        for each in os.listdir(f"/proc/{pid}/fd"):
            try:
                if os.readlink(f"/proc/{pid}/fd/{each}") == name:
                    return None
            except FileNotFoundError:
                continue  # closed meanwhile
        # Looked at last: the pid may have become another's.  A zombie has closed all files, whether it executed or not.
        now = stat_fields(pid)
        return (pid, start_time) if now and now[STATE] != b"Z" and int(now[START_TIME]) == start_time else None
    except OSError:
        return None  # it has ended, or may not be looked at


def wait(path: str) -> tuple[int, int] | NotStarted | None:
    """As `read`, once a spawn under way is over; it has FORMER_SPAWN for that.  For a thread."""
    give_up = time.monotonic() + budget.FORMER_SPAWN
    while True:
        try:
            return read(path)
        except BlockingIOError:
            if time.monotonic() > give_up:
                kill(path)
                raise
        time.sleep(_PAUSE)


def kill(path: str) -> None:
    """Kill the child of a spawn that has not come to its program, where it has written down its pid."""
    try:
        with open(path, "rb") as file:
            line = file.read(8192).partition(b"\n")[0]
    except FileNotFoundError:
        return
    fields = fields_of(line)
    if len(fields) <= START_TIME:
        return
    try:
        pidfd = os.pidfd_open(int(line.split()[0]))
    except OSError:
        return  # it has ended
    try:
        if start_time_of(int(line.split()[0])) == int(fields[START_TIME]):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)

"""Cgroups: everything that a container or a command started, found and ended as a whole.

Only membership is used, no controller.  So the `unified` hierarchy of a hybrid layout,
which has none, serves as well as a pure cgroup2.  Where there is no cgroup2, or it
cannot be written, descendants.py takes its place.
"""

from __future__ import annotations

import errno
import os
import signal
import time

from arcbox_agent._spawn import read_at
from arcbox_agent.agent.config import budget
from arcbox_agent.agent.processes import cgroup_tree

#: The name of a command's cgroup begins with this; an id of a container cannot.
COMMAND_PREFIX = ".exec-"
#: The same for a detached command, which outlives the agent.
DETACHED_PREFIX = ".detached-"


def mount_point() -> str | None:
    """Where cgroup2 is mounted; None: nowhere."""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
            found = [fields[1] for fields in map(str.split, file) if len(fields) > 2 and fields[2] == "cgroup2"]
    except OSError:
        return None
    return found[0] if found else None


def find_parent(name: str) -> str | None:
    """Make the directory for all cgroups of this agent; None: there can be none."""
    root = mount_point()
    if root is None:
        return None
    path = os.path.join(root, name)
    try:
        os.makedirs(path, mode=0o755, exist_ok=True)
    except OSError:
        return None
    return path if os.access(os.path.join(path, "cgroup.procs"), os.W_OK) else None


class Cgroup:
    """One cgroup and those below it.  Each method is a few system calls on kernel memory."""

    __slots__ = ("_fd", "path")

    reusable = True

    def __init__(self, path: str) -> None:
        self.path = path
        #: What `keep_open` has opened; -1: nothing.
        self._fd = -1

    def __del__(self) -> None:
        self._close()

    def create(self, parents: bool = True) -> None:
        if parents:
            os.makedirs(self.path, mode=0o755, exist_ok=True)
        else:
            os.mkdir(self.path, mode=0o755)

    def open(self) -> int:
        """The descriptor for a child to be born in it."""
        return os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def keep_open(self) -> int:
        """The same, open until this is removed or forgotten: for one that many are born in, one after the other."""
        if self._fd < 0:
            self._fd = self.open()
        return self._fd

    def child(self, name: str) -> Cgroup:
        return Cgroup(os.path.join(self.path, name))

    def bind(self, pid: int, start_time: int) -> None:
        """Nothing has to be noted: the process was born in it."""

    def alive(self) -> bool:
        """Whether anything runs in it.  Zombies do not count."""
        try:
            return b"populated 1" in self._events()
        except OSError as error:
            # If it is gone, nothing runs in it.  If it cannot be read (no descriptor is left),
            # something may: the caller asks again.
            return error.errno not in (errno.ENOENT, errno.ENODEV)

    def pids(self) -> set[int]:
        """OSError: they cannot be known, as no descriptor is left."""
        found: set[int] = set()
        short: list[OSError] = []

        def look(cgroup: int) -> None:
            try:
                file = os.open("cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=cgroup)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    short.append(error)
                return  # or it was removed meanwhile
            with open(file, "rb") as procs:
                found.update(map(int, procs.read().split()))

        cgroup_tree.visit(self.path, look)
        if short:
            raise short[0]
        found.discard(0)  # a process of a pid namespace that cannot be seen from here
        return found

    def frozen(self) -> bool:
        """Whether what is born in it waits until it, or one above it, is thawed."""
        try:
            return b"frozen 1" in self._events()
        except OSError:
            return False  # before Linux 5.2, or it is gone

    def counted(self) -> dict[str, int]:
        """What the kernel counts for all that runs or ran in it, as far as its controllers do.

        `cpu_ns`; `memory` (bytes, without page cache that the kernel can drop at once) and
        `memory_limit`; `read_bytes` and `write_bytes` of disks; `tasks` (processes and threads).
        """
        found = {}
        cpu, memory = self._numbers("cpu.stat"), self._number("memory.current")
        if "usage_usec" in cpu:
            found["cpu_ns"] = cpu["usage_usec"] * 1000
        if memory is not None:
            found["memory"] = max(0, memory - self._numbers("memory.stat").get("inactive_file", 0))
        for name, file in (("memory_limit", "memory.max"), ("tasks", "pids.current")):
            number = self._number(file)
            if number is not None:
                found[name] = number
        transfers = self._read("io.stat")
        if transfers is not None:
            # A line for each disk: `8:0 rbytes=1 wbytes=2 ...`.
            pairs = [pair.partition("=") for pair in transfers.split() if "=" in pair]
            for name, key in (("read_bytes", "rbytes"), ("write_bytes", "wbytes")):
                found[name] = sum(int(number) for word, _, number in pairs if word == key)
        return found

    def send_signal(self, sig: int) -> int:
        """To every process in it; returns how many there were.  OSError: to none, as no descriptor is left."""
        sent = 0
        pidfds: dict[int, int] = {}
        try:
            for pid in self.pids():
                try:
                    pidfds[pid] = os.pidfd_open(pid)
                except OSError:
                    continue
            # What is still in the cgroup now that a pidfd holds it is no other process of the same pid.
            for pid in self.pids() & pidfds.keys():
                try:
                    signal.pidfd_send_signal(pidfds[pid], sig)
                    sent += 1
                except ProcessLookupError:
                    continue
        finally:
            for pidfd in pidfds.values():
                os.close(pidfd)
        return sent

    def kill(self) -> None:
        """SIGKILL for every process in it, those included that fork meanwhile."""
        try:
            self._write("cgroup.kill", b"1")
            return
        except FileNotFoundError:
            if not os.path.isdir(self.path):
                return
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
        # Before Linux 5.14: freeze it first, so that nothing can fork meanwhile.
        self._try_write("cgroup.freeze", b"1")
        try:
            for _ in range(100):
                if not self.send_signal(signal.SIGKILL):
                    break
                if not self.alive():
                    break
        finally:
            self._try_write("cgroup.freeze", b"0")

    def remove(self) -> bool:
        """Remove it and all below it; False: something runs in it."""
        if not self._remove():
            return False
        self._close()
        return True

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _remove(self) -> bool:
        give_up = time.monotonic() + budget.CGROUPS_REMOVED
        for attempt in range(20):
            try:
                os.rmdir(self.path)
                return True
            except FileNotFoundError:
                return True
            except OSError as error:
                if error.errno != errno.EBUSY or self.alive():
                    return False
            cgroup_tree.remove_below(self.path)
            if time.monotonic() > give_up:
                return False
            if attempt:
                # It is empty, but the kernel is not done with its last process yet.
                time.sleep(0.001 * attempt)
        return False

    def dissolve(self) -> None:
        """Remove it; what runs in it moves to the cgroup above."""
        for _ in range(3):
            if self.remove():
                return
            self.leave_to(Cgroup(os.path.dirname(self.path)))

    def leave_to(self, other: Cgroup) -> None:
        """Move what runs in it to another cgroup."""
        for _ in range(20):
            try:
                pids = self.pids()
            except OSError:
                return
            if not pids:
                return
            for pid in pids:
                try:
                    other._write("cgroup.procs", b"%d" % pid)
                except OSError:
                    continue

    def _events(self) -> bytes:
        if self._fd >= 0:
            return read_at(self._fd, b"cgroup.events")
        return read_at(-1, self.path + "/cgroup.events")

    def _read(self, name: str) -> str | None:
        """A file of its own; None: there is none, as its controller is off."""
        try:
            with open(os.path.join(self.path, name), encoding="ascii") as file:
                return file.read()
        except OSError:
            return None

    def _number(self, name: str) -> int | None:
        """None: there is no such file, or it says `max`."""
        text = (self._read(name) or "").strip()
        return int(text) if text.isdigit() else None

    def _numbers(self, name: str) -> dict[str, int]:
        """A file with lines like `usage_usec 17`."""
        pairs = [line.split(" ") for line in (self._read(name) or "").splitlines()]
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}

    def _write(self, name: str, octets: bytes) -> None:
        fd = os.open(os.path.join(self.path, name), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, octets)
        finally:
            os.close(fd)

    def _try_write(self, name: str, octets: bytes) -> None:
        try:
            self._write(name, octets)
        except OSError:
            pass

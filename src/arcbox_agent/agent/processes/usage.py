"""What the processes of a scope use: CPU time, memory, disk.

The kernel's own count for the cgroup is taken where there is one, as it holds what ended
processes used too.  The rest is summed over the processes by psutil (see ps.py for when
it is imported).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol

    import psutil

    class Counted(Protocol):
        def pids(self) -> set[int]: ...
        def counted(self) -> Mapping[str, int]: ...


#: Processes that are summed, those of the lowest pids: each costs about 0.1 ms.
MAX_PROCESSES = 4096

_SUMMED = frozenset({"cpu_ns", "memory", "read_bytes", "write_bytes", "tasks"})


class Usage:
    """Of one scope, at one moment."""

    __slots__ = ("cpu_ns", "cpus", "memory", "memory_limit", "read_bytes", "system_cpu_ns", "tasks", "write_bytes")

    def __init__(self, counted: Mapping[str, int], *, system_cpu_ns: int, cpus: int, total_memory: int) -> None:
        self.cpu_ns = counted.get("cpu_ns", 0)
        #: CPU time of the whole guest, idle time included, all CPUs added up.
        self.system_cpu_ns = system_cpu_ns
        self.cpus = cpus
        #: Bytes, without page cache that the kernel can drop.
        self.memory = counted.get("memory", 0)
        #: Bytes: the cgroup's limit, or what the guest has.
        self.memory_limit = min(counted.get("memory_limit", total_memory), total_memory)
        self.read_bytes = counted.get("read_bytes", 0)
        self.write_bytes = counted.get("write_bytes", 0)
        #: Processes and their threads.
        self.tasks = counted.get("tasks", 0)


def measure(scope: Counted) -> Usage:
    """What the processes of a scope use.  For a thread."""
    import psutil

    counted = dict(scope.counted())
    if _SUMMED - counted.keys():
        counted = {**_sum(scope), **counted}
    times = psutil.cpu_times()
    # Guest time is in user and nice already.
    busy_and_idle = sum(times) - times.guest - times.guest_nice
    return Usage(
        counted,
        system_cpu_ns=round(busy_and_idle * 1e9),
        cpus=psutil.cpu_count() or 1,
        total_memory=psutil.virtual_memory().total,
    )


def _sum(scope: Counted) -> dict[str, int]:
    import psutil

    sums = dict.fromkeys(_SUMMED, 0)
    for pid in sorted(scope.pids())[:MAX_PROCESSES]:
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                times = process.cpu_times()
                figures = {
                    # The children's are of those that have ended and were waited for.
                    "cpu_ns": round((times.user + times.system + times.children_user + times.children_system) * 1e9),
                    "memory": _memory(process),
                    "tasks": process.num_threads(),
                }
                figures["read_bytes"], figures["write_bytes"] = _disk(process)
        except (psutil.NoSuchProcess, OSError):
            continue  # it has ended
        for name, figure in figures.items():
            sums[name] += figure
    return sums


def _memory(process: psutil.Process) -> int:
    import psutil

    try:
        # The proportional share: pages that several processes have are counted once in their sum.
        return int(process.memory_full_info().pss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)


def _disk(process: psutil.Process) -> tuple[int, int]:
    import psutil

    try:
        counters = process.io_counters()
    except psutil.AccessDenied:
        return 0, 0  # another user's, and the agent is not root
    return counters.read_bytes, counters.write_bytes

"""How much memory there is for the agent: the guest's, or that of the cgroup it is in."""

from __future__ import annotations

#: Where the memory of a cgroup is, by the hierarchy's line in /proc/self/cgroup: version 2 and 1.
_V2 = ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
_V1 = ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")

#: A version 1 cgroup without a limit has one that is larger than any machine.
_NO_LIMIT = 1 << 60


class Memory:
    """Bytes; `total`: all that there is."""

    __slots__ = ("_group", "_limit", "total")

    def __init__(self) -> None:
        self._group: tuple[str, str, str] | None = None  # directory, file of the usage, name of what can be dropped
        self._limit = _NO_LIMIT
        try:
            self._find_group()
        except (OSError, ValueError):
            pass  # no cgroup bounds it, as far as can be seen
        self.total = min(self._limit, _meminfo("MemTotal"))

    def _find_group(self) -> None:
        for line in _read("/proc/self/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            mount, limit, usage, droppable = _V1 if controllers else _V2
            try:
                text = _read(f"{mount}{path}/{limit}").strip()
            except OSError:
                continue
            if text != "max" and int(text) < self._limit:
                self._limit = int(text)
                self._group = (f"{mount}{path}", usage, droppable)

    def available(self) -> int:
        """What can still be taken, without that anything is killed; all there is where that cannot be told."""
        try:
            left = _meminfo("MemAvailable")
            if self._group is not None:
                directory, usage, droppable = self._group
                held = int(_read(f"{directory}/{usage}"))
                for line in _read(f"{directory}/memory.stat").splitlines():
                    name, _, value = line.partition(" ")
                    if name == droppable:
                        held -= int(value)
                left = min(left, self._limit - held)
            return left
        except (OSError, ValueError):
            return self.total


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _meminfo(name: str) -> int:
    for line in _read("/proc/meminfo").splitlines():
        key, _, rest = line.partition(":")
        if key == name:
            return int(rest.split()[0]) << 10
    return _NO_LIMIT

"""Logs once a minute what may happen thousands of times a second."""

from __future__ import annotations

from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: The key of those that are too many to be told apart.
_OTHERS = "\0others"


class OncePerMinute:
    """Admits an event once in `interval` seconds, for each key."""

    __slots__ = ("_seen", "interval")

    #: The most keys (a peer each, for instance) that are told apart.  New ones beyond them share one.
    MOST_KEYS = 64

    def __init__(self, interval: float = 60.0) -> None:
        self.interval = interval
        self._seen: dict[str, tuple[float, int]] = {}

    def admit(self, key: str = "") -> int | None:
        """How many events were suppressed since the last one that was admitted; None: suppress this one."""
        now = monotonic()
        if key not in self._seen and len(self._seen) >= self.MOST_KEYS:
            self._seen = {k: seen for k, seen in self._seen.items() if now - seen[0] < self.interval}
            if len(self._seen) >= self.MOST_KEYS:
                key = _OTHERS
        last, suppressed = self._seen.get(key, (float("-inf"), 0))
        if now - last < self.interval:
            self._seen[key] = (last, suppressed + 1)
            return None
        self._seen[key] = (now, 0)
        return suppressed

    def is_full(self, key: str) -> bool:
        """Whether `key` would share the place of all that are too many to tell apart."""
        if key in self._seen or len(self._seen) < self.MOST_KEYS:
            return False
        now = monotonic()
        return sum(now - last < self.interval for last, _ in self._seen.values()) >= self.MOST_KEYS

    def log(self, write: Callable[..., None], message: str, counted: str, key: str = "", /, **values: object) -> None:
        """Write a line where it is admitted; the field `counted` tells how many before it were suppressed."""
        suppressed = self.admit(key)
        if suppressed is not None:
            write(message, **values, **{counted: suppressed})

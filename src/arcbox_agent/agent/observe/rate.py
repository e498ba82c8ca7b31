"""Logs once a minute what may happen thousands of times a second."""

from __future__ import annotations

from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class OncePerMinute:
    """Admits an event once in `interval` seconds, for each key."""

    __slots__ = ("_seen", "interval")

    #: The most keys (a peer each, for instance) that are told apart.  Beyond them new ones are suppressed.
    MOST_KEYS = 64

    def __init__(self, interval: float = 60.0) -> None:
        self.interval = interval
        self._seen: dict[str, tuple[float, int]] = {}

    def admit(self, key: str = "") -> int | None:
        """How many events were suppressed since the last one that was admitted; None: suppress this one."""
        now = monotonic()
        last, suppressed = self._seen.get(key, (float("-inf"), 0))
        if now - last < self.interval:
            self._seen[key] = (last, suppressed + 1)
            return None
        if key not in self._seen and len(self._seen) >= self.MOST_KEYS:
            self._seen = {k: seen for k, seen in self._seen.items() if now - seen[0] < self.interval}
            if len(self._seen) >= self.MOST_KEYS:
                return None
        self._seen[key] = (now, 0)
        return suppressed

    def log(self, write: Callable[..., None], message: str, counted: str, key: str = "", /, **values: object) -> None:
        """Write a line where it is admitted; the field `counted` tells how many before it were suppressed."""
        suppressed = self.admit(key)
        if suppressed is not None:
            write(message, **values, **{counted: suppressed})

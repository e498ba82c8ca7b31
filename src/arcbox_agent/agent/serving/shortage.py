"""A guest that is short of memory: what peers make the agent hold goes first, and nothing large is begun.

An agent that is killed for its memory takes the guest with it where it is PID 1.  So while it holds
anything for its peers it looks, once a second, at what memory is left.  The containers' memory is
not its to give back: the kernel's own choice among them is.
"""

from __future__ import annotations

from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.observe.rate import OncePerMinute
from arcbox_agent.errors import UnavailableError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_agent.agent.observe.memory import Memory
    from arcbox_agent.agent.serving.ledger import Ledger

log = Logger("server")

#: Memory is short when less than this part of it is left, but no more and no less than these bytes.
SHORT_PART = 32
SHORT_BYTES = (8 << 20, 64 << 20)

#: Seconds for which one look at the memory counts.
LOOK_COUNTS = 0.1

#: Bytes that were held and are so no more, from which on the heap is worth the work of giving them back.
WORTH_TRIMMING = 4 << 20


class Shortage:
    """`now`: the loop's time.  `give_back`: returns what the heap has free to the system."""

    def __init__(
        self,
        memory: Memory,
        ledger: Ledger,
        counters: dict[str, int],
        now: Callable[[], float],
        give_back: Callable[[], None],
    ) -> None:
        shortest, longest = SHORT_BYTES
        self.least = min(max(shortest, memory.total // SHORT_PART), longest)
        self._memory = memory
        self._ledger = ledger
        self._counters = counters
        self._now = now
        self._give_back = give_back
        self._looked_at = float("-inf")
        self._short = False
        self._most = 0  # bytes held since the heap was last given back
        self._log = OncePerMinute()

    def is_short(self) -> bool:
        """Whether there is too little memory for anything large."""
        now = self._now()
        if now - self._looked_at > LOOK_COUNTS:
            self._looked_at = now
            self._short = self._memory.available() < self.least
        return self._short

    def admit(self, size: int) -> None:
        """UnavailableError: memory is too short for a large request, of `size` bytes."""
        if self.is_short():
            self._counters["requests_refused_memory"] += 1
            self._log.log(log.warning, "request refused: the guest is short of memory", "also_refused", size=size)
            raise UnavailableError("the guest is short of memory: try again later, or with a smaller request")

    def check(self, now: float) -> bool:
        """Called once a second while anything is held (see Watch)."""
        ledger = self._ledger
        self._most = max(self._most, ledger.most)
        ledger.most = ledger.total
        if ledger.total and self.is_short():
            before = ledger.total
            ledger.shed(before // 2)
            self._counters["memory_shed"] += 1
            self._log.log(
                log.warning,
                "the guest is short of memory: what peers do not read is dropped",
                "also_dropped",
                "shed",
                held=before,
                kept=ledger.total,
            )
        if self._most - ledger.total + ledger.evicted > WORTH_TRIMMING:
            self._most = ledger.total
            ledger.evicted = 0
            self._give_back()
        return bool(ledger.total)

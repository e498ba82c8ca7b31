"""Tells of the peers that a listener turned away, however many they are.

The first peers of a minute have a line each, at once.  Who has a range of uids could hide another's
attempt behind thousands of their own, or fill the log with them.  So those beyond are gathered, and
told by name in one line, ranges of neighbours as one; the more often, the longer it waits.
"""

from __future__ import annotations

from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.observe.rate import OncePerMinute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle

log = Logger("listener")

#: Seconds from the first gathered refusal to the line that tells it: doubled with each such line.
WAITS = (0.1, 30.0)

#: Seconds without a gathered refusal after which the first wait is the shortest again.
QUIET = 60.0

#: Peers that one line may tell; more are only counted.
MOST_GATHERED = 8192

#: Characters of their names in one line.
MOST_TEXT = 32 << 10


class RefusedPeers:
    """Those of one listener.  `address`: the listener's."""

    __slots__ = ("_address", "_counts", "_log", "_loop", "_timer", "_told_at", "_uncounted", "_wait")

    def __init__(self, loop: AbstractEventLoop, address: str) -> None:
        self._loop = loop
        self._address = address
        self._log = OncePerMinute()
        self._counts: dict[tuple[str, int], int] = {}  # gathered: kind and number of the peer -> refusals
        self._uncounted = 0
        self._timer: TimerHandle | None = None
        self._wait, _ = WAITS
        self._told_at = 0.0

    def tell(self, peer: str, kind: str, number: int, setting: str) -> None:
        """`peer` in words; `kind`: `uid` or `cid`; `setting`: what would let it in."""
        owner = f"{kind} {number}"
        if not self._log.is_full(owner):
            self._log.log(
                log.warning,
                "connection refused: peer is not allowed",
                "also_refused",
                owner,
                peer=peer,
                listener=self._address,
                setting=setting,
            )
            return
        key = (kind, number)
        if key in self._counts or len(self._counts) < MOST_GATHERED:
            self._counts[key] = self._counts.get(key, 0) + 1
        else:
            self._uncounted += 1
        if self._timer is None:
            shortest, longest = WAITS
            if self._loop.time() - self._told_at > QUIET:
                self._wait = shortest
            self._timer = self._loop.call_later(self._wait, self._tell_gathered)
            self._wait = min(self._wait * 2, longest)

    def _tell_gathered(self) -> None:
        self._timer = None
        self._told_at = self._loop.time()
        counts, self._counts = self._counts, {}
        unnamed, self._uncounted = self._uncounted, 0
        refused = sum(counts.values()) + unnamed
        names = []
        room = MOST_TEXT
        for kind, first, last in ranges(sorted(counts)):
            name = f"{kind} {first}" if first == last else f"{kind} {first}-{last}"
            room -= len(name) + 2
            if room < 0:
                unnamed += sum(counts[kind, number] for number in range(first, last + 1))
            else:
                names.append(name)
        log.warning(
            "connections refused: peers are not allowed",
            peers=", ".join(names),
            refused=refused,
            of_peers_not_named=unnamed,
            listener=self._address,
        )

    def close(self) -> None:
        """Tell what is gathered, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._tell_gathered()


def ranges(peers: list[tuple[str, int]]) -> list[tuple[str, int, int]]:
    """(kind, first, last) of neighbours, of sorted peers."""
    found: list[tuple[str, int, int]] = []
    for kind, number in peers:
        if found and found[-1][0] == kind and found[-1][2] == number - 1:
            found[-1] = (kind, found[-1][1], number)
        else:
            found.append((kind, number, number))
    return found

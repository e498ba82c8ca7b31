"""The bytes that all connections together keep in memory, and who goes when they are too many.

What counts is what a peer holds, on however many connections: a peer is a uid of the guest or a
cid.  So one that holds a little on each of a thousand connections cannot have another closed, and
over the bound it is the peer with the most that loses its largest connection.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Account(Protocol):
        """One connection, as the ledger knows it."""

        charged: int
        #: Whose connection it is: `uid 0`, `cid 2`.
        owner: str
        #: Its peer may only look, and so hold only its share.
        restricted: bool

        def evict(self, charged: int, of_peer: int) -> None:
            """It held `charged` bytes, its peer's largest, and has to give them back at once.

            `of_peer`: what its peer held in all.
            """


class Holder:
    """What one peer holds, on all its connections."""

    __slots__ = ("accounts", "total")

    def __init__(self) -> None:
        self.accounts: set[Account] = set()  # those that are charged anything
        self.total = 0


class Ledger:
    """`limit`: the most bytes that may be charged to all accounts together; `share`: to a peer that may only look."""

    __slots__ = ("_began", "_limit", "_share", "evicted", "holders", "most", "total")

    def __init__(self, limit: int, share: int, began: Callable[[], None] | None = None) -> None:
        self._limit = limit
        self._share = share
        self._began = began  # told that something is held
        self.total = 0
        self.most = 0  # the highest total, and
        self.evicted = 0  # bytes taken from accounts: whoever looks at these sets them back
        self.holders: dict[str, Holder] = {}  # by owner: those that hold anything

    def charge(self, account: Account, size: int) -> None:
        """Charge `size` bytes to `account`, instead of what it was charged; evict the largest over a limit."""
        holder = self.holders.get(account.owner)
        if holder is None:
            holder = self.holders[account.owner] = Holder()
            if self._began is not None:
                self._began()
        self._set(holder, account, size)
        if self.total > self.most:
            self.most = self.total
        if account.restricted and holder.total > self._share:
            self._evict(holder)
        if self.total > self._limit:
            self.shed(self._limit)

    def shed(self, limit: int) -> None:
        """Evict, of the peer that holds most, the largest, until no more than `limit` is held."""
        while self.total > limit:
            self._evict(max(self.holders.values(), key=_total))

    def release(self, account: Account) -> None:
        """Charge nothing to `account` any more."""
        if account.charged:
            self._set(self.holders[account.owner], account, 0)

    def _set(self, holder: Holder, account: Account, size: int) -> None:
        self.total += size - account.charged
        holder.total += size - account.charged
        account.charged = size
        if size:
            holder.accounts.add(account)
            return
        holder.accounts.discard(account)
        if not holder.accounts:
            self.holders.pop(account.owner, None)

    def _evict(self, holder: Holder) -> None:
        largest = max(holder.accounts, key=_charged)
        charged, of_peer = largest.charged, holder.total
        self.evicted += charged
        self.release(largest)
        largest.evict(charged, of_peer)


def _total(holder: Holder) -> int:
    return holder.total


def _charged(account: Account) -> int:
    return account.charged

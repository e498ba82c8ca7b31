"""The bytes that all connections together keep in memory, and who goes when they are too many."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Account(Protocol):
        """One connection, as the ledger knows it."""

        charged: int

        def evict(self, charged: int) -> None:
            """It held `charged` bytes, more than any other, and has to give them back at once."""


class Ledger:
    """`limit`: the most bytes that may be charged to all accounts together."""

    __slots__ = ("_limit", "accounts", "total")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.total = 0
        self.accounts: set[Account] = set()  # those that are charged anything

    def charge(self, account: Account, size: int) -> None:
        """Charge `size` bytes to `account`, instead of what it was charged; evict the largest over the limit."""
        self.total += size - account.charged
        account.charged = size
        if size:
            self.accounts.add(account)
        else:
            self.accounts.discard(account)
        if self.total > self._limit:
            largest = max(self.accounts, key=lambda each: each.charged)
            charged = largest.charged
            self.release(largest)
            largest.evict(charged)

    def release(self, account: Account) -> None:
        """Charge nothing to `account` any more."""
        self.total -= account.charged
        account.charged = 0
        self.accounts.discard(account)

"""What a listener lets its peers do.

Every route names one kind of access, and every listener has a mode: the kinds it
grants.  What a mode refuses is answered with Error 403.
"""

from __future__ import annotations

from enum import IntEnum


class Access(IntEnum):
    """What a call needs.  A call that needs several names the strongest."""

    READ = 1  # look: ping, system info, list, logs, wait
    CONTROL = 2  # change: create, start, stop, kill, remove, shut down, set the clock
    EXEC = 3  # run a command of the peer's choice in the guest or in a container


#: The modes of a listener, `?mode=` in its address.
MODES: dict[str, frozenset[Access]] = {
    "full": frozenset(Access),
    "no-exec": frozenset({Access.READ, Access.CONTROL}),
    "read-only": frozenset({Access.READ}),
}

#: The text of the 403 for each kind.
NEEDS: dict[Access, str] = {
    Access.READ: "reading",
    Access.CONTROL: "changing anything",
    Access.EXEC: "running commands",
}


def is_restricted(allowed: frozenset[Access]) -> bool:
    """Whether peers that are granted only `allowed` may do no more than look: they can hold little."""
    return Access.CONTROL not in allowed

"""Signals by name: as clients write them, and as the agent shows them."""

from __future__ import annotations

import signal

from arcbox_agent.errors import BadRequestError

#: The counted names: where the count begins, and its direction.
_COUNTED = {"RTMIN+": (signal.SIGRTMIN, 1), "RTMAX-": (signal.SIGRTMAX, -1)}


def parse_signal(text: str) -> int:
    """The number of a signal (`KILL`, `sigkill`, `9`, `RTMIN+1`, `RTMAX-2`).  BadRequestError: there is none such."""
    word = text.strip().upper().removeprefix("SIG")
    if _is_number(word):
        number = int(word)
    elif word[:6] in _COUNTED and _is_number(word[6:]):
        base, direction = _COUNTED[word[:6]]
        number = int(base) + direction * int(word[6:])
        if not signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            number = 0
    else:
        found = signal.__dict__.get("SIG" + word) if word.isalnum() else None
        number = int(found) if isinstance(found, signal.Signals) else 0
    if not 1 <= number <= int(signal.SIGRTMAX):
        raise BadRequestError(
            f"unknown signal {text[:64]!r}: a name (TERM, SIGTERM, RTMIN+1, RTMAX-1) "
            f"or a number from 1 to {int(signal.SIGRTMAX)} is one"
        )
    return number


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 4


def signal_name(number: int) -> str:
    """The name of a signal, without SIG: `TERM`, `RTMIN+1`.  parse_signal takes it."""
    if number not in signal.valid_signals():
        return str(number)
    if signal.SIGRTMIN < number < signal.SIGRTMAX:
        return f"RTMIN+{number - signal.SIGRTMIN}"
    return signal.Signals(number).name.removeprefix("SIG")

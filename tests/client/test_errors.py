"""errors.py: the tree it opens with, and errors that travel between processes."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from arcbox_agent import errors
from arcbox_agent.errors import ArcboxError

CLASSES = [one for _, one in inspect.getmembers(errors, inspect.isclass) if one.__module__ == errors.__name__]

#: Arguments of those that take more than a text.
ARGUMENTS = {
    "EncodeError": ("Message.field", "why"),
    "DecodeError": ("Message.field", "why"),
    "FrameTooShortError": (1, 4),
    "FrameTooLargeError": (5, 4),
    "TraceLengthError": (5, 4),
    "TruncatedFrameError": (1, 4),
    "ConfigError": ("setting", "why"),
    "AddressError": ("http://x", "why"),
    "ConnectError": ("unix:///x", "why"),
    "CallTimeoutError": ("Ping", 1.5),
    "GapError": ("stdout", 4096, 10),
    "RequestError": ("what it says", 418),
    "ClockNotSetError": ("forbidden", -1.5),
    "WaitTimeoutError": ("not yet", 1.5),
    "CommandFailedError": (["ls", "é"], 2, b"\xff", b"no luck"),
    "OutputLimitError": (["yes"], 100),
    "ReplyLimitError": ("the list", 100, "ask for less"),
    "TooManyItemsError": ("Message.field", 7, "items"),
}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_pickles_with_all_it_holds(kind: type[Exception]) -> None:
    error = kind(*ARGUMENTS.get(kind.__name__, ("what it says",)))
    error.add_note("trace id 1")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is kind
        assert (str(again), repr(again), again.__dict__) == (str(error), repr(error), error.__dict__)


def test_the_tree_that_the_module_opens_with_is_the_one_there_is() -> None:
    told = {}
    parents: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│├└─ ]*)(\w+Error)\b", line)
        if found:
            depth = len(found[1]) // 4
            parents[depth:] = [found[2]]
            told[found[2]] = parents[depth - 1] if depth else "Exception"
    assert told == {kind.__name__: kind.__mro__[1].__name__ for kind in CLASSES}
    assert all(issubclass(kind, ArcboxError) for kind in CLASSES)

"""_messages: each class on any bytes.  google.protobuf and the plain rules are the judges.

data: which class, then a message's bytes
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from google.protobuf.message import DecodeError as GoogleDecodeError

from arcbox_agent import wire
from arcbox_agent.errors import TooManyItemsError
from tests.reference import messages as plain
from tests.reference.google import GOOGLE, to_plain
from tests.wire.test_vectors import VECTORS
from tools.fuzz.target import Target

#: Error has a layout of its own: it is tried with _wire.
CLASSES = [getattr(wire, name) for name in GOOGLE if name != "Error"]
BOTH = [(cls, GOOGLE[cls.__name__].FromString) for cls in CLASSES]


def corpus() -> list[bytes]:
    return [
        bytes([CLASSES.index(type(message))]) + bytes.fromhex(encoded)
        for message, encoded in VECTORS
        if type(message) in CLASSES
    ]


def run(data: bytes, thorough: bool) -> Hashable:
    if not data:
        return None
    which = data[0] % len(CLASSES)
    (cls, read), body = BOTH[which], data[1:]
    try:
        theirs = read(body)
    except GoogleDecodeError:
        theirs = None
    try:
        message = cls.decode(body)
    except TooManyItemsError as error:
        assert theirs is None or longest(theirs) > error.limit
        return which, error.limit
    except wire.DecodeError as error:
        assert theirs is None, f"google.protobuf takes it: {error}"
        assert error.path.partition(".")[0] == cls.__name__
        if thorough:
            assert refused(cls, body)
        return which, len(error.path), str(error)[-12:]
    assert theirs is not None, "google.protobuf refuses it"
    # NaN is not equal to itself, so bytes are compared.
    encoded = message.encode()
    assert cls.decode(encoded).encode() == encoded
    if thorough:
        assert plain.decode(cls, body).encode() == encoded
        assert to_plain(message) == to_plain(theirs)
        assert cls.decode(bytearray(body)).encode() == cls.decode(memoryview(b"x" + body)[1:]).encode() == encoded
    return which, len(body).bit_length(), len(encoded).bit_length(), len(encoded) < len(body)


def longest(message: Any) -> int:
    """The number of items of the longest list or map in one of google.protobuf's messages."""
    most = 0
    for field, value in message.ListFields():
        whole = field.message_type is not None and not field.message_type.GetOptions().map_entry
        if field.is_repeated:
            most = max(most, len(value), *(map(longest, value) if whole else ()))
        elif whole:
            most = max(most, longest(value))
    return most


def refused(cls: type[wire.Message], body: bytes) -> bool:
    try:
        plain.decode(cls, body)
    except plain.Broken:
        return True
    return False


TARGET = Target(run, corpus, share=120)

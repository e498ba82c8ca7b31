"""_wire: the readers and writers of single values, through classes that have one of each kind.

data: 0  a message of unknown fields, groups among them     the plain rules judge
      1  a field and a value for it                         google.protobuf judges
      2  the body of an Error                               the plain layout judges
"""

from __future__ import annotations

import math
import struct
from collections.abc import Hashable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from arcbox_agent import wire
from arcbox_agent.errors import TooManyItemsError
from tests.reference.google import GOOGLE
from tools.fuzz.draw import Draw
from tools.fuzz.target import Target
from tools.fuzz.targets.messages import CLASSES, refused
from tools.fuzz.targets.messages import corpus as messages

_INTEGERS = {
    3: (-(1 << 63), (1 << 63) - 1),
    4: (0, (1 << 64) - 1),
    5: (-(1 << 31), (1 << 31) - 1),
    13: (0, (1 << 32) - 1),
}
#: Every field of every class that is no message itself.
FIELDS: list[tuple[type[wire.Message], FieldDescriptor]] = [
    (cls, field)
    for cls in CLASSES
    for field in GOOGLE[cls.__name__].DESCRIPTOR.fields
    if field.message_type is None or field.message_type.GetOptions().map_entry
]


def corpus() -> list[bytes]:
    return [
        *(b"\0" + data[1:] for data in messages()),
        b"\0\x1b\x08\x01\x1c\x0b\x13\x1b\x1c\x14\x0c",  # groups in groups
        b"\0" + b"\x0b" * 101 + b"\x0c" * 101,
        *(
            bytes([1, *index.to_bytes(2, "little"), 7, 3, 104, 195, 169, 9, 200, 8, 2, 97, 0, 255])
            for index in range(len(FIELDS))
        ),
        b"\2\0\0\x01\x90\0\0\0\x03one",
        b"\2\xff\xff\xff\xff\0\0\0\0",
    ]


def run(data: bytes, thorough: bool) -> Hashable:
    mode = data[0] % 3 if data else 0
    if mode == 0:
        return unknown(data[1:], thorough)
    if mode == 1:
        return value(Draw(data[1:]))
    return error(data[1:])


def unknown(body: bytes, thorough: bool) -> Hashable:
    """Empty knows no field; Mount knows few: what is not known is skipped, whatever it is."""
    outcomes = []
    for cls in (wire.Empty, wire.Mount):
        try:
            message = cls.decode(body)
        except wire.DecodeError as refusal:
            outcomes.append(str(refusal)[-10:])
            assert not thorough or refused(cls, body)
        else:
            outcomes.append("")
            assert not thorough or not refused(cls, body)
            if cls is wire.Empty:
                assert message.encode() == b""
    return tuple(outcomes)


def value(draw: Draw) -> Hashable:
    """What google.protobuf writes for a value of the field's kind; EncodeError for one that is not."""
    cls, field = FIELDS[draw.number(2) % len(FIELDS)]
    name = field.name
    given, right = values(draw, field)
    message = cls(**{name: given})
    try:
        encoded = message.encode()
    except wire.EncodeError as error:
        assert not right, error
        assert error.path.startswith(f"{cls.__name__}.{name}")
        return name, str(error)[-10:]
    except ValueError as error:
        # Python's own, of a str that has no UTF-8.
        raise AssertionError(f"an exception that is not ours: {error!r}") from error
    assert right, f"{given!r} was written as {encoded!r}"
    theirs = GOOGLE[cls.__name__]()
    if isinstance(given, dict):
        for key, item in given.items():
            getattr(theirs, name)[key] = item if isinstance(item, str) else int(item)
        # The order of a map's entries is each writer's own.
        assert len(encoded) == theirs.ByteSize()
        assert getattr(cls.decode(encoded), name) == given
    else:
        if isinstance(given, list):
            getattr(theirs, name).extend(exactly(item, field.type) for item in given)
        else:
            setattr(theirs, name, exactly(given, field.type))
        assert encoded == theirs.SerializeToString()
        try:
            read = cls.decode(encoded)
        except TooManyItemsError as error:
            # What is written may be read by another, whose bounds are his own.
            assert len(given) > error.limit
            return name, "too many"
        # NaN is not equal to itself.
        assert read.encode() == encoded and (field.type == 1 or getattr(read, name) == given)
    return name, len(encoded).bit_length()


def exactly(given: Any, kind: int) -> Any:
    """As google.protobuf wants it: there a bool is no int."""
    if kind in _INTEGERS:
        return int(given)
    return float(given) if kind == 1 else bool(given) if kind == 8 else given


def values(draw: Draw, field: FieldDescriptor) -> tuple[Any, bool]:
    """A value, and whether it is one of the field's kind."""
    entry = field.message_type
    if entry is not None:
        kind = entry.fields_by_name["value"].type
        pairs = {}
        right = True
        for _ in range(draw.byte() % 40):
            key, key_right = scalar(draw, 9)
            item, item_right = scalar(draw, kind)
            if isinstance(key, dict | list):
                continue
            pairs[key] = item
            right = right and key_right and item_right
        # A key that came twice may have replaced the wrong value.
        right = right or all(fits(key, 9) and fits(item, kind) for key, item in pairs.items())
        return pairs, right
    if field.is_repeated:
        items = [scalar(draw, field.type) for _ in range(draw.byte() % 20)]
        return [item for item, _ in items], all(right for _, right in items)
    return scalar(draw, field.type)


def scalar(draw: Draw, kind: int) -> tuple[Any, bool]:
    if draw.chance(16):
        given: Any = draw.choice([None, 1, "x", b"x", 1.5, True, [], {}, 1 << 70, "\udc80", float("nan"), (), object])
    elif kind in _INTEGERS:
        given = draw.integer()
    elif kind == 9:
        given = draw.block().decode("utf-8", draw.choice(["replace", "ignore", "surrogateescape"]))
    elif kind == 12:
        given = draw.block()
    elif kind == 8:
        given = draw.byte() % 2 == 1
    else:
        given = struct.unpack("<d", draw.take(8).ljust(8, b"\0"))[0]
    return given, fits(given, kind)


def fits(given: Any, kind: int) -> bool:
    if kind in _INTEGERS:
        low, high = _INTEGERS[kind]
        return isinstance(given, int) and low <= given <= high
    if kind == 9:
        return isinstance(given, str) and not any(0xD800 <= ord(letter) < 0xE000 for letter in given)
    if kind == 12:
        return isinstance(given, bytes)
    if kind == 8:  # an int passes, as it does with google.protobuf
        return isinstance(given, int) and 0 <= given <= 1
    return isinstance(given, float) or (isinstance(given, int) and abs(given) < 1 << 1000)


def error(body: bytes) -> Hashable:
    """`decode_error` takes everything; `Error.decode` what is whole."""
    shown = wire.decode_error(body)
    assert -(1 << 31) <= shown.code < 1 << 31 and len(shown.message) <= len(body)
    assert not math.isnan(shown.code)
    try:
        exact = wire.Error.decode(body)
    except wire.DecodeError as refusal:
        return str(refusal)[:20]
    size = int.from_bytes(body[4:8], "big")
    assert exact == shown
    assert exact.encode() == body[: 8 + size]
    return size.bit_length()


TARGET = Target(run, corpus, words=[b"\x0b", b"\x0c", b"\x13", b"\x14"], share=50)

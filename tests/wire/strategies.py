"""Hypothesis's makers of messages and of bytes that are nearly messages."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from arcbox_agent import wire
from tests.reference.google import GOOGLE

#: Every message class whose payload is protobuf; Error has a layout of its own.
CLASSES: list[type[wire.Message]] = [getattr(wire, name) for name in GOOGLE if name != "Error"]

_EDGES = [0, 1, 127, 128, 16383, 16384, 2**31 - 1]
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    1: st.floats(width=64),  # double
    3: st.sampled_from([*_EDGES, -1, -(2**63), 2**63 - 1]) | st.integers(-(2**63), 2**63 - 1),
    4: st.sampled_from([*_EDGES, 2**64 - 1]) | st.integers(0, 2**64 - 1),  # uint64
    5: st.sampled_from([*_EDGES, -1, -(2**31)]) | st.integers(-(2**31), 2**31 - 1),  # int32
    8: st.booleans(),
    9: st.text(max_size=200),
    12: st.binary(max_size=200),
    13: st.sampled_from([*_EDGES, 2**32 - 1]) | st.integers(0, 2**32 - 1),  # uint32
}


def messages(cls: type[wire.Message], *, entries: int = 4) -> st.SearchStrategy[wire.Message]:
    """Messages of a class, of all values that its fields can have.  `entries`: of a map, at most."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field in GOOGLE[cls.__name__].DESCRIPTOR.fields:
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            value = _SCALARS[entry.fields_by_name["value"].type]
            fields[field.name] = st.dictionaries(st.text(max_size=20), value, max_size=entries)
        else:
            one: st.SearchStrategy[Any]
            one = _SCALARS[field.type] if entry is None else messages(getattr(wire, entry.name), entries=entries)
            if field.is_repeated:
                fields[field.name] = st.lists(one, max_size=4)
            else:
                fields[field.name] = one if entry is None else st.none() | one
    return st.fixed_dictionaries({}, optional=fields).map(lambda given: cls(**given))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


#: Varints as no writer makes them: padded, over-long, over-wide.
varints = st.one_of(
    st.integers(0, 2**64 - 1).map(_varint),
    st.sampled_from([2**32 - 1, 2**32, 2**63, 2**64 - 1]).map(_varint),
    st.integers(0, 200).map(lambda n: bytes([n & 0x7F | 0x80, 0x80 | n >> 7, 0])),
    st.integers(1, 12).map(lambda n: b"\x80" * n + b"\x00"),
    st.integers(8, 12).map(lambda n: b"\xff" * n + b"\x01"),
    st.integers(8, 12).map(lambda n: b"\xff" * n + b"\x7f"),
)

_numbers = st.integers(0, 16) | st.sampled_from([100, 101, 106, 2**29 - 1, 2**29, 2**32])
_tags = st.builds(lambda number, kind: _varint(number << 3 | kind), _numbers, st.integers(0, 7))


def _scalar(tag: bytes, value: bytes) -> bytes:
    return tag + value


def _delimited(number: int, body: bytes, lie: int) -> bytes:
    return _varint(number << 3 | 2) + _varint(max(0, len(body) + lie)) + body


def _group(number: int, body: bytes, end: int) -> bytes:
    return _varint(number << 3 | 3) + body + _varint(end << 3 | 4)


_lies = st.sampled_from([0, 0, 0, 0, 1, -1, 2**31, 2**32])
_leaves = st.builds(_scalar, _tags, varints | st.binary(max_size=9)) | st.builds(
    _delimited, _numbers, st.binary(max_size=12), _lies
)

#: Bytes of one field: known or not, of any wire type, whole or not, nested.
fields: st.SearchStrategy[bytes] = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.builds(_delimited, _numbers, st.lists(inner, max_size=3).map(b"".join), _lies),
        st.builds(_group, _numbers, st.lists(inner, max_size=3).map(b"".join), _numbers),
        st.integers(1, 20).flatmap(
            lambda number: st.builds(
                _group, st.just(number), st.lists(inner, max_size=3).map(b"".join), st.just(number)
            )
        ),
    ),
    max_leaves=8,
)

#: Bytes that are nearly a message of some kind.
nearly_messages = st.lists(fields, max_size=6).map(b"".join)


@st.composite
def mutated(draw: st.DrawFn, encoded: bytes) -> bytes:
    """`encoded` with a few bytes changed, cut out, doubled or put in."""
    data = bytearray(encoded)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        what = draw(st.sampled_from(["set", "flip", "cut", "insert", "double", "end"]))
        if what == "set" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif what == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "cut":
            del data[at : at + draw(st.integers(1, 4))]
        elif what == "insert":
            data[at:at] = draw(fields | st.binary(max_size=4))
        elif what == "double":
            data[at:at] = data[: draw(st.integers(0, len(data)))]
        else:
            del data[at:]
    return bytes(data)

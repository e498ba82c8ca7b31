"""Ours against google.protobuf: the same bytes taken, the same refused, the same values."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest
from google.protobuf.message import DecodeError as GoogleDecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcbox_agent import wire
from tests.reference.google import GOOGLE, to_google, to_plain
from tests.wire.strategies import CLASSES, messages, mutated, nearly_messages

#: More of everything: ARCBOX_WIRE_EXAMPLES=5000 pytest tests/wire/test_differential.py
EXAMPLES = int(os.environ.get("ARCBOX_WIRE_EXAMPLES", "30"))

each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
exhaustive = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def google_decode(name: str, data: bytes) -> Any:
    """google.protobuf's plain value, or None where it refuses the bytes."""
    try:
        return to_plain(GOOGLE[name].FromString(data))
    except GoogleDecodeError:
        return None


def our_decode(cls: type[wire.Message], data: bytes) -> Any:
    try:
        return to_plain(cls.decode(data))
    except wire.DecodeError:
        return None


@each_class
@exhaustive
@given(data=st.data())
def test_google_reads_what_we_write_and_we_read_what_google_writes(
    cls: type[wire.Message], data: st.DataObject
) -> None:
    message = data.draw(messages(cls))
    plain = to_plain(message)
    theirs = to_google(message)
    assert to_plain(theirs) == plain
    assert google_decode(cls.__name__, message.encode()) == plain
    assert our_decode(cls, theirs.SerializeToString()) == plain


@each_class
@exhaustive
@given(data=st.data())
def test_a_message_has_the_bytes_google_gives_it(cls: type[wire.Message], data: st.DataObject) -> None:
    # The order of a map's entries is each writer's own: one entry at most, in sub-messages too.
    message = data.draw(messages(cls, entries=1))
    assert message.encode() == to_google(message).SerializeToString()


@each_class
@exhaustive
@given(data=st.data())
def test_bytes_that_were_tampered_with_are_judged_alike(cls: type[wire.Message], data: st.DataObject) -> None:
    encoded = data.draw(mutated(data.draw(messages(cls)).encode()))
    assert our_decode(cls, encoded) == google_decode(cls.__name__, encoded)


@each_class
@exhaustive
@given(encoded=nearly_messages)
def test_bytes_that_are_nearly_a_message_are_judged_alike(cls: type[wire.Message], encoded: bytes) -> None:
    assert our_decode(cls, encoded) == google_decode(cls.__name__, encoded)


@each_class
def test_every_truncation_is_judged_alike(cls: type[wire.Message]) -> None:
    # All fields set, the deepest nested ones too.
    encoded = full(cls).encode()
    for size in range(len(encoded) + 1):
        cut = encoded[:size]
        assert our_decode(cls, cut) == google_decode(cls.__name__, cut), cut.hex()


def full(cls: type[wire.Message]) -> wire.Message:
    """A message with a value in every field."""
    values: dict[str, Any] = {}
    for field in GOOGLE[cls.__name__].DESCRIPTOR.fields:
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            text = entry.fields_by_name["value"].cpp_type == field.CPPTYPE_STRING
            values[field.name] = {"ä": "b", "": ""} if text else {"a": 300}
        elif entry is not None:
            inner = full(getattr(wire, entry.name))
            values[field.name] = [inner, inner] if field.is_repeated else inner
        else:
            one: Any = {1: 1.5, 8: True, 9: "tëxt", 12: b"\x00\xff"}.get(field.type, 300)
            values[field.name] = [one, one] if field.is_repeated else one
    return cls(**values)


#: Bytes that tests/fuzz or a mutation found once, and edges written by hand.
EDGES = [
    line.split("#")[0].strip()
    for line in pathlib.Path(__file__).with_name("edges.txt").read_text().splitlines()
    if line.split("#")[0].strip()
]


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", ["PingRequest", "ExecRequest", "ContainerStats", "SystemInfo", "Empty"])
def test_the_edges_of_the_format_are_judged_alike(name: str, edge: str) -> None:
    data = b"".join(bytes.fromhex(part.split("*")[0]) * int((part.split("*") + ["1"])[1]) for part in edge.split())
    assert our_decode(getattr(wire, name), data) == google_decode(name, data)

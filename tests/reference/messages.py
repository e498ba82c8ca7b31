"""Decoding a message in plain, slow Python: a second opinion beside google.protobuf, and
the part that the fuzzer can see into, so that it is led through every branch of the rules.
"""

from __future__ import annotations

import struct
from typing import Any

from arcbox_agent import wire
from tests.reference.google import GOOGLE

MAX_DEPTH = 100


class Broken(Exception):
    """These bytes are no message."""


def varint(data: bytes, at: int, most: int = 10) -> tuple[int, int]:
    value = shift = 0
    for index in range(at, at + most):
        if index >= len(data):
            raise Broken("cut varint")
        value |= (data[index] & 0x7F) << shift
        if data[index] < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, index + 1
        shift += 7
    raise Broken("long varint")


def tag(data: bytes, at: int, zero: bool) -> tuple[int, int, int]:
    value, at = varint(data, at, 5)
    if value >= 1 << 32:
        raise Broken("number too large")
    if value >> 3 == 0 and not zero:
        raise Broken("number 0")
    return value >> 3, value & 7, at


def block(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = varint(data, at, 5)
    if size > len(data) - at:
        raise Broken("length")
    return data[at : at + size], at + size


def skip(data: bytes, at: int, number: int, kind: int, depth: int) -> int:
    if kind == 0:
        return varint(data, at)[1]
    if kind == 2:
        return block(data, at)[1]
    if kind in (1, 5):
        at += 8 if kind == 1 else 4
        if at > len(data):
            raise Broken("cut value")
        return at
    if kind != 3 or depth >= MAX_DEPTH:
        raise Broken("wire type or depth")
    while at < len(data):
        inner, kind, at = tag(data, at, zero=True)
        if kind == 4:
            if inner != number:
                raise Broken("another group's end")
            return at
        at = skip(data, at, inner, kind, depth + 1)
    raise Broken("cut group")


def text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Broken("not UTF-8") from error


def signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


#: Field type -> wire type, and how its value is read.
KINDS: dict[int, tuple[int, Any]] = {
    1: (1, lambda value: struct.unpack("<d", value)[0]),
    3: (0, lambda value: signed(value, 64)),
    4: (0, lambda value: value),
    5: (0, lambda value: signed(value, 32)),
    8: (0, bool),
    9: (2, text),
    11: (2, None),
    12: (2, lambda value: value),
    13: (0, lambda value: value & 0xFFFFFFFF),
}


def decode(cls: type[wire.Message], data: bytes) -> wire.Message:
    """One of our messages, its fields filled by the plain rules."""
    message = cls()
    merge(message, data, 0)
    return message


def merge(message: wire.Message, data: bytes, depth: int) -> None:
    fields = {field.number: field for field in GOOGLE[type(message).__name__].DESCRIPTOR.fields}
    at = 0
    while at < len(data):
        number, kind, at = tag(data, at, zero=not fields)
        field = fields.get(number)
        if field is not None and field.type == 1 and field.is_repeated and kind == 2:
            packed, at = block(data, at)
            if len(packed) % 8:
                raise Broken("packed doubles")
            getattr(message, field.name).extend(value for (value,) in struct.iter_unpack("<d", packed))
            continue
        if field is None or KINDS[field.type][0] != kind:
            at = skip(data, at, number, kind, depth)
            continue
        raw: Any
        if kind == 0:
            raw, at = varint(data, at)
        elif kind == 2:
            raw, at = block(data, at)
        else:
            raw, at = data[at : at + 8], at + 8
            if len(raw) < 8:
                raise Broken("cut double")
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            map_entry(getattr(message, field.name), entry, raw, depth + 1)
        elif entry is not None:
            inner = None if field.is_repeated else getattr(message, field.name)
            inner = getattr(wire, entry.name)() if inner is None else inner
            merge(inner, raw, depth + 1)
            if field.is_repeated:
                getattr(message, field.name).append(inner)
            else:
                setattr(message, field.name, inner)
        else:
            value = KINDS[field.type][1](raw)
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)


def map_entry(values: dict[str, Any], entry: Any, data: bytes, depth: int) -> None:
    of_text = entry.fields_by_name["value"].type == 9
    key: str = ""
    value: Any = "" if of_text else 0
    known = True
    at = 0
    while at < len(data):
        number, kind, at = tag(data, at, zero=False)
        if (number, kind) == (1, 2):
            raw, at = block(data, at)
            key = text(raw)
        elif (number, kind) == (2, 2) and of_text:
            raw, at = block(data, at)
            value = text(raw)
        elif (number, kind) == (2, 0) and not of_text:
            value, at = varint(data, at)
        else:
            at = skip(data, at, number, kind, depth)
            known = False
    if known:
        values[key] = value

"""_classes: messages made, filled, copied, compared, shown and kept, with values that nobody should give them.

data: calls, each a byte and what it takes
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Hashable
from typing import Any

from arcbox_agent import wire
from tools.fuzz.draw import Draw
from tools.fuzz.target import Target
from tools.fuzz.targets.messages import CLASSES
from tools.fuzz.targets.messages import corpus as messages

#: The most messages that wait to be used again.
POOL = 8


class Text(str):
    """A str that is none to those who look for exactly one."""

    __slots__ = ()


class Number(int):
    """An int whose own code must not run where it is written."""

    def __index__(self) -> int:
        raise AssertionError("an int's own code was run")

    __int__ = __index__

    def __repr__(self) -> str:
        return "Number"


class Items(list[Any]):
    """A list whose own code must not run where it is written."""

    def __iter__(self) -> Any:
        raise AssertionError("a list's own code was run")

    def __len__(self) -> int:
        raise AssertionError("a list's own code was run")


def corpus() -> list[bytes]:
    calls = bytes(range(12))
    return [bytes([0]) + data[:1] + bytes([len(data) % 200]) + data[1:] + calls for data in messages()] + [calls]


def value(draw: Draw, pool: list[wire.Message]) -> Any:
    """Anything at all."""
    kind = draw.byte() % 16
    if kind < 3:
        return draw.choice(pool)
    if kind < 5:
        return [value(draw, pool) for _ in range(draw.byte() % 5)]
    if kind == 5:
        return {draw.block()[:9].decode("latin-1"): value(draw, pool) for _ in range(draw.byte() % 5)}
    if kind == 6:
        return draw.integer()
    if kind == 7:
        return draw.block().decode("utf-8", "surrogateescape")
    if kind == 8:
        return draw.choice([bytes, bytearray, memoryview])(draw.block())
    if kind == 9:
        return Text(draw.block().decode("latin-1"))
    if kind == 10:
        return Number(draw.integer())
    if kind == 11:
        return Items([draw.integer(), draw.choice(pool)])
    if kind == 12:
        return tuple(value(draw, pool) for _ in range(draw.byte() % 4))
    return draw.choice([None, True, 0, 1.5, float("inf"), "", b"", [], (), {}, object(), wire.Message, 1 << 80])


def run(data: bytes, thorough: bool) -> Hashable:
    draw = Draw(data)
    pool: list[wire.Message] = [wire.Empty()]
    trace: list[int] = []
    while draw.more and len(trace) < 10:
        call = draw.byte() % 12
        message = draw.choice(pool)
        trace.append(call)
        if call < 2:
            cls = draw.choice(CLASSES)
            try:
                message = cls.decode(draw.block())
            except wire.DecodeError:
                message = cls()
            put(pool, message)
        elif call == 2:
            cls = draw.choice(CLASSES)
            names = [draw.choice(cls.__match_args__) for _ in range(draw.byte() % 4) if cls.__match_args__]
            put(pool, cls(**{name: value(draw, pool) for name in names}))
        elif call < 5:
            if message.__match_args__:
                setattr(message, draw.choice(message.__match_args__), value(draw, pool))
        elif call == 5:
            # Read: a list or map is made when it is first asked for.
            for name in message.__match_args__:
                held = getattr(message, name)
                assert getattr(message, name) is held or not isinstance(held, list | dict)
        elif call == 6:
            put(pool, copy.copy(message))
        elif call == 7 and draw.chance(4):
            if not nests(message):
                put(pool, pickle.loads(pickle.dumps(wire.PingRequest(message="kept"))))
                assert same(copy.deepcopy(message), message)
        elif call == 8:
            try:
                assert (message == draw.choice(pool)) in (True, False)
                assert repr(message).startswith(type(message).__name__)
            except RecursionError:
                assert nests(message)
            except AssertionError as error:
                # The test's own lists say so when Python looks into them.
                assert "own code" in str(error)
        elif call == 9:
            pool.remove(message) if len(pool) > 1 and all(message is not one for one in pool[:1]) else None
        else:
            write(message, thorough)
    return tuple(trace[:3]), len(pool), len(trace)


def put(pool: list[wire.Message], message: wire.Message) -> None:
    if len(pool) < POOL:
        pool.append(message)
    else:
        pool[hash(len(repr(type(message)))) % POOL] = message


def write(message: wire.Message, thorough: bool) -> None:
    """EncodeError, or bytes that mean the same."""
    try:
        encoded = message.encode()
    except wire.EncodeError as error:
        assert error.path.partition(".")[0] == type(message).__name__
        return
    assert type(message).decode(encoded).encode() == encoded


def nests(message: wire.Message) -> bool:
    """Whether a value of the test's own making is in it, or the message itself."""
    waiting: list[Any] = [message]
    for _ in range(10000):
        if not waiting:
            return False
        one = waiting.pop()
        if isinstance(one, wire.Message):
            waiting.extend(getattr(one, name) for name in one.__match_args__)
        elif isinstance(one, Items | Number | memoryview | type) or type(one) is object:
            return True
        elif isinstance(one, dict):
            waiting.extend(one.values())
        elif isinstance(one, list | tuple):
            waiting.extend(one)
    return True


def same(one: wire.Message, other: wire.Message) -> bool:
    return repr(one) == repr(other)


TARGET = Target(run, corpus, share=8)

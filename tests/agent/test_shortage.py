"""A guest that is short of memory: what is shed, what is refused, what is given back."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent.agent.agent import MEMORY_PARTS, _fit_bounds
from arcbox_agent.agent.config import Settings
from arcbox_agent.agent.config.access import Access
from arcbox_agent.agent.metrics import Metrics
from arcbox_agent.agent.observe.memory import Memory
from arcbox_agent.agent.serving.call import LARGE, Call, Dispatch
from arcbox_agent.agent.serving.ledger import Ledger
from arcbox_agent.agent.serving.outbox import Outbox
from arcbox_agent.agent.serving.route import Route
from arcbox_agent.agent.serving.shortage import Shortage
from arcbox_agent.errors import RequestError, UnavailableError
from arcbox_agent.wire import Empty, FrameDecoder, MessageType, encode_frame, encode_message
from tests.agent.test_peers import Account


class Given:
    """Counts how often the heap is given back."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def shortage(ledger: Ledger, given: Given, *, short: bool) -> Shortage:
    """By the machine's own memory, of which the least that must be left is all there is and more, or none."""
    one = Shortage(Memory(), ledger, Metrics().counters, time.monotonic, given)
    one.least = 1 << 60 if short else 0
    return one


def test_the_memory_there_is_and_what_of_it_is_left() -> None:
    memory = Memory()
    shown = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert 0 < memory.total <= int(shown["MemTotal"].split()[0]) << 10
    assert 0 < memory.available() <= memory.total


def test_short_of_memory_half_of_what_is_held_goes_the_largest_first() -> None:
    ledger = Ledger(100 << 20, 100 << 20)
    accounts = [Account(ledger, "uid 1") for _ in range(10)]
    for number, account in enumerate(accounts):
        account.hold((number + 1) << 20)
    given = Given()
    assert shortage(ledger, given, short=False).check(0.0)
    assert ledger.total == 55 << 20
    assert shortage(ledger, given, short=True).check(0.0)
    assert [each.evicted is not None for each in accounts] == [False] * 6 + [True] * 4
    assert ledger.total == 21 << 20


def test_nothing_large_is_begun_then() -> None:
    ledger = Ledger(100, 100)
    short = shortage(ledger, Given(), short=True)
    with pytest.raises(UnavailableError, match="the guest is short of memory: try again later") as caught:
        short.admit(LARGE + 1)
    assert caught.value.code == 503
    assert type(RequestError.from_reply(503, "x")) is UnavailableError
    shortage(ledger, Given(), short=False).admit(1 << 30)


def test_only_what_is_large_must_be_admitted() -> None:
    asked: list[int] = []
    routes: dict[int, Route] = {MessageType.PING_REQUEST: Route(lambda request, call: Empty(), None, Access.READ)}
    dispatch = Dispatch(routes, Metrics().counters, 1 << 20, asked.append)
    decoder = FrameDecoder()
    loop = asyncio.new_event_loop()
    with socket.socket() as sock:
        outbox = Outbox(sock, loop, Metrics().counters)
        for size in (LARGE, LARGE + 1):
            decoder.feed(encode_frame(MessageType.PING_REQUEST, bytes(size), ""))
            frame = decoder.next_frame()
            assert frame is not None
            call = Call(outbox, "uid 0", frozenset({Access.READ}), "", lambda: None)
            assert dispatch.answer(frame, call) == encode_message(Empty(), "")
    loop.close()
    assert asked == [LARGE + 1]


def test_what_was_held_is_given_back_to_the_system_when_it_is_held_no_more() -> None:
    ledger = Ledger(100 << 20, 100 << 20)
    account = Account(ledger, "uid 1")
    given = Given()
    watching = shortage(ledger, given, short=False)
    account.hold(10 << 20)
    assert watching.check(0.0)
    assert given.times == 0
    account.hold(5 << 20)
    assert watching.check(1.0)
    assert given.times == 1
    # Held and released between two looks.
    account.hold(50 << 20)
    account.hold(0)
    assert not watching.check(2.0)
    assert given.times == 2
    assert not watching.check(3.0)
    assert given.times == 2


def test_the_bound_on_what_is_held_fits_the_memory_unless_it_was_set() -> None:
    settings = Settings()
    _fit_bounds(settings, 200 << 20)
    assert settings.max_queued_total == (200 << 20) // MEMORY_PARTS == 25 << 20
    _fit_bounds(settings, 64 << 20)
    assert settings.max_queued_total == settings.max_frame_size
    settings = Settings()
    _fit_bounds(settings, 8 << 30)
    assert settings.max_queued_total == 64 << 20
    given: Any = Settings(max_queued_total=64 << 20)
    _fit_bounds(given, 200 << 20)
    assert given.max_queued_total == 64 << 20

"""The ring of events: its bound, its readers, and who is called."""

from __future__ import annotations

import asyncio

import pytest

from arcbox_agent.agent.containers.events import RING, Event, Events, Exit
from arcbox_agent.agent.containers.lifecycle import Kind
from arcbox_agent.errors import AgentFailedError

from .support import run


def event(id: str, run: int = 1) -> Event:
    return Event(Kind.DIE, id, "", run, 0, Exit(0, 0, ""))


def numbers(found: tuple[int, list[Event]]) -> tuple[int, list[int]]:
    return found[0], [each.number for each in found[1]]


def test_events_are_numbered_in_order_and_read_from_a_cursor_on() -> None:
    events = Events(size=4)
    for id in ("a", "b", "a", "a"):
        events.publish(event(id))
    assert events.end == 4
    assert numbers(events.read(0, "a")) == (0, [0, 2, 3])
    assert numbers(events.read(1, "a")) == (0, [2, 3])
    assert numbers(events.read(3, "a")) == (0, [3])
    assert numbers(events.read(4, "a")) == (0, [])
    assert numbers(events.read(0, "c")) == (0, [])


def test_a_reader_that_is_behind_the_ring_learns_how_many_events_it_missed() -> None:
    events = Events(size=4)
    for _ in range(7):
        events.publish(event("a"))
    assert numbers(events.read(0, "a")) == (3, [3, 4, 5, 6])
    assert numbers(events.read(2, "a")) == (1, [3, 4, 5, 6])
    assert numbers(events.read(3, "a")) == (0, [3, 4, 5, 6])


def test_the_ring_is_bounded() -> None:
    events = Events()
    for _ in range(RING + 10):
        events.publish(event("a"))
    missed, found = events.read(0, "a")
    assert (RING, missed, len(found)) == (1024, 10, 1024)


def test_a_reader_takes_what_came_since_it_was_made_and_waits_for_more() -> None:
    async def main() -> None:
        events = Events(size=4)
        events.publish(event("a"))
        reader = events.reader("a")
        events.publish(event("a"))
        events.publish(event("b"))
        assert numbers(await reader.next()) == (0, [1])
        waiting = asyncio.create_task(reader.next())
        await asyncio.sleep(0)
        for _ in range(10):
            events.publish(event("b"))
        await asyncio.sleep(0)
        assert not waiting.done()  # what happens to others is no gap for it
        events.publish(event("a"))
        events.publish(event("a"))
        assert numbers(await waiting) == (0, [13, 14])
        for _ in range(5):
            events.publish(event("b"))
        assert numbers(await reader.next()) == (1, [])

    run(main())


def test_a_reader_that_is_cancelled_is_forgotten() -> None:
    async def main() -> None:
        events = Events()
        waiting = asyncio.create_task(events.reader("a").next())
        await asyncio.sleep(0)
        assert list(events._listeners) == ["a"]
        waiting.cancel()
        await asyncio.wait([waiting])
        assert events._listeners == {}

    run(main())


def test_readers_end_with_the_error_of_the_close() -> None:
    async def main() -> None:
        events = Events()
        waiting = asyncio.create_task(events.reader("a").next())
        await asyncio.sleep(0)
        events.check_open()
        events.close(AgentFailedError("the end"))
        for each in (waiting, events.reader("b").next()):
            with pytest.raises(AgentFailedError, match=r"^the end$"):
                await each
        with pytest.raises(AgentFailedError, match=r"^the end$"):
            events.check_open()

    run(main())


def test_a_subscriber_is_called_with_all_events_and_a_listener_for_its_container() -> None:
    events = Events()
    seen: list[int] = []
    heard: list[str] = []

    def once() -> None:
        heard.append("once")
        events.unlisten("a", once)

    def always() -> None:
        heard.append("always")

    events.subscribe(lambda each: seen.append(each.number))
    events.listen("a", once)
    events.listen("a", always)
    for id in ("a", "b", "a"):
        events.publish(event(id))
    assert seen == [0, 1, 2]
    assert heard == ["once", "always", "always"]
    events.unlisten("a", always)
    events.unlisten("a", always)
    events.publish(event("a"))
    assert heard == ["once", "always", "always"]

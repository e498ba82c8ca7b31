"""A flow's bookkeeping, a follow's states, and the edges of a follow that a story seldom meets."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import time
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent._logs import Engine
from arcbox_agent.agent.logs import flow as flows
from arcbox_agent.agent.logs.cursor import Cursor
from arcbox_agent.agent.logs.flow import Flow, Rings
from arcbox_agent.agent.logs.follower import TRANSITIONS, Event, State
from arcbox_agent.agent.logs.inotify import Inotify
from arcbox_agent.logs import Options
from tests.logs.test_capture import until
from tests.logs.test_follow import add, collect, entries, followers, following


class Member:
    def __init__(self) -> None:
        self.number = 0
        self.left: list[Cursor] = []

    def leave(self, cursor: Cursor) -> None:
        self.left.append(cursor)


async def filled(log: Path, *members: Member, rings: Rings | None = None) -> Flow:
    """A flow of two batches, `one` and `two`, of which no member has taken any."""
    log.touch()
    loop = asyncio.get_running_loop()
    flow = Flow(("web",), Cursor(str(log), Engine("text"), None), Inotify(loop), loop, rings or Rings())
    for member in members:
        flow.join(member)
    for text in (b"one", b"two"):
        add(log, text)
        assert await flow.advance()
    assert [batch.data for batch in flow.batches] == [b"one\n", b"two\n"]
    return flow


def test_a_member_that_parts_keeps_no_batch_waiting_and_takes_none_from_the_others(
    tmp_path: Path, run_async: Any
) -> None:
    async def scenario() -> None:
        first, second, third = Member(), Member(), Member()
        flow = await filled(tmp_path / "web.log", first, second, third)
        assert flow.take(first) == b"one\n"
        waiter = flow.changes.next()
        waiter.cancel()
        flow.part(first)
        assert flow.members == [second, third]
        assert flow.changes.waiters == []
        assert [flow.take(second), flow.take(second), flow.take(second)] == [b"one\n", b"two\n", None]
        assert (len(flow.batches), flow.kept) == (2, 8)
        flow.part(third)
        assert (flow.batches, flow.kept, flow.first) == ([], 0, 2)
        flow.close()

    run_async(scenario())


def test_a_flow_lets_only_the_members_go_that_have_not_taken_the_oldest_batch(
    tmp_path: Path, run_async: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        fast, slow = Member(), Member()
        flow = await filled(tmp_path / "web.log", fast, slow)
        flow.take(fast)

        def leave(cursor: Cursor) -> None:
            slow.left.append(cursor)
            flow.part(slow)

        monkeypatch.setattr(slow, "leave", leave)
        monkeypatch.setattr(flows, "RING_LIMIT", len(b"two\nthree\n"))
        add(tmp_path / "web.log", b"three")
        await flow.advance()
        assert fast.left == []
        [cursor] = slow.left
        assert cursor.engine.offset == 0
        assert cursor.read()[1] == b"one\ntwo\nthree\n"
        assert [batch.data for batch in flow.batches] == [b"two\n", b"three\n"]
        flow.close()

    run_async(scenario())


def test_all_flows_together_keep_no_more_than_their_bound(
    tmp_path: Path, run_async: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        rings = Rings()
        other = await filled(tmp_path / "other.log", Member(), Member(), rings=rings)
        fast, slow = Member(), Member()
        flow = await filled(tmp_path / "web.log", fast, slow, rings=rings)
        assert rings.kept == 16
        flow.take(fast)

        def leave(cursor: Cursor) -> None:
            slow.left.append(cursor)
            flow.part(slow)

        monkeypatch.setattr(slow, "leave", leave)
        monkeypatch.setattr(flows, "RINGS_LIMIT", 8 + len(b"two\nthree\n"))
        add(tmp_path / "web.log", b"three")
        await flow.advance()
        assert len(slow.left) == 1
        assert [batch.data for batch in flow.batches] == [b"two\n", b"three\n"]
        assert rings.kept == 18
        other.close()
        flow.close()
        assert rings.kept == 0

    run_async(scenario())


def test_a_line_written_at_the_time_of_until_is_waited_for(tmp_path: Path, run_async: Any) -> None:
    log = tmp_path / "web.log"
    log.touch()

    async def scenario() -> None:
        async with followers() as (all_of_them, _):
            found: list[bytes] = []
            end = time.time_ns() + 200_000_000
            stamp = dt.datetime.fromtimestamp(end // 1_000_000_000, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            line = f"{stamp} stdout F late\n".encode()
            # Timers run in order: however late, this one runs before the follow's own.
            asyncio.get_running_loop().call_later(0.25, log.write_bytes, line)
            follow = all_of_them.follow(str(log), Options(until=end), lambda: False)
            await asyncio.wait_for(collect(follow, found), 30)
            assert found == [b"late"]

    run_async(scenario())


def test_an_inode_that_is_used_again_is_not_taken_for_the_old_log(tmp_path: Path, run_async: Any) -> None:
    log, older = tmp_path / "web.log", tmp_path / "web.log.1"
    add(older, b"zero")
    add(log, b"first")

    async def scenario() -> None:
        async with following(log) as found:
            await until(lambda: len(found) == 2)
            inode = older.stat().st_ino
            older.write_bytes(b"")  # the same inode, as if it had been freed and used again
            add(older, b"second")
            os.rename(older, log)
            assert log.stat().st_ino == inode
            for _ in range(500):
                if len(found) == 3:
                    break
                await asyncio.sleep(0.01)
        assert found == [b"zero", b"first", b"second"]

    run_async(scenario())


def test_a_follow_goes_from_state_to_state(tmp_path: Path, run_async: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "web.log"
    add(log, b"first")
    monkeypatch.setattr(flows, "RING_LIMIT", 1)

    async def scenario() -> None:
        async with followers() as (all_of_them, _):
            over = False
            one, other = (all_of_them.follow(str(log), Options(), lambda: over) for _ in range(2))
            assert one.state is other.state is State.READING
            await one.next()
            waiting = asyncio.create_task(one.next())
            await until(lambda: one.state is State.JOINED)
            add(log, b"second")
            await waiting
            assert [entry.data for entry in entries(await other.next() or b"")] == [b"first", b"second"]
            # It enters the flow that the first has begun, at the same place, and joins it.
            task = asyncio.create_task(other.next())
            await until(lambda: other.state is State.JOINED)
            for number, text in enumerate((b"third", b"fourth", b"fifth")):
                add(log, text)
                assert [entry.data for entry in entries(await one.next() or b"")] == [text], number
            # It has taken one batch at most, and the ring holds one.
            await task
            await until(lambda: other.state in (State.ALONE, State.JOINED))
            over = True
            other.wake()
            rest = bytearray()
            while (frames := await other.next()) is not None:
                rest += frames
            assert [entry.data for entry in entries(bytes(rest))][-1:] == [b"fifth"]
            assert str(other.state) == str(State.OVER)
            for follow in (one, other):
                follow.close()
                follow.close()
                assert follow.state is State.OVER
                assert await follow.next() is None

    run_async(scenario())


def test_every_state_can_be_closed_and_nothing_leads_out_of_the_last() -> None:
    assert set(TRANSITIONS) == set(State)
    assert all(events[Event.CLOSED] is State.OVER for events in TRANSITIONS.values())
    assert TRANSITIONS[State.OVER] == {Event.CLOSED: State.OVER}
    assert {event for events in TRANSITIONS.values() for event in events} == set(Event)

"""Following: every line exactly once and in order, whatever is done to the file."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent import _inotify, _logs, wire
from arcbox_agent.agent.config.table import Settings
from arcbox_agent.agent.logs import flow
from arcbox_agent.agent.logs.cursor import BLOCKED, END, MORE, Cursor
from arcbox_agent.agent.logs.follower import Follow, Followers
from arcbox_agent.agent.logs.inotify import Changes, Inotify
from arcbox_agent.agent.metrics import Metrics
from arcbox_agent.logs import Options
from arcbox_agent.logs.files import open_if_there
from tests.logs.log_writer_process import line
from tests.logs.test_capture import start, until

STAMP = b"2026-11-23T17:45:12.255151664Z"


def said(lines: range) -> bytes:
    return b"".join(line(number).split(b" ", 3)[3] for number in lines)


@contextlib.asynccontextmanager
async def followers() -> AsyncIterator[tuple[Followers, Metrics]]:
    metrics = Metrics()
    all_of_them = Followers(Settings(), metrics)
    await all_of_them.start()
    try:
        yield all_of_them, metrics
    finally:
        await all_of_them.close()


def entries(frames: bytes) -> list[wire.LogEntry]:
    found = []
    while frames:
        size = int.from_bytes(frames[:4], "big")
        assert frames[4:8] == b"\0\0\x10\x21"
        found.append(wire.LogEntry.decode(frames[8 : 4 + size]))
        frames = frames[4 + size :]
    return found


async def collect(follow: Follow, into: list[bytes]) -> None:
    try:
        while (frames := await follow.next()) is not None:
            into.extend(bytes(entry.data) for entry in entries(frames))
    finally:
        follow.close()


def cursor_on(log: Path) -> Cursor:
    return Cursor(str(log), _logs.Engine(), open_if_there(str(log)))


def read_all(cursor: Cursor) -> list[tuple[bytes, bool]]:
    found: list[tuple[bytes, bool]] = []
    while True:
        status, entries = cursor.read()
        found += [(entry.data, entry.partial) for entry in entries]
        if status is END and not entries:
            return found


#: Around the longest line that a reader waits for, and far behind it.
LONG_LINES = [*range(262_103, 262_107), *range(262_143, 262_146), 300_000]


@pytest.mark.parametrize("length", LONG_LINES)
def test_a_torn_line_that_is_cut_away_and_written_again_comes_once(tmp_path: Path, length: int) -> None:
    log = tmp_path / "web.log"
    before = STAMP + b" stdout F one\n" + STAMP + b" stdout P two, "
    whole = STAMP + b" stdout F " + b"x" * length + b"\n"
    log.write_bytes(before + b"\n" + whole[:-1])
    cursor = cursor_on(log)
    assert read_all(cursor) == [(b"one", False)]
    os.truncate(log, len(before) + 1)
    assert read_all(cursor) == []
    with log.open("ab") as file:
        file.write(whole)
    assert read_all(cursor) == [(b"two, " + b"x" * length, False)]


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_file_truncated_before_its_torn_line_is_read_from_its_beginning(tmp_path: Path, kept: int) -> None:
    log = tmp_path / "web.log"
    short = STAMP + b" stdout F one\n"
    log.write_bytes(short * 2 + STAMP + b" stdout F " + b"x" * 300_000)
    cursor = cursor_on(log)
    assert read_all(cursor) == [(b"one", False)] * 2
    # The new lines reach just as far: only what they say tells that they are others.
    other = STAMP + b" stdout F two\n"
    log.write_bytes(short * kept + other * (2 - kept) + STAMP + b" stdout F three\n")
    again = [] if kept == 2 else [(b"one", False)] * kept + [(b"two", False)] * (2 - kept)
    assert read_all(cursor) == [*again, (b"three", False)]


def test_parts_of_a_torn_line_that_were_given_end_where_it_was_cut(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    short = STAMP + b" stdout F one\n"
    log.write_bytes(short + STAMP + b" stdout F " + b"x" * (3 << 19))
    cursor = cursor_on(log)
    assert read_all(cursor) == [(b"one", False), (b"x" * (1 << 20), True)]
    os.truncate(log, len(short))
    assert read_all(cursor) == [(b"x" * (1 << 19), False)]
    with log.open("ab") as file:
        file.write(short)
    assert read_all(cursor) == [(b"one", False)]


@pytest.mark.parametrize("fault", ["none", "rotate", "recreate", "truncate"])
@pytest.mark.parametrize("stops", [False, True], ids=["", "stopped now and then"])
def test_a_writer_at_full_speed_is_followed_line_by_line(tmp_path: Path, fault: str, stops: bool) -> None:
    lines = 60_000
    log, text = tmp_path / "web.log", tmp_path / "text"
    reader = start("follow_process", log, text, stdout=subprocess.PIPE)
    assert reader.stdout is not None
    assert reader.stdout.readline() == b"following\n"
    writer = start("log_writer_process", log, 7, lines, fault)
    rng = random.Random(7)
    while writer.poll() is None:
        time.sleep(0.02)
        if stops:
            reader.send_signal(signal.SIGSTOP)
            # Not so long that more is rotated away than is kept.
            time.sleep(rng.random() * 0.02)
            reader.send_signal(signal.SIGCONT)
    assert writer.returncode == 0
    Path(f"{log}.ended").touch()
    assert reader.wait(60) == 0
    reader.stdout.close()
    found = text.read_bytes()
    assert len(found) == len(said(range(lines)))
    assert found == said(range(lines))


def test_a_line_in_pieces_is_one_line(tmp_path: Path, run_async: Any) -> None:
    log = tmp_path / "web.log"
    whole = STAMP + b" stdout F a line in pieces\n"

    async def scenario() -> None:
        log.touch()
        async with followers() as (all_of_them, _):
            found: list[bytes] = []
            over = False
            follow = all_of_them.follow(str(log), Options(), lambda: over)
            task = asyncio.create_task(collect(follow, found))
            with log.open("ab", buffering=0) as file:
                for octet in whole:
                    assert found == []
                    file.write(bytes([octet]))
                    await asyncio.sleep(0.001)
            await until(lambda: found)
            over = True
            follow.wake()
            await task
            assert found == [b"a line in pieces"]

    run_async(scenario())


def test_many_followers_share_one_reader_and_the_slow_one_catches_up_alone(
    tmp_path: Path, run_async: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "web.log"
    lines = 20_000
    monkeypatch.setattr(flow, "RING_LIMIT", 1 << 18)  # less than that

    async def scenario() -> None:
        log.touch()
        async with followers() as (all_of_them, metrics):
            over = False
            found: list[list[bytes]] = [[] for _ in range(6)]
            follows = [all_of_them.follow(str(log), Options(), lambda: over) for _ in found]
            tasks = [asyncio.create_task(collect(*each)) for each in zip(follows[:-1], found[:-1], strict=True)]
            slow = follows[-1]
            await until(lambda: metrics.value("log_followers") == 5)
            first = asyncio.create_task(slow.next())
            await until(lambda: metrics.value("log_followers") == 6)
            assert metrics.value("log_flows") == 1
            writer = start("log_writer_process", log, 1, lines, "none")
            found[-1].extend(bytes(entry.data) for entry in entries(await first or b""))
            # It takes nothing while the others take all.
            await until(lambda: all(len(each) == lines for each in found[:-1]))
            assert metrics.value("log_followers_detached") == 1
            assert metrics.value("log_followers") == 5
            writer.wait()
            task = asyncio.create_task(collect(slow, found[-1]))
            await until(lambda: len(found[-1]) == lines)
            await until(lambda: metrics.value("log_followers") == 6)  # with the others again
            over = True
            for follow in follows:
                follow.wake()
            await asyncio.gather(*tasks, task)
            assert metrics.value("log_flows") == 0
            expected = said(range(lines)).split(b"\n")[:-1]
            assert all(each == expected for each in found)

    run_async(scenario())


def test_a_follower_that_goes_away_is_gone_at_once(tmp_path: Path, run_async: Any) -> None:
    log = tmp_path / "web.log"

    async def scenario() -> None:
        log.touch()
        async with followers() as (all_of_them, metrics):

            async def one_more() -> asyncio.Task[None]:
                task = asyncio.create_task(collect(all_of_them.follow(str(log), Options(), lambda: False), []))
                known = metrics.value("log_followers")
                await until(lambda: metrics.value("log_followers") == known + 1)
                return task

            first = await one_more()  # and with it all that the loop opens once
            before = len(os.listdir("/proc/self/fd"))
            tasks = [await one_more() for _ in range(8)]
            tasks.append(first)
            assert metrics.value("log_followers") == 9
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert metrics.value("log_followers") == 0
            assert metrics.value("log_flows") == 0
            assert len(os.listdir("/proc/self/fd")) == before - 1  # the log

    run_async(scenario())


def test_tail_and_follow_meet_without_a_gap(tmp_path: Path, run_async: Any) -> None:
    log = tmp_path / "web.log"
    lines = int(os.environ.get("ARCBOX_FOLLOW_LINES", "400000"))

    async def scenario() -> None:
        log.touch()
        async with followers() as (all_of_them, _):
            over = False
            writer = start("log_writer_process", log, 2, lines, "rotate once")
            await until(lambda: log.stat().st_size > 0 if log.exists() else False)
            found: list[list[bytes]] = []
            tasks, follows = [], []
            while writer.poll() is None:
                found.append([])
                options = Options(tail=100, stderr=len(found) % 2 == 0)
                follows.append(all_of_them.follow(str(log), options, lambda: over))
                tasks.append(asyncio.create_task(collect(follows[-1], found[-1])))
                await asyncio.sleep(0.2)
            await asyncio.sleep(0.1)
            over = True
            for follow in follows:
                follow.wake()
            await asyncio.gather(*tasks)
            assert tasks
            for index, each in enumerate(found):
                numbers = [int(data.split(b" ")[1]) for data in each]
                both = index % 2 == 1
                wanted = [number for number in range(numbers[0], lines) if both or number % 3]
                assert numbers == wanted

    run_async(scenario())


def test_until_ends_a_follow(tmp_path: Path, run_async: Any) -> None:
    log = tmp_path / "web.log"
    log.write_bytes(STAMP + b" stdout F old\n")

    async def scenario() -> None:
        async with followers() as (all_of_them, _):
            found: list[bytes] = []
            soon = time.time_ns() + 300_000_000
            await collect(all_of_them.follow(str(log), Options(until=soon), lambda: False), found)
            assert time.time_ns() >= soon
            assert found == [b"old"]
            await collect(all_of_them.follow(str(log), Options(until=1), lambda: False), found)
            assert found == [b"old"]

    run_async(scenario())


def test_a_log_that_does_not_exist_yet_is_waited_for(tmp_path: Path, run_async: Any) -> None:
    log = tmp_path / "web.log"

    async def scenario() -> None:
        async with followers() as (all_of_them, _):
            found: list[bytes] = []
            over = False
            follow = all_of_them.follow(str(log), Options(), lambda: over)
            task = asyncio.create_task(collect(follow, found))
            await asyncio.sleep(0.05)
            log.write_bytes(STAMP + b" stdout F first\n")
            await until(lambda: found)
            # A directory in its place, and then a file again.
            log.unlink()
            log.mkdir()
            await asyncio.sleep(0.05)
            log.rmdir()
            log.write_bytes(STAMP + b" stdout F second\n")
            await until(lambda: len(found) == 2)
            over = True
            follow.wake()
            await task
            assert found == [b"first", b"second"]

    run_async(scenario())


def add(log: Path, *texts: bytes) -> None:
    with log.open("ab", buffering=0) as file:
        file.write(b"".join(STAMP + b" stdout F " + text + b"\n" for text in texts))


def rotate(log: Path) -> None:
    for number in (2, 1):
        if (older := Path(f"{log}.{number}")).exists():
            older.rename(f"{log}.{number + 1}")
    log.rename(f"{log}.1")
    log.touch()


@contextlib.asynccontextmanager
async def following(log: Path) -> AsyncIterator[list[bytes]]:
    """What is delivered of a log, while it is followed."""
    async with followers() as (all_of_them, _):
        found: list[bytes] = []
        over = False
        follow = all_of_them.follow(str(log), Options(), lambda: over)
        task = asyncio.create_task(collect(follow, found))
        try:
            yield found
        finally:
            over = True
            follow.wake()
            await asyncio.wait_for(task, 60)


def test_empty_files_that_come_one_after_the_other_are_each_waited_for(
    tmp_path: Path, run_async: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "web.log"
    add(log, b"first")

    async def scenario() -> None:
        async with following(log) as found:
            await until(lambda: found)
            for _ in range(2):
                log.unlink()
                log.touch()
                await asyncio.sleep(0.05)  # long enough to be looked at
            add(log, b"second")
            await until(lambda: len(found) == 2)
        assert found == [b"first", b"second"]

    run_async(scenario())
    assert capfd.readouterr().err.count("a log that was being read was removed") == 1


def test_a_file_that_was_rotated_empty_is_passed_by(tmp_path: Path, run_async: Any) -> None:
    log = tmp_path / "web.log"
    add(log, b"first")

    async def scenario() -> None:
        async with following(log) as found:
            await until(lambda: found)
            for _ in range(3):
                rotate(log)
                await asyncio.sleep(0.05)
            add(log, b"second")
            await until(lambda: len(found) == 2)
        assert found == [b"first", b"second"]

    run_async(scenario())


def test_a_rotated_file_that_is_removed_before_it_was_read_is_passed_by(tmp_path: Path, run_async: Any) -> None:
    log = tmp_path / "web.log"
    add(log, b"first")

    async def scenario() -> None:
        async with following(log) as found:
            await until(lambda: found)
            rotate(log)
            add(log, b"gone")
            rotate(log)
            add(log, b"second")
            Path(f"{log}.1").unlink()
            await until(lambda: len(found) == 2)
        assert found == [b"first", b"second"]

    run_async(scenario())


def test_the_copy_that_was_made_before_a_truncation_is_not_new(tmp_path: Path, run_async: Any) -> None:
    log = tmp_path / "web.log"
    add(log, b"first", b"second")

    async def scenario() -> None:
        async with following(log) as found:
            await until(lambda: len(found) == 2)
            Path(f"{log}.1").write_bytes(log.read_bytes())
            os.truncate(log, 0)
            add(log, b"third")
            await until(lambda: len(found) >= 3)
            log.unlink()
            add(log, b"fourth")
            await until(lambda: b"fourth" in found)
        assert found == [b"first", b"second", b"third", b"fourth"]

    run_async(scenario())


def test_a_line_written_while_a_new_file_is_not_watched_yet_is_seen(
    tmp_path: Path, run_async: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "web.log"
    add(log, b"first")
    watch_file = Inotify.watch_file

    def late(self: Inotify, fd: int, changes: Changes) -> Any:
        if not log.stat().st_size:
            add(log, b"second")
        return watch_file(self, fd, changes)

    async def scenario() -> None:
        async with following(log) as found:
            await until(lambda: found)
            monkeypatch.setattr(Inotify, "watch_file", late)
            rotate(log)
            await until(lambda: len(found) == 2)
        assert found == [b"first", b"second"]

    run_async(scenario())


class SlowRead:
    """A read of a log that a thread has to do, as its part of the file is not in the page cache."""

    def __init__(self) -> None:
        self.begun, self._go, self._ended = threading.Event(), threading.Event(), threading.Event()

    def stand_in(self) -> Callable[..., Any]:
        """For Cursor.read: the first one in a thread waits for `finish`, and all after it are quick."""
        read = Cursor.read

        def cold(cursor: Cursor, nowait: bool = False, end: int | None = None) -> Any:
            if self.begun.is_set():
                # As where the page cache has it, which a read on tmpfs could not ask for.
                return read(cursor, False, end)
            if nowait:
                return BLOCKED, cursor.engine.nothing
            self.begun.set()
            assert self._go.wait(60)
            result = read(cursor, nowait, end)
            self._ended.set()
            return result

        return cold

    def finish(self) -> None:
        """Holds up the loop until the thread is done: what it has read is not yet taken by anybody."""
        self._go.set()
        assert self._ended.wait(60)
        time.sleep(0.05)


def test_a_read_in_a_thread_that_has_just_ended_holds_up_nobody(
    tmp_path: Path, run_async: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "web.log"
    add(log, b"first")
    slow = SlowRead()

    async def scenario() -> None:
        async with followers() as (all_of_them, _):
            over = False
            found: list[bytes] = []
            one, other = (all_of_them.follow(str(log), Options(), lambda: over) for _ in range(2))
            assert [entry.data for entry in entries(await other.next() or b"")] == [b"first"]
            task = asyncio.create_task(collect(one, found))
            await until(lambda: found)
            monkeypatch.setattr(Cursor, "read", slow.stand_in())
            add(log, b"second")
            await until(slow.begun.is_set)
            # The loop is held up until the thread is done: the other comes right behind what it left.
            slow.finish()
            data = await asyncio.create_task(other.next())
            assert [entry.data for entry in entries(data or b"")] == [b"second"]
            await until(lambda: len(found) == 2)
            over = True
            other.close()
            one.wake()
            await asyncio.wait_for(task, 60)
            assert found == [b"first", b"second"]

    run_async(scenario())


def test_a_follower_whose_read_a_thread_has_done_can_be_let_go(
    tmp_path: Path, run_async: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "web.log"
    add(log, b"first")
    lines = [b"%d " % number + b"x" * 1000 for number in range(1000)]
    slow = SlowRead()

    async def scenario() -> None:
        async with followers() as (all_of_them, metrics):
            over = False
            found: list[bytes] = []
            alone = all_of_them.follow(str(log), Options(), lambda: over)
            task = asyncio.create_task(collect(alone, found))
            await until(lambda: found)
            monkeypatch.setattr(Cursor, "read", slow.stand_in())
            monkeypatch.setattr(flow, "RING_LIMIT", 1 << 10)
            add(log, *lines)
            await until(slow.begun.is_set)
            # Another comes, further on than the thread will be, and before the first has taken what is read.
            ahead = all_of_them.follow(str(log), Options(tail=1), lambda: over)
            assert [entry.data for entry in entries(await ahead.next() or b"")] == lines[-1:]
            slow.finish()
            last: list[bytes] = []
            other = asyncio.create_task(collect(ahead, last))
            await until(lambda: len(found) == 1 + len(lines))
            assert metrics.value("log_followers_detached") > 0
            add(log, b"end")
            await until(lambda: last and len(found) == 2 + len(lines))
            over = True
            alone.wake()
            ahead.wake()
            await asyncio.wait_for(asyncio.gather(task, other), 60)
            assert found == [b"first", *lines, b"end"]
            assert last == [b"end"]

    run_async(scenario())


class Outrun(_logs.Engine):
    """A reader that is stopped after its first read, for as long as it takes to write on and rotate."""

    log: Path

    def read(self, fd: int, **options: Any) -> Any:
        result = super().read(fd, **options)
        if not Path(f"{self.log}.1").exists():
            with self.log.open("ab") as file:
                file.write((STAMP + b" stderr F " + b"x" * 100 + b"\n") * 20_000)
            add(self.log, b"first")
            rotate(self.log)
            add(self.log, b"second")
        return result


def test_a_rotated_file_is_left_only_at_its_end(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    log.touch()
    engine = Outrun(stderr=False)
    engine.log = log
    cursor = Cursor(str(log), engine, None)
    found: list[bytes] = []
    while len(found) < 2:
        status, output = cursor.read()
        assert output or status is MORE, "the end was told too early"
        found += [entry.data for entry in output]
    assert found == [b"first", b"second"]


def test_a_slow_follower_that_was_left_alone_survives_a_truncation(
    tmp_path: Path, run_async: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "web.log"
    monkeypatch.setattr(flow, "RING_LIMIT", 1 << 10)
    text = b"x" * 1000

    async def scenario() -> None:
        add(log, b"begin")
        async with followers() as (all_of_them, metrics):
            over = False
            found: list[bytes] = []
            fast, slow = (all_of_them.follow(str(log), Options(), lambda: over) for _ in range(2))
            task = asyncio.create_task(collect(fast, found))
            await until(lambda: found)
            taken = [entry.data for entry in entries(await slow.next() or b"")]
            first = asyncio.create_task(slow.next())
            await until(lambda: metrics.value("log_followers") == 2)
            add(log, b"one")
            taken += [entry.data for entry in entries(await first or b"")]
            for number in range(3):
                add(log, text)
                await until(lambda: len(found) == number + 3)
            assert metrics.value("log_followers_detached") == 1
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            # Less than the flow has read, more than the slow one has.
            os.truncate(log, log.stat().st_size - len(text) - len(STAMP + b" stdout F \n"))
            alone: list[bytes] = []
            task = asyncio.create_task(collect(slow, alone))
            reads = 0
            read = Cursor.read

            def counted(self: Cursor, nowait: bool = False, end: int | None = None) -> Any:
                nonlocal reads
                reads += 1
                return read(self, nowait, end)

            monkeypatch.setattr(Cursor, "read", counted)
            for _ in range(1000):
                await asyncio.sleep(0)
            assert reads < 100, "it does not wait"
            add(log, *[text] * 5, b"end")
            await until(lambda: b"end" in alone)
            over = True
            slow.wake()
            await asyncio.wait_for(task, 60)
            assert taken == [b"begin", b"one"]
            assert alone == [text] * 7 + [b"end"]

    run_async(scenario())


@pytest.mark.parametrize("call", ["init", "add_watch"])
def test_without_inotify_logs_are_polled_and_the_agent_says_so(
    tmp_path: Path, run_async: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], call: str
) -> None:
    log = tmp_path / "web.log"

    def exhausted(*_: object) -> int:
        raise OSError(errno.EMFILE if call == "init" else errno.ENOSPC, "exhausted")

    monkeypatch.setattr(_inotify, call, exhausted)

    async def scenario() -> None:
        async with followers() as (all_of_them, metrics):
            found: list[bytes] = []
            over = False
            follow = all_of_them.follow(str(log), Options(), lambda: over)
            task = asyncio.create_task(collect(follow, found))
            await asyncio.sleep(0.05)
            log.write_bytes(STAMP + b" stdout F polled\n")
            await until(lambda: found)
            assert metrics.value("log_watches_polled") > 0
            over = True
            follow.wake()
            await task

    run_async(scenario())
    assert capfd.readouterr().err.count("followed by polling") == 1

"""Nothing is lost without a word: gaps, attached readers, unfinished lines, cursors."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent import sync
from arcbox_agent.errors import BadRequestError, ForbiddenError
from arcbox_agent.logs import Gap, read_log
from tests.conftest import PATIENCE, RunningAgent
from tests.logs.support import write_log
from tests.reference import logs as reference

SHELL = ["/bin/sh", "-c"]
STAMP = "2026-11-23T17:45:%02d.000000000Z"


@pytest.fixture
def small(start_agent: Any) -> RunningAgent:
    """An agent with small logs: what is not read soon is rotated away."""
    agent: RunningAgent = start_agent(log_max_size="64KiB", log_max_files="1")
    return agent


@pytest.fixture
def client(small: RunningAgent) -> Iterator[Any]:
    with sync.connect(small.address) as client:
        yield client


def created(client: Any, script: str) -> str:
    return str(client.create_container(cmd=[*SHELL, script]).id)


def text(entries: list[Any]) -> bytes:
    return b"".join(entry.data if entry.partial else entry.data + b"\n" for entry in entries if entry.gap is None)


def test_an_attached_reader_gets_everything_however_slow_it_is(client: Any) -> None:
    id = created(client, "seq 1 300000; printf 'the end'")
    with client.logs(id, follow=True, attach=True) as entries:
        first = next(entries)
        assert (first.data, first.partial) == (b"", True)
        client.start_container(id)
        time.sleep(1.5)  # 2 MB, in files of 64 KiB
        got = list(entries)
    assert [entry.gap for entry in got if entry.gap is not None] == []
    assert text(got) == b"".join(b"%d\n" % n for n in range(1, 300_001)) + b"the end"


def test_when_an_attached_reader_has_gone_the_container_goes_on(client: Any, tmp_path: Path) -> None:
    # More than all buffers between the container and its reader hold.
    id = created(client, f"seq 1 3000000; touch {tmp_path}/written; sleep 600")
    with client.logs(id, follow=True, attach=True) as entries:
        next(entries)
        client.start_container(id)
        time.sleep(1.5)
        assert not (tmp_path / "written").exists()  # it waits in its pipe
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "written").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    client.kill_container(id)


def test_who_may_only_look_holds_up_nobody(start_agent: Any, tmp_path: Path) -> None:
    socket = tmp_path / "look.sock"
    start_agent(listen=[f"unix:{tmp_path}/full.sock", f"unix:{socket}?mode=read-only"])
    with sync.connect(f"unix://{tmp_path}/full.sock") as client:
        id = created(client, "true")
    with sync.connect(f"unix://{socket}") as client:
        with pytest.raises(ForbiddenError, match="only who may change containers"):
            next(client.logs(id, follow=True, attach=True))
    with sync.connect(f"unix://{tmp_path}/full.sock") as client, pytest.raises(BadRequestError, match="attach needs"):
        next(client.logs(id, attach=True))


def test_a_slow_follow_is_told_how_much_was_rotated_away(client: Any) -> None:
    id = created(client, "echo first; sleep 1; seq 1 2000000; seq 1 300000 >&2")
    client.start_container(id)
    with client.logs(id, follow=True) as entries:
        got = [next(entries)]
        time.sleep(4)
        got += list(entries)
    gaps = [entry for entry in got if entry.gap is not None]
    assert gaps and all(not entry.gap.at_least for entry in gaps)
    assert all("rotated away" in entry.gap.reason and entry.data == b"" for entry in gaps)
    for stream, lines in (("stdout", 2_000_001), ("stderr", 300_000)):
        ours = [entry for entry in got if entry.stream == stream]
        lost = [entry.gap for entry in ours if entry.gap is not None]
        assert sum(entry.gap is None for entry in ours) + sum(gap.lines for gap in lost) == lines
        size = sum(len(b"%d\n" % n) for n in range(1, lines + (stream == "stderr")))
        size += len(b"first\n") if stream == "stdout" else 0
        assert len(text(ours)) + sum(gap.bytes for gap in lost) == size


def test_a_line_that_has_not_ended_is_shown_at_once_and_comes_once(client: Any) -> None:
    id = created(client, "printf 'Name: '; sleep 2; printf 'B'; sleep 0.5; echo ob; echo done")
    client.start_container(id)
    begun = time.monotonic()
    with client.logs(id, follow=True) as entries:
        first = next(entries)
        assert time.monotonic() - begun < 1.5
        got = [first, *entries]
    assert (first.data, first.partial) == (b"Name: ", True)
    assert [(entry.data, entry.partial) for entry in got[1:]] == [(b"B", True), (b"ob", False), (b"done", False)]
    # Who reads afterwards gets the lines whole.
    assert [(e.data, e.partial) for e in client.logs(id)] == [(b"Name: Bob", False), (b"done", False)]
    assert next(e.data for e in client.logs(id, tail=2, timestamps=True)).endswith(b"Z Name: Bob")


def test_only_new_lines_are_those_behind_the_end_whatever_their_time(client: Any) -> None:
    id = created(client, "echo old; sleep 2; echo new")
    client.start_container(id)
    deadline = time.monotonic() + 10
    while not list(client.logs(id)):
        assert time.monotonic() < deadline
    with client.logs(id, follow=True, only_new=True) as entries:
        assert [entry.data for entry in entries] == [b"new"]


def test_a_reader_goes_on_behind_every_cursor(client: Any) -> None:
    script = "for i in $(seq 1 40); do echo out $i; echo err $i >&2; done; printf half; sleep 0.3; echo ' whole'"
    id = created(client, script)
    client.start_container(id)
    client.wait_container(id)
    everything = list(client.logs(id))
    assert len({entry.cursor for entry in everything}) == len(everything) == 81
    for number, entry in enumerate(everything):
        assert list(client.logs(id, after=entry.cursor)) == everything[number + 1 :]
    with pytest.raises(BadRequestError, match="not a cursor"):
        list(client.logs(id, after="nonsense"))
    with pytest.raises(BadRequestError, match="only one of"):
        list(client.logs(id, after=everything[0].cursor, tail=1))


def test_a_cursor_whose_place_was_rotated_away_is_followed_by_a_gap(client: Any) -> None:
    id = created(client, "echo first; sleep 0.3; seq 1 100000")
    client.start_container(id)
    with client.logs(id, follow=True) as entries:
        cursor = next(entries).cursor
    client.wait_container(id)
    got = list(client.logs(id, after=cursor))
    assert got[0].gap is not None and "place of the cursor" in got[0].gap.reason
    assert text(got[-1:]) == b"100000\n"


def parts(*tags: tuple[str, str, str]) -> bytes:
    return b"".join(
        f"{STAMP % number} {stream} {tag} {data}\n".encode() for number, (stream, tag, data) in enumerate(tags)
    )


@pytest.mark.parametrize("split", range(1, 8))
def test_cursors_hold_while_the_log_is_rotated_and_texts_are_open(tmp_path: Path, split: int) -> None:
    """Parts of two streams that lie between each other's: each cursor goes on with all that was not given."""
    lines = parts(
        ("stdout", "P", "one "),
        ("stderr", "F", "first"),
        ("stderr", "P", "sec"),
        ("stdout", "P", "two "),
        ("stdout", "F", "three"),
        ("stdout", "F", "next"),
        ("stderr", "F", "ond"),
        ("stdout", "P", "open"),
    ).splitlines(True)
    path = write_log(tmp_path, [b"".join(lines[:split]), b"".join(lines[split:])])
    everything = list(read_log(path))
    assert [(e.stream, e.data) for e in everything] == [
        ("stderr", b"first"),
        ("stdout", b"one two three"),
        ("stdout", b"next"),
        ("stderr", b"second"),
        ("stdout", b"open"),
    ]
    os.rename(f"{path}.1", f"{path}.2")
    os.rename(path, f"{path}.1")
    Path(path).write_bytes(b"")
    for number, entry in enumerate(everything):
        assert list(read_log(path, after=entry.cursor)) == everything[number + 1 :], entry


def test_a_cursor_inside_a_long_line_goes_on_inside_it(tmp_path: Path) -> None:
    line = b"2026-11-23T17:45:12.255151664Z stdout F " + b"0123456789" * 350_000 + b"\n"
    path = write_log(tmp_path, [line + parts(("stdout", "F", "next"))])
    everything = list(read_log(path))
    assert [len(entry.data) for entry in everything] == [1 << 20, 1 << 20, 1 << 20, 3_500_000 - (3 << 20), 4]
    for number, entry in enumerate(everything):
        assert list(read_log(path, after=entry.cursor)) == everything[number + 1 :]


def test_what_the_log_says_of_lost_output_is_a_gap(tmp_path: Path) -> None:
    note = "[output lost: 4194304 bytes, 41943 lines: the log could not be written: No space left on device]"
    path = write_log(tmp_path, [parts(("stdout", "F", "a"), ("stdout", "F:gap", note), ("stdout", "F", "b"))])
    a, gap, b = read_log(path)
    assert (a.gap, a.data, b.data) == (None, b"a", b"b")
    assert gap.gap == Gap(4194304, 41943, False, "the log could not be written: No space left on device")
    assert gap.data == b""


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_a_cursor_holds_over_the_agents_end_while_the_container_writes_and_the_log_rotates(
    start_agent: Any, tmp_path: Path, end: str
) -> None:
    agent = start_agent(containers_at_exit="leave", log_max_size="64KiB", log_max_files="99")
    script = (
        f"seq 1 3000; printf half; touch {tmp_path}/half; until test -e {tmp_path}/go; do sleep 0.02; done; "
        "echo ' whole'; seq 3001 9000"
    )
    with sync.connect(agent.address) as client:
        id = created(client, script)
        client.start_container(id)
        with client.logs(id, follow=True) as entries:
            got = [next(entries) for _ in range(1500)]
            middle = got[-1].cursor
            while got[-1].data != b"half":
                got.append(next(entries))
    assert [entry.data for entry in got] == [*(b"%d" % n for n in range(1, 3001)), b"half"]
    agent.kill() if end == "killed" else agent.stop()
    (tmp_path / "go").touch()
    agent.restart()
    rest = [b" whole", *(b"%d" % n for n in range(3001, 9001))]
    with sync.connect(agent.address, wait=10) as client:
        client.wait_container(id)
        assert [entry.data for entry in client.logs(id, after=got[-1].cursor)] == rest
        assert [entry.data for entry in client.logs(id, after=middle)] == [
            *(b"%d" % n for n in range(1501, 3001)),
            b"half whole",
            *rest[1:],
        ]
        with client.logs(id, after=got[-1].cursor, follow=True) as entries:
            assert [entry.data for entry in entries] == rest
        client.remove_container(id)


#: Of a line in a log: from there on a reader passes it on in parts.
WINDOW = 262144
#: `2026-11-23T17:45:12.255151664Z stdout F `
PREFIX = 40
#: The capture takes so much of a line at once.
TAKEN = WINDOW - 45


@pytest.mark.parametrize("around", [TAKEN, WINDOW - PREFIX, WINDOW, 2 * TAKEN])
@pytest.mark.parametrize("shift", range(-2, 3))
def test_lines_as_long_as_a_reader_takes_come_whole_and_once(start_agent: Any, around: int, shift: int) -> None:
    agent = start_agent(log_max_size="4MiB")
    size = around + shift
    lines = [b"first", b"x" * size, b"between", b"y" * size, b"", b"last"]
    script = (
        f"echo first; head -c {size} /dev/zero | tr '\\0' x; echo; echo between; "
        f"head -c {size} /dev/zero | tr '\\0' y; echo; echo; echo last"
    )
    whole = b"".join(line + b"\n" for line in lines)
    with sync.connect(agent.address) as client:
        id = created(client, script)
        with client.logs(id, follow=True, attach=True) as entries:
            next(entries)
            client.start_container(id)
            assert text(list(entries)) == whole
        everything = list(client.logs(id))
        assert [(entry.data, entry.partial) for entry in everything] == [(line, False) for line in lines]
        for tail in range(1, 7):
            assert list(client.logs(id, tail=tail)) == everything[-tail:]
        for number, entry in enumerate(everything):
            assert list(client.logs(id, after=entry.cursor)) == everything[number + 1 :]
        path = agent.state_dir / "logs" / f"{id}.log"
    content = path.read_bytes()
    assert max(map(len, content.splitlines())) < WINDOW
    assert [entry.data for entry in reference.read([content])] == lines
    assert [entry.data for entry in read_log(str(path))] == lines

"""The fuzz lane itself: it finds what is wrong, makes it small, and keeps it."""

from __future__ import annotations

import gc
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.fuzz import lane, worker
from tools.fuzz.draw import Draw
from tools.fuzz.minimise import minimise
from tools.fuzz.mutate import Mutator
from tools.fuzz.record import MOST, Record
from tools.fuzz.target import Target
from tools.sanitized import ROOT

SEEDS = [b"one two three", b"\x0a\x03abc\x10\x05", b""]


@pytest.fixture(autouse=True)
def little_to_collect() -> Iterator[None]:
    """The descriptors are counted after a collection, which is to look at what the test makes, not at all of pytest."""
    gc.freeze()
    yield
    gc.unfreeze()


def fuzz(target: Target, path: Path, executions: int = 20000) -> tuple[int, Record]:
    record = Record(path / "record", create=True)
    return worker.fuzz(target, record, "1", executions, 0), record


def test_the_same_seed_gives_the_same_inputs_and_another_others() -> None:
    def inputs(seed: int) -> list[bytes]:
        mutator = Mutator(random.Random(seed), SEEDS, [b"word"])
        return [mutator.next() for _ in range(500)]

    assert inputs(1) == inputs(1)
    assert inputs(1) != inputs(2)
    assert len(set(inputs(1))) > 300


def test_no_input_is_longer_than_the_record_holds() -> None:
    mutator = Mutator(random.Random(1), [b"x" * (MOST + 5), b"y" * MOST], [])
    assert max(len(mutator.next()) for _ in range(500)) == MOST


def test_a_failing_input_is_found_and_made_small(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(data: bytes, thorough: bool) -> object:
        if b"tw" in data and data.count(b"e") > 1:
            raise ValueError("found")
        return len(data)

    status, record = fuzz(Target(run, lambda: [b"ee two", b"one wt"][1:] + [b"one tw e"[:-1]]), tmp_path)
    assert status == worker.FAILED
    assert sorted(record.data) == sorted(b"twee")
    assert "ValueError: found" in capfd.readouterr().err


def test_an_input_of_a_new_kind_is_what_others_are_made_of(tmp_path: Path) -> None:
    def run(data: bytes, thorough: bool) -> object:
        known = 0
        while known < 3 and data[known : known + 1] == b"\x81\x42\x99"[known : known + 1]:
            known += 1
        assert known < 3, "all three"
        return known

    # By chance alone it would take 256 ** 3 inputs.
    status, record = fuzz(Target(run, lambda: [b"\0\0\0"]), tmp_path, 100_000)
    assert status == worker.FAILED and record.data == b"\x81\x42\x99"


def test_a_descriptor_that_is_left_open_is_a_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    opened = []

    def run(data: bytes, thorough: bool) -> object:
        if data[:1] == b"\x07":
            opened.append(os.open("/dev/null", os.O_RDONLY))
        return None

    try:
        status, record = fuzz(Target(run, lambda: [b"abc"]), tmp_path)
    finally:
        for fd in opened:
            os.close(fd)
    assert status == worker.FAILED and record.data == b"\x07"
    assert "1 descriptors were left open" in capfd.readouterr().err


def test_a_target_without_fault_runs_as_often_as_it_is_told(tmp_path: Path) -> None:
    seen = []

    def run(data: bytes, thorough: bool) -> object:
        seen.append(thorough)
        return None

    status, record = fuzz(Target(run, lambda: SEEDS), tmp_path, 1000)
    assert (status, record.executions, len(seen)) == (0, 1000, 1000)
    # Each seed both ways, then one in thirty-two.
    assert seen[:6] == [True, False] * 3 and seen[6:].count(True) == 31


def test_a_part_that_ends_its_process_is_saved_with_the_input_that_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "MINIMISING", 0.0)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PYTHONMALLOC": "malloc"}
    one = lane.Lane("inotify", True, tmp_path, environment)
    one.start(1, 0, 60.0)
    while one.executions < 1000:
        assert one.poll() is None
    assert one.process is not None
    one.process.send_signal(signal.SIGABRT)
    one.process.wait()
    expected = Record(tmp_path / "inotify.record").data
    outcome = one.poll()
    assert outcome is not None and outcome.saved is not None
    assert outcome.executions >= 1000
    assert outcome.saved.name.startswith("inotify-") and outcome.saved.read_bytes() == expected
    assert not one.scratch.exists()


def test_minimising_ends_in_time_and_keeps_what_fails() -> None:
    assert minimise(b"abcXdefYghi", lambda data: b"X" in data and b"Y" in data, 10) == b"XY"
    assert minimise(b"\xff" * 9, lambda data: len(data) == 9, 10) == bytes(9)
    assert minimise(b"abc", lambda data: True, 0) == b"abc"


def test_an_input_that_is_used_up_gives_zeros() -> None:
    draw = Draw(b"\x02ab\x05")
    assert draw.block() == b"ab"
    assert (draw.more, draw.byte(), draw.more) == (True, 5, False)
    assert (draw.byte(), draw.number(), draw.block(), draw.chance(2), draw.choice("xyz")) == (0, 0, b"", False, "x")


def test_a_lane_that_is_stopped_leaves_no_worker_and_no_memory(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    idle, busy = (lane.Lane("inotify", objects, tmp_path, environment) for objects in (True, False))
    busy.start(1, 0, 60.0)
    assert busy.process is not None and busy.process.poll() is None
    for one in (idle, busy, busy):
        one.stop()
        assert not one.scratch.exists()
    assert busy.process.returncode == -signal.SIGKILL

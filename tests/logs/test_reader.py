"""Reading logs where there is no agent: many files, huge files, odd files."""

from __future__ import annotations

import gzip
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from arcbox_agent._log_file import CaptureLog
from arcbox_agent._logs import BLOCKED
from arcbox_agent.errors import LogFileError
from arcbox_agent.logs import LogReader, read_log
from arcbox_agent.logs import reader as reader_module
from tests.logs.support import plain, write_log
from tests.reference import logs as reference

STAMP = b"2026-11-23T17:45:12.255151664Z"


def test_ten_thousand_tiny_files(tmp_path: Path) -> None:
    # Each log has a hundred files of one line.
    for log in range(100):
        for number in range(100):
            file = tmp_path / f"{log}.log{f'.{number}' if number else ''}"
            file.write_bytes(STAMP + b" stdout F %d\n" % number)
    before = len(os.listdir("/proc/self/fd"))
    for log in range(100):
        path = str(tmp_path / f"{log}.log")
        assert [int(entry.data) for entry in read_log(path)] == list(range(99, -1, -1))
        assert [int(entry.data) for entry in read_log(path, tail=3)] == [2, 1, 0]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_line_of_one_gib_is_read_in_parts_with_bounded_memory(tmp_path: Path) -> None:
    log = tmp_path / "huge.log"
    with log.open("wb") as file:
        file.write(STAMP + b" stdout F before\n" + STAMP + b" stderr F ")
        file.truncate(1 << 30)  # sparse: NUL bytes are as good as any
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + STAMP + b" stdout F after\n")
    program = (
        "import sys\n"
        "from arcbox_agent.logs import read_log\n"
        "def peak(): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) * 1024\n"
        "before = peak()\n"
        "last = [e.data for e in read_log(sys.argv[1], tail=1)]\n"
        "assert last == [b'after'], last\n"
        "size = parts = 0\n"
        "for entry in read_log(sys.argv[1], tail=2):\n"
        "    size += len(entry.data); parts += entry.partial\n"
        "assert peak() - before < 8 << 20, peak() - before\n"
        "print(size, parts)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, log], check=True, stdout=subprocess.PIPE, text=True, timeout=120
    )
    text = (1 << 30) - len(STAMP + b" stdout F before\n" + STAMP + b" stderr F ")
    assert done.stdout.split() == [str(text + len(b"after")), str((text - 1) // (1 << 20))]


@pytest.mark.parametrize("seed", range(3))
def test_since_and_until_find_their_place_in_a_large_file(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    stamp = 1795455912 * 10**9
    lines: list[bytes] = []
    for _ in range(2500):
        stamp += rng.choice([0, 10**6, 10**9, 90 * 10**9])
        shown = stamp + rng.randrange(-30, 30) * 10**9  # not quite in order
        stream = rng.choice([b"stdout", b"stderr"])
        lines.append(
            reference.format_stamp(shown)
            + b" "
            + stream
            + b" F %d " % len(lines)
            + b"x" * rng.choice([1, 50, 500, 9000])
            + b"\n"
        )
        if rng.random() < 0.05:
            lines.append(b"a line without a time\n")
    content = b"".join(lines)
    path = write_log(tmp_path, [content])
    assert len(content) > reader_module.BISECT_FROM
    for _ in range(15):
        since = rng.choice([None, rng.randrange(1795455912 * 10**9, stamp)])
        until = rng.choice([None, rng.randrange(since or 1795455912 * 10**9, stamp + 10**12)])
        tail = rng.choice([0, 1, 10, 1000])
        expected = reference.read([content], since=since, until=until, tail=tail, detail=True)
        assert plain(list(read_log(path, since=since, until=until, tail=tail))) == expected


@pytest.mark.parametrize("tail", [0, 1])
@pytest.mark.parametrize("far", [1 << 62, (1 << 63) - 1, 10**30])
def test_since_and_until_may_lie_beyond_every_time_that_a_log_can_have(tmp_path: Path, far: int, tail: int) -> None:
    # Larger than what is searched by bisection, whose slack must not lead over the edge either.
    path = write_log(tmp_path, [(STAMP + b" stdout F " + b"x" * 1000 + b"\n") * 1100])
    assert os.path.getsize(path) > reader_module.BISECT_FROM
    everything = list(read_log(path, tail=tail))
    assert len(everything) == (tail or 1100)
    assert list(read_log(path, since=-far, until=far, tail=tail)) == everything
    assert list(read_log(path, since=far, tail=tail)) == []
    assert list(read_log(path, until=-far, tail=tail)) == []


def test_what_cannot_be_read_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing.log"):
        list(read_log(str(tmp_path / "missing.log")))
    (tmp_path / "directory.log").mkdir()
    with pytest.raises(IsADirectoryError, match="not a regular file.*directory.log"):
        list(read_log(str(tmp_path / "directory.log")))
    os.mkfifo(tmp_path / "fifo.log")
    with pytest.raises(IsADirectoryError, match="not a regular file.*fifo.log"):
        list(read_log(str(tmp_path / "fifo.log")))


def record(number: int, form: str) -> bytes:
    stamp = f"2026-11-23T17:45:{number:02}.000000000Z"
    if form == "json":
        return f'{{"log":"line {number}\\n","stream":"stdout","time":"{stamp}"}}\n'.encode()
    if form == "bracketed":
        return f"[{stamp}] [stdout]: line {number}\n".encode()
    return f"{stamp} stdout F line {number}\n".encode()


@pytest.mark.parametrize("form", ["cri", "json", "bracketed"])
@pytest.mark.parametrize("size", [1, 4096, 262_100, 262_144, 262_145, 600_000, 2_500_000])
@pytest.mark.parametrize("ended", [False, True])
def test_a_record_behind_nul_bytes_is_the_record_that_it_is(tmp_path: Path, form: str, size: int, ended: bool) -> None:
    """A power failure leaves NUL bytes in the place of lines, with or without the newline of the last of them."""
    records = [record(number, form) for number in range(50)]
    records[17] = b"\0" * size + (b"\n" if ended else b"")
    path = write_log(tmp_path, [b"".join(records)])
    expected = [b"line %d" % number for number in range(50) if number != 17]
    assert [entry.data for entry in read_log(path)] == expected
    for tail in (1, 31, 32, 33, 40, 48, 49, 60):
        assert [entry.data for entry in read_log(path, tail=tail)] == expected[-tail:]
    since = 1795455900 + 18
    assert [entry.data for entry in read_log(path, since=since * 10**9)] == expected[17:]
    assert [entry.data for entry in read_log(path, until=since * 10**9)] == expected[:18]
    assert [entry.data for entry in read_log(path, since=since * 10**9, tail=33)] == expected[17:]


def test_a_file_that_ends_with_nul_bytes_ends_with_the_record_before_them(tmp_path: Path) -> None:
    for size in (1, 4096, 300_000):
        path = write_log(tmp_path, [record(1, "cri") + record(2, "cri") + b"\0" * size])
        assert [entry.data for entry in read_log(path)] == [b"line 1", b"line 2"]
        assert [entry.data for entry in read_log(path, tail=1)] == [b"line 2"]


def test_nul_bytes_of_plain_text_are_its_own(tmp_path: Path) -> None:
    path = write_log(tmp_path, [b"a\0b\n\0c\n"])
    assert [entry.data for entry in read_log(path)] == [b"a\0b", b"\0c"]


def test_no_link_of_a_guest_leads_to_a_file_of_this_machine(tmp_path: Path) -> None:
    secret, guest = tmp_path / "secret.log", tmp_path / "guest"
    secret.write_bytes(STAMP + b" stdout F secret\n")
    guest.mkdir()
    (guest / "logs").mkdir()
    log = guest / "logs" / "web.log"
    log.symlink_to(secret)
    with pytest.raises(LogFileError, match="web.log: there is a symbolic link in this path"):
        list(read_log(str(log)))
    (guest / "link").symlink_to(tmp_path)
    with pytest.raises(LogFileError, match="link/secret.log: there is a symbolic link"):
        list(read_log(str(guest / "link" / "secret.log")))
    log.unlink()
    log.write_bytes(STAMP + b" stdout F hello\n")
    Path(f"{log}.1").symlink_to(secret)
    Path(f"{log}.2").symlink_to("/dev/zero")
    assert b"secret" not in [entry.data for entry in read_log(str(log))]


def test_rotated_logs_that_were_compressed_are_read_and_others_are_named(tmp_path: Path) -> None:
    files = [b"".join(record(number, "json") for number in range(at, at + 10)) for at in range(0, 40, 10)]
    path = write_log(tmp_path, files)
    for number in (1, 3):
        Path(f"{path}.{number}.gz").write_bytes(gzip.compress(Path(f"{path}.{number}").read_bytes()))
        os.unlink(f"{path}.{number}")
    expected = [b"line %d" % number for number in range(40)]
    assert [entry.data for entry in read_log(path)] == expected
    assert [entry.data for entry in read_log(path, tail=25)] == expected[-25:]
    Path(f"{path}.20261127-093000").write_bytes(record(0, "cri"))
    first, *rest = read_log(path)
    assert first.gap is not None and "web.log.20261127-093000 is not read" in first.gap.reason
    assert [entry.data for entry in rest] == expected


@pytest.mark.parametrize("damage", ["no gzip", "cut off", "a wrong sum"])
@pytest.mark.parametrize("place", [1, 2])
def test_a_damaged_compressed_log_is_told_and_what_is_newer_is_read(tmp_path: Path, damage: str, place: int) -> None:
    files = [b"".join(record(number, "cri") for number in range(at, at + 10)) for at in range(0, 30, 10)]
    path = write_log(tmp_path, files)
    cursor = next(iter(read_log(path))).cursor
    whole = gzip.compress(Path(f"{path}.{place}").read_bytes())
    os.unlink(f"{path}.{place}")
    Path(f"{path}.{place}.gz").write_bytes(
        {
            "no gzip": b"no gzip",
            "cut off": whole[:-12],
            "a wrong sum": whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:],
        }[damage]
    )
    newer = [b"line %d" % number for number in range(30 - 10 * place, 30)]
    for options in ({}, {"tail": 1000}, {"after": cursor}):
        entries = list(read_log(path, **options))
        reason = f"web.log.{place}.gz is not read, nor what is older: it cannot be decompressed: "
        gaps = [entry.gap for entry in entries if entry.gap is not None]
        assert [gap.at_least for gap in gaps if gap.reason.startswith(reason)] == [True]
        assert [entry.data for entry in entries[len(gaps) :]] == newer
    # It is not looked at where it is not needed.
    assert [entry.data for entry in read_log(path, tail=9)] == newer[-9:]
    # Who cannot be told of a gap is told by an error.
    reader = LogReader(path, output="text")
    with pytest.raises(OSError, match=rf"cannot be decompressed.*web\.log\.{place}\.gz"):
        while reader.step() is not None:
            pass


#: gzip files may be joined; it has a hole that a reader passes over.
MEBIBYTE = gzip.compress(bytes(1 << 20))


@pytest.mark.parametrize("over", [0, 1])
def test_a_compressed_log_of_256_mib_is_read_and_a_larger_one_is_told(tmp_path: Path, over: int) -> None:
    first, last = record(1, "cri"), record(2, "cri")
    path = write_log(tmp_path, [last])
    rest = (1 << 20) - len(first) - 1 + over
    Path(f"{path}.1.gz").write_bytes(gzip.compress(first) + MEBIBYTE * 255 + gzip.compress(bytes(rest) + b"\n"))
    entries = list(read_log(path))
    assert [entry.data for entry in entries if entry.gap is None] == [b"line 1", b"line 2"][over:]
    assert [entry.gap.reason for entry in entries if entry.gap is not None] == [
        "web.log.1.gz is not read, nor what is older: it has more than 256 MiB decompressed"
    ][:over]


def test_compressed_logs_have_a_bound_together(tmp_path: Path) -> None:
    path = write_log(tmp_path, [record(9, "cri")])
    for number in range(1, 6):
        Path(f"{path}.{number}.gz").write_bytes(gzip.compress(record(9 - number, "cri")) + MEBIBYTE * 240)
    gap, *rest = read_log(path)
    assert gap.gap is not None and "with newer ones it has more than 1024 MiB decompressed" in gap.gap.reason
    assert [entry.data for entry in rest] == [b"line 5", b"line 6", b"line 7", b"line 8", b"line 9"]


def test_a_device_is_refused_before_it_is_opened() -> None:
    # To open the terminal of a process that has none is an error of its own.
    program = "from arcbox_agent.logs import read_log\nlist(read_log('/dev/tty'))"
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert "IsADirectoryError: [Errno 21] not a regular file: '/dev/tty'" in done.stderr


def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    log = tmp_path / "secret.log"
    log.write_bytes(STAMP + b" stdout F secret\n")
    log.chmod(0)
    # Root may read all: somebody else has to try.
    program = "from arcbox_agent.logs import read_log\nimport os, sys\nos.setuid(65534)\nlist(read_log(sys.argv[1]))\n"
    for directory in (tmp_path, *list(tmp_path.parents)[:3]):
        if directory.stat().st_mode & 0o001 == 0:
            directory.chmod(directory.stat().st_mode | 0o001)
    done = subprocess.run([sys.executable, "-c", program, log], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "PermissionError: [Errno 13] Permission denied" in done.stderr
    assert str(log) in done.stderr


_ONE_DESCRIPTOR = """
import os, resource, sys
from arcbox_agent.logs import read_log
list(read_log(sys.argv[1]))  # what is imported late is there now
free = os.open("/dev/null", os.O_RDONLY)
os.close(free)
resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, free + 1))
try:
    print([entry.data for entry in read_log(sys.argv[1])])
except OSError as error:
    print(error.strerror, error.filename)
"""


def test_a_rotated_file_that_cannot_be_opened_is_not_left_out_without_a_word(tmp_path: Path) -> None:
    path = write_log(tmp_path, [b"2026-11-23T17:45:12Z stdout F older\n", b"2026-11-23T17:45:13Z stdout F newer\n"])
    done = subprocess.run(
        [sys.executable, "-c", _ONE_DESCRIPTOR, path], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"Too many open files {path}.1\n"


def test_a_log_whose_newest_file_is_missing_is_read_from_its_siblings(tmp_path: Path) -> None:
    path = write_log(tmp_path, [STAMP + b" stdout F old\n", STAMP + b" stdout F new\n", b""])
    os.unlink(path)
    assert [entry.data for entry in read_log(path)] == [b"old", b"new"]


def test_reading_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    path = write_log(tmp_path, [STAMP + b" stdout F x\n"] * 5)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        next(iter(read_log(path)))
    # What an earlier test left may be closed meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_log_that_was_never_rotated_is_read_without_waiting_for_the_disk(tmp_path: Path) -> None:
    def first_step(name: str, prepare: Callable[[str], None]) -> object:
        path = str(tmp_path / name)
        Path(path).write_bytes(STAMP + b" stdout F one\n")
        prepare(path)
        reader = LogReader(path)
        try:
            return reader.step(nowait=True)
        finally:
            reader.close()

    def look_for_siblings(path: str) -> None:
        for number in range(1, 4):
            assert not os.path.exists(f"{path}.{number}")
            assert not os.path.exists(f"{path}.{number}.gz")

    # Some file systems remember no name that is not there: then nothing can be done beforehand.
    remembered = first_step("looked.log", look_for_siblings) != BLOCKED
    captured = first_step("captured.log", lambda path: CaptureLog(path, 1 << 20, 1).open())
    assert (captured != BLOCKED) == remembered

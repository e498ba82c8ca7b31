"""Capture: every byte of a container's output is in its log, once, whatever happens to the agent."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pty
import random
import signal
import struct
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent._log_file import CaptureLog
from arcbox_agent._pump import Source
from arcbox_agent.agent.config import budget
from arcbox_agent.agent.config.table import Settings
from arcbox_agent.agent.containers.output.capture import Capture
from arcbox_agent.agent.metrics import Metrics
from arcbox_agent.logs import read_log
from tests.containers.support import eventually
from tests.logs.support import joined, plain
from tests.logs.writer_process import output

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def start(module: str, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"tests.logs.{module}", *map(str, arguments)]
    # First what this process was given: a build of its own, under tools/sanitized.py.
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(REPOSITORY / "src"), str(REPOSITORY)]))
    return subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": path}, **options)


def content(log: Path) -> dict[str, bytes]:
    """What the streams wrote, as the log has it (`F:end` lines had no newline)."""
    streams = {b"stdout": bytearray(), b"stderr": bytearray()}
    # Every number there may be: a rotation cut short leaves an empty place.
    files = [Path(f"{log}.{number}") for number in range(300, 0, -1)] + [log]
    for file in filter(Path.exists, files):
        for line in _lines(file):
            _, stream, tag, text = line.split(b" ", 3)
            if tag == b"F:gap":
                continue
            streams[stream] += text + (b"\n" if tag == b"F" else b"")
    return {name.decode(): bytes(text) for name, text in streams.items()}


def _lines(file: Path) -> list[bytes]:
    lines = file.read_bytes().split(b"\n")
    assert lines.pop() == b"", "a log ends with a whole line"
    return lines


class Capturing:
    """One container's FIFOs and log in a directory, captured in this process."""

    def __init__(
        self, directory: Path, log: Path | None = None, *, max_size: int = 20 << 20, max_files: int = 5
    ) -> None:
        self.directory = directory
        self.log = log or directory / "logs" / "web.log"
        self.settings = Settings()
        self.settings.log_max_size, self.settings.log_max_files = max_size, max_files
        self.fifos = {name: str(directory / name) for name in ("stdout", "stderr")}
        for path in self.fifos.values():
            if not os.path.exists(path):
                os.mkfifo(path, 0o600)

    async def __aenter__(self) -> Capturing:
        self.metrics = Metrics()
        self.capture = Capture(self.settings, self.metrics)
        await self.capture.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.capture.close()

    def attach(self, master: int | None = None) -> Any:
        fifos = self.fifos if master is None else {}
        return self.capture.attach("web", str(self.log), str(self.directory), fifos, master)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_output_is_logged_in_the_cri_format(tmp_path: Path, run_async: Any) -> None:
    async def scenario() -> None:
        async with Capturing(tmp_path) as box:
            handle = box.attach()
            fd = os.open(box.fifos["stdout"], os.O_RDWR)
            os.write(fd, b"hello\n\nwo")
            await until(lambda: box.log.exists() and b" F \n" in box.log.read_bytes())
            assert handle.lag == 2  # a started line waits for its end
            os.write(fd, b"rld\nthe end")
            os.close(fd)
            assert await handle.finish(10)

    run_async(scenario())
    lines = (tmp_path / "logs" / "web.log").read_bytes().split(b"\n")
    assert [line.split(b" ", 1)[1] for line in lines[:-1]] == [
        b"stdout F hello",
        b"stdout F ",
        b"stdout F world",
        b"stdout F:end the end",
    ]
    assert lines[-1] == b""
    assert all(len(line.split(b" ")[0]) == 30 and line[29:30] == b"Z" for line in lines[:-1])
    assert sorted(os.listdir(tmp_path)) == ["logs", "stderr", "stdout"]  # the spools are gone


def test_each_line_has_a_time_of_its_own_later_than_the_one_before(tmp_path: Path, run_async: Any) -> None:
    async def scenario() -> None:
        async with Capturing(tmp_path) as box:
            handle = box.attach()
            fds = [os.open(box.fifos[name], os.O_RDWR) for name in ("stdout", "stderr")]
            for _ in range(4):
                await asyncio.gather(*(asyncio.to_thread(write_all, fd, b"x\n" * 150_000) for fd in fds))
                for fd in fds:
                    os.write(fd, b"not ended")
                await until(lambda: handle.lag <= 2 * len(b"not ended"))
            for fd in fds:
                os.close(fd)
            assert await handle.finish(10)

    run_async(scenario())
    times = [entry.timestamp for entry in read_log(str(tmp_path / "logs" / "web.log"))]
    assert len(times) > 1_200_000
    assert all(before < after for before, after in itertools.pairwise(times))
    # They are the times of the writes all the same.
    assert abs(times[-1] - time.time_ns()) < 60 * 10**9


def test_output_written_before_the_agent_came_is_captured(tmp_path: Path, run_async: Any) -> None:
    async def scenario() -> None:
        async with Capturing(tmp_path) as box:
            fd = os.open(box.fifos["stderr"], os.O_RDWR)
            os.write(fd, b"early\n")
            handle = box.attach()
            await handle.ready()
            os.close(fd)
            assert await handle.finish(10)

    run_async(scenario())
    assert content(tmp_path / "logs" / "web.log") == {"stdout": b"", "stderr": b"early\n"}


def test_finish_waits_no_longer_than_it_may_for_one_who_holds_the_output_open(tmp_path: Path, run_async: Any) -> None:
    async def scenario() -> None:
        async with Capturing(tmp_path) as box:
            handle = box.attach()
            fd = os.open(box.fifos["stdout"], os.O_RDWR)
            os.write(fd, b"before\npart")
            assert await handle.finish(0.2) is False
            assert content(box.log)["stdout"] == b"before\npart"
            os.close(fd)

    run_async(scenario())


def test_a_disk_that_hangs_does_not_keep_the_capture_from_closing(
    tmp_path: Path, run_async: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "CAPTURE_ENDED", 0.2)
    begun, hangs = threading.Event(), threading.Event()

    def hang(_: object) -> None:
        begun.set()
        hangs.wait()

    async def scenario() -> None:
        box = Capturing(tmp_path)
        async with box:
            handle = box.attach()
            await handle.ready()
            # What the thread does for a container, and does not come back from.
            box.capture._order(hang, handle)
            await until(begun.is_set)
        assert not box.capture._ended.done()
        hangs.set()
        await asyncio.wait_for(box.capture._ended, 10)

    try:
        run_async(scenario())
    finally:
        hangs.set()


def test_the_next_run_of_a_container_goes_on_in_the_same_log(tmp_path: Path, run_async: Any) -> None:
    async def scenario() -> None:
        async with Capturing(tmp_path) as box:
            for text in (b"first", b"second\n"):
                handle = box.attach()
                fd = os.open(box.fifos["stdout"], os.O_RDWR)
                os.write(fd, text)
                os.close(fd)
                assert await handle.finish(10)

    run_async(scenario())
    entries = list(read_log(str(tmp_path / "logs" / "web.log")))
    assert [(e.data, e.partial) for e in entries] == [(b"first", True), (b"second", False)]


def test_a_terminal_is_captured_until_it_is_closed(tmp_path: Path, run_async: Any) -> None:
    async def scenario() -> None:
        master, slave = pty.openpty()
        async with Capturing(tmp_path) as box:
            handle = box.attach(master)
            os.write(slave, b"on a terminal\n")
            await until(lambda: box.log.exists() and b"terminal" in box.log.read_bytes())
            os.close(slave)
            assert await handle.finish(10)
        os.close(master)

    run_async(scenario())
    assert content(tmp_path / "logs" / "web.log")["stdout"] == b"on a terminal\r\n"


def test_a_terminal_that_was_closed_and_opened_again_is_captured_on(tmp_path: Path, run_async: Any) -> None:
    async def scenario() -> None:
        master, slave = pty.openpty()
        name = os.ttyname(slave)
        async with Capturing(tmp_path) as box:
            handle = box.attach(master)
            for number in range(3):
                os.write(slave, b"".join(b"%d %d\n" % (number, line) for line in range(100)))
                await until(lambda: box.log.exists() and b"%d 99\r\n" % number in box.log.read_bytes())
                os.close(slave)
                await asyncio.sleep(0.1)
                slave = os.open(name, os.O_RDWR | os.O_NOCTTY)
            os.close(slave)
            assert await handle.finish(10)
        os.close(master)

    run_async(scenario())
    expected = b"".join(b"%d %d\r\n" % (number, line) for number in range(3) for line in range(100))
    assert content(tmp_path / "logs" / "web.log")["stdout"] == expected


def test_no_line_of_a_log_is_longer_than_what_its_reader_takes_whole(tmp_path: Path, run_async: Any) -> None:
    window = 262_144  # LINE_WINDOW, in _lines.pxd
    lengths = [*range(window - 46, window - 38), *range(window - 1, window + 2), 3 * window]
    text = b"".join(bytes([97 + i]) * length + b"\n" for i, length in enumerate(lengths)) + b"z" * 2 * window

    async def scenario() -> None:
        async with Capturing(tmp_path) as box:
            handle = box.attach()
            await handle.ready()
            fd = os.open(box.fifos["stdout"], os.O_WRONLY)
            await asyncio.to_thread(write_all, fd, text)
            os.close(fd)
            assert await handle.finish(20)

    run_async(scenario())
    log = tmp_path / "logs" / "web.log"
    assert content(log)["stdout"] == text
    assert window - 45 <= max(len(line) + 1 for line in _lines(log)) <= window


def test_rotation_keeps_so_many_files_and_loses_nothing_between_them(tmp_path: Path, run_async: Any) -> None:
    text = output(3, 3 << 20)

    async def scenario() -> None:
        async with Capturing(tmp_path, max_size=1 << 20, max_files=2) as box:
            handle = box.attach()
            writer = start("writer_process", box.fifos["stdout"], 3, 3 << 20)
            await asyncio.to_thread(writer.wait)
            assert await handle.finish(20)

    run_async(scenario())
    log = tmp_path / "logs" / "web.log"
    assert sorted(os.listdir(log.parent)) == ["web.log", "web.log.1", "web.log.2"]
    assert log.stat().st_size <= 1 << 20
    kept = content(log)["stdout"]
    assert text.endswith(kept)
    assert len(kept) > 1 << 20
    assert joined(plain(list(read_log(str(log)))))["stdout"] == kept


def test_nobody_else_can_read_a_log(tmp_path: Path, run_async: Any) -> None:
    async def scenario() -> None:
        async with Capturing(tmp_path) as box:
            await box.attach().ready()

    previous = os.umask(0)
    try:
        run_async(scenario())
    finally:
        os.umask(previous)
    assert (tmp_path / "logs").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "logs" / "web.log").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "stdout.spool").stat().st_mode & 0o777 == 0o600


def test_a_log_that_somebody_moved_away_is_begun_again(tmp_path: Path, run_async: Any) -> None:
    async def scenario() -> None:
        async with Capturing(tmp_path) as box:
            handle = box.attach()
            fd = os.open(box.fifos["stdout"], os.O_RDWR)
            os.write(fd, b"one\n")
            await until(lambda: box.log.exists() and b"one" in box.log.read_bytes())
            box.log.rename(f"{box.log}.1")
            while not box.log.exists():
                os.write(fd, b"two\n")
                await asyncio.sleep(0.05)
            os.close(fd)
            assert await handle.finish(10)

    run_async(scenario())
    text = content(tmp_path / "logs" / "web.log")["stdout"]
    assert text.startswith(b"one\ntwo\n")
    assert text.replace(b"two\n", b"") == b"one\n"


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_stops_no_container_and_the_log_tells_what_is_missing(tmp_path: Path, run_async: Any) -> None:
    async def scenario(disk: Path) -> None:
        async with Capturing(tmp_path, disk / "web.log", max_size=1 << 30) as box:
            handle = box.attach()
            fd = os.open(box.fifos["stdout"], os.O_RDWR)
            line = b"%099d\n"
            written = 0
            while written < 24 << 20:  # far more than disk, pipe and spool can hold
                block = b"".join(line % (written // 100 + i) for i in range(100))
                await asyncio.to_thread(os.write, fd, block)
                written += len(block)
            await until(lambda: box.metrics.value("capture_dropped_bytes") > 0)
            (disk / "ballast").unlink()  # room again
            os.write(fd, b"after\n")
            await until(lambda: b" F after\n" in box.log.read_bytes())
            os.close(fd)
            assert await handle.finish(10)
            assert box.metrics.value("log_lag_bytes") == 0
            self_told = [line for line in _lines(box.log) if b" F:gap " in line]
            assert self_told
            lost = sum(int(line.split(b"lost: ")[1].split(b" ")[0]) for line in self_told)
            lines = sum(int(line.split(b", ")[1].split(b" ")[0]) for line in self_told)
            assert lost == box.metrics.value("capture_dropped_bytes")
            kept = content(box.log)["stdout"]
            assert len(kept) + lost == written + len(b"after\n")
            assert kept.count(b"\n") + lines == written // 100 + 1
            numbers = [int(number) for number in kept.split(b"\n")[:-2]]
            assert numbers == sorted(set(numbers))
            assert b"No space left on device" in self_told[0]

    with small_disk(tmp_path / "disk", "40m") as disk:
        (disk / "ballast").write_bytes(b"x" * (36 << 20))
        run_async(scenario(disk))


def test_a_log_that_cannot_be_opened_is_written_as_soon_as_it_can(tmp_path: Path, run_async: Any) -> None:
    async def scenario() -> None:
        async with Capturing(tmp_path) as box:
            box.log.mkdir(parents=True)  # a directory in its place
            handle = box.attach()
            with pytest.raises(OSError, match="Is a directory"):
                await handle.ready()
            fd = os.open(box.fifos["stdout"], os.O_RDWR)
            os.write(fd, b"kept\n")
            await asyncio.sleep(0.3)
            box.log.rmdir()
            await until(lambda: box.log.exists() and b"kept" in box.log.read_bytes())
            os.close(fd)
            assert await handle.finish(10)

    run_async(scenario())
    assert content(tmp_path / "logs" / "web.log")["stdout"] == b"kept\n"


async def end_without_room(box: Capturing) -> None:
    """A run whose output cannot be written to the log, which a directory is in the place of."""
    box.log.mkdir(parents=True)
    handle = box.attach()
    fd = os.open(box.fifos["stdout"], os.O_RDWR)
    os.write(fd, b"kept\nuntil there is room")
    os.close(fd)
    assert await handle.finish(0.3) is False


def test_what_could_not_be_written_at_the_end_is_written_by_the_next_run(tmp_path: Path, run_async: Any) -> None:
    async def scenario() -> None:
        async with Capturing(tmp_path) as box:
            await end_without_room(box)
            box.log.rmdir()
            handle = box.attach()
            await handle.ready()
            assert await handle.finish(10)
            assert is_kept(box)

    run_async(scenario())


def test_the_next_run_does_not_go_on_in_a_line_that_waited_for_room(tmp_path: Path, run_async: Any) -> None:
    async def scenario() -> None:
        async with Capturing(tmp_path) as box:
            await end_without_room(box)
            box.log.rmdir()
            handle = box.attach()
            await handle.ready()
            fd = os.open(box.fifos["stdout"], os.O_RDWR)
            os.write(fd, b"next\n")
            os.close(fd)
            assert await handle.finish(10)

    run_async(scenario())
    texts = [line.split(b" stdout ")[1] for line in _lines(tmp_path / "logs" / "web.log")]
    assert texts == [b"F kept", b"F:end until there is room", b"F next"]


def is_kept(box: Capturing) -> bool:
    spool = box.directory / "stdout.spool"
    return not spool.exists() and content(box.log)["stdout"] == b"kept\nuntil there is room"


def test_what_could_not_be_written_at_the_end_is_written_when_there_is_room(tmp_path: Path, run_async: Any) -> None:
    async def scenario() -> None:
        async with Capturing(tmp_path) as box:
            await end_without_room(box)
            assert box.metrics.value("log_lag_bytes") == 24
            box.log.rmdir()
            await until(lambda: is_kept(box))
            await until(lambda: box.metrics.value("log_lag_bytes") == 0)

    run_async(scenario())


def test_what_could_not_be_written_at_the_end_is_written_by_the_next_agent(tmp_path: Path, run_async: Any) -> None:
    async def scenario() -> None:
        async with Capturing(tmp_path) as box:
            await end_without_room(box)
        async with box:
            box.capture.attach_rest("web", str(box.log), str(box.directory))
            await asyncio.sleep(0.3)
            box.log.rmdir()
            await until(lambda: is_kept(box))

    run_async(scenario())


def test_a_container_that_is_removed_leaves_nothing_that_waits_for_room(tmp_path: Path, run_async: Any) -> None:
    async def scenario() -> None:
        async with Capturing(tmp_path) as box:
            await end_without_room(box)
            await box.capture.forget("web")
            assert box.metrics.value("log_lag_bytes") == 0
            box.log.rmdir()
            await asyncio.sleep(0.5)
            assert os.listdir(box.log.parent) == []

    run_async(scenario())


def test_a_container_ends_though_its_spool_cannot_be_removed(tmp_path: Path, run_async: Any) -> None:
    async def scenario() -> None:
        async with Capturing(tmp_path) as box:
            handle = box.attach()
            await handle.ready()
            (tmp_path / "stdout.spool").unlink()
            (tmp_path / "stdout.spool").mkdir()
            os.close(os.open(box.fifos["stdout"], os.O_RDWR))
            assert await asyncio.wait_for(handle.finish(5), 30)

    run_async(scenario())


def test_a_log_that_cannot_be_opened_whole_after_a_crash_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    log.write_bytes(b"2026-11-23T17:45:12Z stdout F line\n")
    (tmp_path / "web.log.1").symlink_to("web.log.1")  # the mark is further back, and this says ELOOP
    (tmp_path / "spool").write_bytes(struct.pack("=QQqqqqQQ", 0x31504253, 1, 0, 0, 0, 0, 0, 0))
    before = os.listdir("/proc/self/fd")
    output = CaptureLog(str(log), 1 << 20, 5)
    source = Source(output, "stdout", -1, str(tmp_path / "spool"))
    with pytest.raises(OSError, match="symbolic links"):
        source.recover()
    source.close()
    assert os.listdir("/proc/self/fd") == before


def test_a_line_is_not_doubled_where_the_log_was_truncated_before_the_capture_was_killed(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "web.log"
    for name in ("stdout", "stderr"):
        os.mkfifo(tmp_path / name, 0o600)
    fd = os.open(tmp_path / "stdout", os.O_RDWR)

    def capture() -> subprocess.Popen[bytes]:
        process = start("capture_process", tmp_path, 1 << 20, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"capturing\n"
        return process

    with capture() as first:
        os.write(fd, b"".join(b"before %d\n" % number for number in range(100)))
        eventually(lambda: log.read_bytes().endswith(b" before 99\n"))
        os.truncate(log, 0)
        # The capture looks at its file once a second.
        for number in range(150):
            os.write(fd, b"after %d\n" % number)
            time.sleep(0.01)
        eventually(lambda: log.read_bytes().endswith(b" after 149\n"))
        first.kill()
    with capture() as second:
        os.write(fd, b"end\n")
        os.close(fd)
        second.terminate()
    assert second.returncode == 0
    wanted = [*(b"after %d" % number for number in range(150)), b"end", b""]
    assert content(log)["stdout"] == b"\n".join(wanted)


@pytest.mark.parametrize("told", [False, True], ids=["killed before the gap was told", "killed after it"])
def test_a_gap_is_told_once_whenever_the_agent_is_killed(tmp_path: Path, run_async: Any, told: bool) -> None:
    gap = b"2026-11-23T17:45:13Z stdout F:gap [output lost: 700 bytes, 7 lines: the log could not be written: x]\n"
    before = b"2026-11-23T17:45:12Z stdout F before\n"

    async def scenario() -> None:
        async with Capturing(tmp_path) as box:
            box.log.parent.mkdir()
            box.log.write_bytes(before + (gap if told else b""))
            # magic, inode, offset, skip, lost bytes, lost lines, open, cut: as _spool.pyx draws it
            mark = (0x31504253, box.log.stat().st_ino, len(before), 0, 700, 7, 0, 0)
            (tmp_path / "stdout.spool").write_bytes(struct.pack("=QQqqqqQQ", *mark) + b"behind\n")
            assert await box.attach().finish(10)
        lines = [line.split(b" ", 3)[2:] for line in _lines(box.log)]
        assert [tag for tag, _ in lines] == [b"F", b"F:gap", b"F"]
        assert lines[1][1].startswith(b"[output lost: 700 bytes, 7 lines: ")
        assert lines[2][1] == b"behind"

    run_async(scenario())


@pytest.mark.parametrize(
    "mark",
    [
        (0x31504254, 0, 0, 0, 0, 0, 0, 0),
        (0x31504253, 0, -1, 0, 0, 0, 0, 0),
        (0x31504253, 0, 0, -1, 0, 0, 0, 0),
        (0x31504253, 0, 0, 8, 0, 0, 0, 0),
        (0x31504253, 0, 0, 0, -1, 0, 0, 0),
        (0x31504253, 0, 0, 0, 0, (1 << 63) - 1, 0, 0),
    ],
    ids=["magic", "offset", "skip below 0", "skip above the bytes", "lost bytes", "lost lines"],
)
def test_a_damaged_spool_is_told_as_a_gap_and_the_capture_goes_on(
    tmp_path: Path, run_async: Any, mark: tuple[int, ...]
) -> None:
    async def scenario() -> None:
        async with Capturing(tmp_path) as box:
            (tmp_path / "stdout.spool").write_bytes(struct.pack("=QQqqqqQQ", *mark) + b"behind\n")
            handle = box.attach()
            fd = os.open(box.fifos["stdout"], os.O_RDWR)
            os.write(fd, b"after\n")
            os.close(fd)
            assert await handle.finish(10)
        lines = [line.split(b" ", 3)[2:] for line in _lines(box.log)]
        assert [tag for tag, _ in lines] == [b"F:gap", b"F"]
        assert lines[0][1].startswith(b"[output lost: 7 bytes, 0 lines: ")
        assert lines[1][1] == b"after"

    run_async(scenario())


def test_where_the_spool_has_no_room_either_the_order_stays_and_the_gap_is_told(tmp_path: Path, run_async: Any) -> None:
    async def scenario(disk: Path) -> None:
        async with Capturing(disk, max_size=1 << 30) as box:
            handle = box.attach()
            await handle.ready()
            fd = os.open(box.fifos["stdout"], os.O_RDWR)
            with contextlib.suppress(OSError), open(disk / "ballast", "wb", buffering=0) as ballast:
                while ballast.write(bytes(4096)):
                    pass
            lines = 90_000  # more than the spool holds in memory, too
            for first in range(0, lines, 40):  # 4,000 bytes, which a pipe takes whole
                some = b"".join(b"%099d\n" % number for number in range(first, first + 40))
                await asyncio.to_thread(os.write, fd, some)
            await until(lambda: box.metrics.value("capture_dropped_bytes") > 0)
            (disk / "ballast").unlink()
            os.write(fd, b"%099d\n" % lines)
            os.close(fd)
            assert await handle.finish(10)
            told = [line for line in _lines(box.log) if b" F:gap " in line]
            lost = sum(int(line.split(b", ")[1].split(b" ")[0]) for line in told)
            numbers = [int(number) for number in content(box.log)["stdout"].split()]
            assert numbers == sorted(set(numbers))
            assert numbers[-1] == lines
            assert len(numbers) + lost == lines + 1

    with small_disk(tmp_path / "disk", "2m") as disk:
        run_async(scenario(disk))


@pytest.mark.parametrize("kind", ["fifo", "terminal"])
def test_a_run_directory_without_room_costs_no_output(tmp_path: Path, run_async: Any, kind: str) -> None:
    async def scenario(disk: Path) -> None:
        async with Capturing(disk, tmp_path / "web.log", max_size=1 << 30) as box:
            master, slave = os.openpty()
            tty.setraw(slave)
            handle = box.attach(master) if kind == "terminal" else box.attach()
            await handle.ready()
            fd = slave if kind == "terminal" else os.open(box.fifos["stdout"], os.O_RDWR)
            with contextlib.suppress(OSError), open(disk / "ballast", "wb", buffering=0) as ballast:
                while ballast.write(bytes(4096)):
                    pass
            for number in range(30_000):
                await asyncio.to_thread(os.write, fd, b"%099d\n" % number)
            os.close(fd)
            assert await handle.finish(10)
            assert box.metrics.value("capture_dropped_bytes") == 0
            assert [int(number) for number in content(box.log)["stdout"].split()] == list(range(30_000))
            os.close(master)

    with small_disk(tmp_path / "disk", "2m") as disk:
        run_async(scenario(disk))


@pytest.mark.parametrize("seed", range(int(os.environ.get("ARCBOX_CAPTURE_KILLS", "3"))))
def test_no_byte_is_lost_or_doubled_when_the_capture_is_killed_at_any_moment(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    size = 24 << 20
    for name in ("stdout", "stderr"):
        os.mkfifo(tmp_path / name, 0o600)
    # Somebody reads before the writers come, as the agent does.
    keep = [os.open(tmp_path / name, os.O_RDWR) for name in ("stdout", "stderr")]
    writers = [start("writer_process", tmp_path / name, seed + i, size) for i, name in enumerate(("stdout", "stderr"))]
    kills = 0
    while any(writer.poll() is None for writer in writers):
        capture = start("capture_process", tmp_path, 1 << 20, stdout=subprocess.PIPE)
        assert capture.stdout is not None
        assert capture.stdout.readline() == b"capturing\n"
        time.sleep(rng.random() * 0.03)
        capture.send_signal(signal.SIGKILL)
        capture.wait()
        capture.stdout.close()
        kills += 1
    capture = start("capture_process", tmp_path, 1 << 20, stdout=subprocess.PIPE)
    assert capture.stdout is not None
    assert capture.stdout.readline() == b"capturing\n"
    # Not before: what the writers left in their pipes would be gone with the last who holds them.
    for fd in keep:
        os.close(fd)
    capture.send_signal(signal.SIGTERM)
    assert capture.wait(60) == 0
    capture.stdout.close()
    assert kills > 0
    found = content(tmp_path / "logs" / "web.log")
    assert len(found["stdout"]) == len(output(seed, size))
    assert found["stdout"] == output(seed, size)
    assert found["stderr"] == output(seed + 1, size)

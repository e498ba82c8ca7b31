"""Logs: following, reading, finding and capturing them, beside what the machine could do at most.

Each answer is checked line by line, by the client in C (rivals/logread.c).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from arcbox_agent import sync, wire
from benchmarks.conftest import Compare
from benchmarks.rivals_running import rival, running
from benchmarks.table import Row
from tools.stress.agent import AgentProcess, cpu_seconds, forget_peak_rss, peak_rss

GIB = 1 << 30
LINE = 141  # bytes of a line of rivals/logwrite.c in a log
ENTRY = 4 + 4 + 8 + 2 + 100 + 10  # ... and of its frame


class Box:
    """An agent with one container that runs and is silent: its log is ours to write."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.agent = AgentProcess(directory)
        self.agent.start()
        self.agent.wait_until_it_answers()
        self.containers = 0
        self.id = ""
        self.new_log()

    def new_log(self) -> Path:
        self.containers += 1
        with sync.connect(self.agent.address) as client:
            if self.containers > 1:
                client.remove_container(self.id, force=True)
            self.id = client.create_container(cmd=["sleep", "100000"], name=f"silent-{self.containers}").id
            client.start_container(self.id)
        self.log = self.agent.state_dir / "logs" / f"{self.id}.log"
        return self.log

    def request(self, **fields: object) -> Path:
        path = self.directory / "request"
        path.write_bytes(wire.encode_message(wire.LogsRequest(container_id=self.id, **fields)))  # type: ignore[arg-type]
        return path

    def read(self, request: Path, first: int, lines: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [rival("logread"), self.agent.socket_path, request, str(first), str(lines)], stdout=subprocess.PIPE
        )


def seconds(reader: subprocess.Popen[bytes]) -> tuple[float, float]:
    out, _ = reader.communicate(timeout=120)
    assert reader.returncode == 0, "the client did not get every line"
    whole, from_first = map(float, out.split())
    return whole, from_first


def write(log: Path, lines: int, at_once: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([rival("logwrite"), log, str(lines), str(at_once)])


@contextmanager
def boxed() -> Iterator[Box]:
    with tempfile.TemporaryDirectory(prefix="arcbox-", dir="/var/tmp") as name:
        box = Box(Path(name))
        try:
            yield box
            with sync.connect(box.agent.address) as client:
                client.remove_container(box.id, force=True)
            box.agent.stop()
        finally:
            if box.agent.running:
                box.agent.kill()


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    with boxed() as box:
        yield box


@pytest.fixture
def fresh_box() -> Iterator[Box]:
    """An agent that has no freed memory to fill again: what it takes is what it needs."""
    with boxed() as box:
        yield box


@pytest.fixture(scope="module")
def sample(box: Box) -> Path:
    """A log in memory's reach, for the limit."""
    path = box.directory / "sample.log"
    assert write(path, 100_000, 1000).wait() == 0
    return path


def limit(sample: Path) -> float:
    return float(subprocess.run([rival("logscan"), sample], check=True, stdout=subprocess.PIPE).stdout)


def gnu_tail(log: Path, lines: int, at_once: int) -> tuple[float, float]:
    """GNU tail -f into a pipe, with the same writer: lines a second from its first byte on, its CPU seconds a line."""
    log.touch()
    with subprocess.Popen(["tail", "-n0", "-f", log], stdout=subprocess.PIPE, bufsize=0) as tail:
        assert tail.stdout is not None
        time.sleep(0.1)  # it follows by then, and waits
        writer = write(log, lines, at_once)
        size = lines * LINE - len(os.read(tail.stdout.fileno(), 1))
        begin = time.perf_counter()
        while size:
            size -= len(os.read(tail.stdout.fileno(), min(size, 1 << 20)))
        spent = time.perf_counter() - begin
        cpu = cpu_seconds(tail.pid)
        tail.kill()
    assert writer.wait() == 0
    log.unlink()
    return lines / spent, cpu / lines


@pytest.mark.parametrize(
    ("at_once", "lines", "goal", "of_limit"), [(100, 3_000_000, 1.0, 1 / 6), (1, 1_000_000, 1.0, 0.0)]
)
def test_follow(
    compare: Compare, box: Box, sample: Path, at_once: int, lines: int, goal: float, of_limit: float
) -> None:
    lines = 10_000 if compare.quick else lines
    cpu: list[float] = []
    tail_cpu: list[float] = []

    def tail() -> float:
        rate, cpu_each = gnu_tail(box.directory / "tail.log", lines, at_once)
        tail_cpu.append(cpu_each)
        return rate

    def follow() -> float:
        log = box.new_log()
        reader = box.read(box.request(follow=True), 0, lines)
        time.sleep(0.1)  # it follows by then, and waits
        before = cpu_seconds(box.agent.pid)
        writer = write(log, lines, at_once)
        _, from_first = seconds(reader)
        cpu.append((cpu_seconds(box.agent.pid) - before) / lines)
        assert writer.wait() == 0
        return lines / from_first

    name = f"follow, {at_once} line{'s' if at_once > 1 else ''} a write"
    row = compare(
        name,
        follow,
        tail,
        goal,
        rival_name="GNU tail -f, a pipe",
        unit="/s",
        measured=True,
        rounds=7,
        seconds=14,
    )
    if of_limit:
        rates = [limit(sample) for _ in row.ours_all]
        compare.add(
            Row.against_rival(
                f"{name}, of the limit", row.ours_all, rates, of_limit,
                unit="/s", rival_name="scan + encode in memory", higher_is_better=True,
            )
        )  # fmt: skip
    compare.add(
        Row.against_rival(
            f"{name}, CPU a line", cpu, tail_cpu, 1.0,
            unit="s", rival_name="GNU tail -f, a pipe", higher_is_better=False,
        )
    )  # fmt: skip


def test_initial_content(compare: Compare, box: Box, sample: Path) -> None:
    lines = 10_000 if compare.quick else 2_000_000
    assert write(box.new_log(), lines, 1000).wait() == 0
    compare(
        "a whole log, 2 M lines",
        lambda: lines / seconds(box.read(box.request(stream=True), 0, lines))[0],
        lambda: limit(sample),
        1 / 6,
        rival_name="scan + encode in memory",
        unit="/s",
        measured=True,
        seconds=10,
    )


SINCE = 1795455912 + 86400


class Large:
    """The box with a log of 1 GiB, whose last lines are a day younger than the others."""

    def __init__(self, box: Box, size: int) -> None:
        self.box = box
        self.lines = size // LINE
        self.younger = self.lines // 75
        self.log = box.new_log()
        assert write(self.log, self.lines - self.younger, 1000).wait() == 0
        with self.log.open("ab") as file:
            for number in range(self.lines - self.younger, self.lines):
                file.write(b"2026-11-24T17:45:12.255151664Z stdout F %010d%b\n" % (number, b"x" * 90))

    def check(self, lines: int, **fields: object) -> bytes:
        """The request, once it was answered with the last lines, each as it was written."""
        request = self.box.request(stream=True, **fields)
        seconds(self.box.read(request, self.lines - lines, lines))
        return request.read_bytes()


@pytest.fixture(scope="module")
def large(request: pytest.FixtureRequest) -> Iterator[Large]:
    """In a box of its own: `new_log` of the shared one would remove the log."""
    quick = not request.config.getoption("benchmark_enable")
    with boxed() as box:
        yield Large(box, (8 << 20) if quick else GIB)


@pytest.fixture
def connection(large: Large) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(large.box.agent.socket_path))
        yield connection


def ask(request: bytes, size: int, connection: socket.socket) -> None:
    connection.sendall(request)
    got = 0
    while got < size:
        got += len(connection.recv(1 << 20))


def test_tail_of_a_large_log(compare: Compare, large: Large, connection: socket.socket) -> None:
    # What another benchmark made the agent take is not this one's.
    forget_peak_rss(large.box.agent.pid)
    request = large.check(100, tail=100)
    compare.figure(
        "last 100 lines of 1 GiB, over RPC",
        lambda: ask(request, 100 * ENTRY + 8, connection),
        0.25e-3,
        rival=lambda: subprocess.run(["tail", "-n", "100", large.log], check=True, stdout=subprocess.DEVNULL),
        rival_name="GNU tail, a process",
        measured=False,
        rounds=50,
    )
    compare.add(
        Row.against_figure(
            "the agent's peak RSS after that", [float(peak_rss(large.box.agent.pid))], 40e6,
            unit="B", rival=[], rival_name="", higher_is_better=False,
        )
    )  # fmt: skip


def test_since_a_time_in_a_large_log(compare: Compare, large: Large, connection: socket.socket) -> None:
    request = large.check(large.younger, since=SINCE)

    def grep() -> None:
        subprocess.run(["grep", "^2026-11-24", large.log], check=True, stdout=subprocess.DEVNULL)

    compare(
        f"since a time in 1 GiB, {large.younger} lines",
        lambda: ask(request, large.younger * ENTRY + 8, connection),
        grep,
        3.0,
        rival_name="grep of the time",
    )


def test_the_last_lines_since_a_time_in_a_large_log(compare: Compare, large: Large, connection: socket.socket) -> None:
    request = large.check(100, since=SINCE, tail=100)
    compare.figure(
        "last 100 lines since a time in 1 GiB, over RPC",
        lambda: ask(request, 100 * ENTRY + 8, connection),
        2e-3,
        measured=False,
    )


def test_append_to_frame(compare: Compare, box: Box) -> None:
    log = box.new_log()
    log.touch()
    line = b"2026-11-23T17:45:12.255151664Z stdout F " + b"x" * 100 + b"\n"
    with socket.socket(socket.AF_UNIX) as connection, log.open("ab", buffering=0) as file:
        connection.connect(str(box.agent.socket_path))
        connection.sendall(box.request(follow=True).read_bytes())
        time.sleep(0.1)

        def turn(file: IO[bytes], fd: int, size: int) -> float:
            times = []
            for _ in range(200):
                time.sleep(0.0003)
                begin = time.perf_counter()
                file.write(line)
                got = 0
                while got < size:
                    got += len(os.read(fd, 65536))
                times.append(time.perf_counter() - begin)
            return sorted(times)[len(times) // 2]

        def tail() -> float:
            path = box.directory / "tail.log"
            path.touch()
            command = ["tail", "-n0", "-f", str(path)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process, path.open("ab", 0) as file:
                assert process.stdout is not None
                time.sleep(0.2)
                spent = turn(file, process.stdout.fileno(), len(line))
                process.kill()
            return spent

        compare(
            "append to frame, p50", lambda: turn(file, connection.fileno(), ENTRY), tail, 0.5,
            rival_name="GNU tail -f, a pipe", measured=True, rounds=9,
        )  # fmt: skip


@pytest.mark.parametrize("same", [False, True], ids=["of their own", "of one reader"])
def test_a_thousand_follows(compare: Compare, fresh_box: Box, same: bool) -> None:
    box = fresh_box
    count = 20 if compare.quick else 1000
    log = box.new_log()
    log.touch()
    box_pid = box.agent.pid
    connections = []
    before = memory(box_pid)
    try:
        for number in range(count):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(box.agent.socket_path))
            # Another `since` each: nobody shares a reader with another.
            since = 1 if same else number + 1
            connection.sendall(wire.encode_message(wire.LogsRequest(container_id=box.id, follow=True, since=since)))
            connections.append(connection)
        time.sleep(1.0)
        held = memory(box_pid) - before
        line = b"2026-11-23T17:45:12.255151664Z stdout F " + b"x" * 100 + b"\n"
        begin = time.perf_counter()
        with log.open("ab", buffering=0) as file:
            file.write(line * 10)
        for connection in connections:
            got = b""
            while len(got) < 10 * ENTRY:
                got += connection.recv(1 << 16)
            assert got.count(b"x" * 100) == 10
        spent = time.perf_counter() - begin
        instances = sum(
            os.readlink(f"/proc/{box_pid}/fd/{fd}") == "anon_inode:inotify" for fd in os.listdir(f"/proc/{box_pid}/fd")
        )
        assert instances == 1
    finally:
        for connection in connections:
            connection.close()
    kind = "one reader for all" if same else "a reader each"
    compare.add(
        Row.against_rival(
            f"{count} follows, {kind}: memory each",
            [held / count],
            [_least_held(box.directory / "rival.sock", count) / count],
            1 / 1.3,
            unit="B",
            rival_name="bare task that waits",
            higher_is_better=False,
        )
    )
    compare.figure(f"{count} follows, {kind}: 10 lines to all", lambda: spent, 0.1)


def _least_held(path: Path, count: int) -> int:
    """Bytes of a Python server that does nothing for as many peers but to have a task wait for each."""
    server = Path(__file__).parent / "rivals" / "waiting_server.py"
    with running(sys.executable, server, path, listening_at=path) as process:
        time.sleep(0.5)
        before = memory(process.pid)
        connections = [socket.socket(socket.AF_UNIX) for _ in range(count)]
        for connection in connections:
            connection.connect(str(path))
        time.sleep(1.0)
        held = memory(process.pid) - before
        for connection in connections:
            connection.close()
    return held


def memory(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Private_Dirty")


def test_capture(compare: Compare, box: Box) -> None:
    size = (8 << 20) if compare.quick else GIB
    # The program writes lines of 100 bytes; its output ends when it does.
    lines = size // 100
    source = box.directory / "lines.c"
    source.write_text(
        "#include <string.h>\n#include <stdlib.h>\n#include <unistd.h>\n"
        "int main(int c, char **v) { static char b[65500]; memset(b, 'x', sizeof b);"
        " for (int i = 99; i < 65500; i += 100) b[i] = '\\n';"
        " for (long left = atol(v[1]) * 100; left > 0;) {"
        " long n = write(1, b, left < 65500 ? left : 65500); if (n < 0) return 1; left -= n; } return c != 2; }\n"
    )
    program = box.directory / "lines"
    subprocess.run(["gcc", "-O2", "-o", program, source], check=True)
    client = sync.connect(box.agent.address)
    with client:

        def capture() -> float:
            id = client.create_container(cmd=[str(program), str(lines)]).id
            begin = time.perf_counter()
            client.start_container(id)
            assert client.wait_container(id).status_code == 0
            spent = time.perf_counter() - begin
            logs = sorted((box.agent.state_dir / "logs").glob(f"{id}.log*"))
            assert all(line[40:] == b"x" * 99 for line in logs[0].read_bytes().split(b"\n")[:-1])
            client.remove_container(id, force=True)
            return size / spent

        def pipe() -> float:
            begin = time.perf_counter()
            with open(box.directory / "copy", "wb") as copy:
                writer = subprocess.Popen([program, str(lines)], stdout=subprocess.PIPE)
                subprocess.run(["cat"], stdin=writer.stdout, stdout=copy, check=True)
                assert writer.wait() == 0
                assert writer.stdout is not None
                writer.stdout.close()
            spent = time.perf_counter() - begin
            (box.directory / "copy").unlink()
            return size / spent

        compare(
            "capture 1 GiB of 100-byte lines, with times", capture, pipe, 0.3,
            rival_name="cat to a file, no times", unit="B/s", measured=True, rounds=5,
        )  # fmt: skip

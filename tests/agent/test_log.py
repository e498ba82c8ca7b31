"""The agent's own log: one line an event, never a stopped loop."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from arcbox_agent.agent.observe import log
from arcbox_agent.agent.observe.asyncio_log import AsyncioLogger
from arcbox_agent.agent.observe.log import Logger, Sink, quote
from arcbox_agent.agent.observe.rate import OncePerMinute
from arcbox_agent.wire import AttachRequest, CreateContainerRequest, RemoveContainerRequest
from tests.agent.peer import Peer, eventually
from tests.conftest import REPOSITORY, StartAgent


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The reading end of what the log is written to."""
    reading, writing = os.pipe()
    monkeypatch.setattr(log, "sink", Sink(writing, log.INFO))
    yield reading
    os.close(reading)
    os.close(writing)


def test_a_line_has_time_level_component_message_and_values(pipe: int) -> None:
    Logger("server").warning("connection refused", peer="uid 7 pid 8", bound=3)
    line = os.read(pipe, 4096).decode()
    assert re.fullmatch(
        r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z warning server: connection refused peer="uid 7 pid 8" bound=3\n', line
    )


def test_lines_below_the_level_are_not_written(pipe: int) -> None:
    Logger("server").debug("nothing")
    Logger("server").info("something")
    assert os.read(pipe, 4096).decode().endswith("info    server: something\n")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        ("/run/a-b_c.sock", "/run/a-b_c.sock"),
        (7, "7"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "no"', '"say \\"no\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("line\nbreak", '"line\\nbreak"'),
        ("\x1b[31mred", '"\\x1b[31mred"'),
        ("\u202e", '"\\u202e"'),
        ("é", '"é"'),
        ("\udc80", '"\\udc80"'),
    ],
)
def test_no_value_can_break_its_line_or_forge_another(value: object, written: str) -> None:
    assert quote(value) == written


def test_an_error_with_its_trace_is_one_line(pipe: int) -> None:
    try:
        raise KeyError("x")
    except KeyError as error:
        Logger("server").exception("it failed", error)
    line = os.read(pipe, 4096).decode()
    assert line.count("\n") == 1
    assert "Traceback (most recent call last):\\n" in line
    assert "KeyError: 'x'" in line


def test_an_error_is_told_where_no_descriptor_is_left_to_look_at_its_source() -> None:
    script = (
        "import resource, sys\n"
        "from arcbox_agent.agent.observe.log import Logger\n"
        "def faulty():\n"
        "    raise KeyError('x')\n"
        "assert 'traceback' not in sys.modules\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "try:\n"
        "    faulty()\n"
        "except KeyError as error:\n"
        "    Logger('test').exception('it failed', error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert ended.returncode == 0, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert "test: it failed error=KeyError('x') " in line
    assert line.endswith('traceback="<string>:8 in <module>\\n<string>:4 in faulty"')


def test_a_stuck_reader_loses_lines_and_stops_nobody(pipe: int) -> None:
    logger = Logger("server")
    for i in range(1000):
        logger.info("a line", number=i, text="x" * 100)
    first = os.read(pipe, 1 << 20).decode().splitlines()
    assert "number=0 " in first[0]
    dropped = 1000 - len(first)
    assert dropped > 300
    assert log.sink.dropped == dropped
    logger.info("it reads again")
    lines = os.read(pipe, 1 << 20).decode().splitlines()
    assert lines[0].endswith(f"warning log: {dropped} lines could not be written and are lost")
    assert lines[1].endswith("info    server: it reads again")
    assert log.sink.dropped == 0


@pytest.mark.parametrize("character", ["\x01", "x", "\N{SNOWMAN}", "\U0001f600"])
def test_a_value_of_any_length_takes_a_line_of_bounded_length(pipe: int, character: str) -> None:
    Logger("test").info("begins", value=character * 1_000_000, next=7)
    line = os.read(pipe, 65536).decode()
    assert line.endswith(f"...+{1_000_000 - log.MOST_OF_VALUE} next=7\n")
    assert character.isprintable() == (character * log.MOST_OF_VALUE in line)
    assert len(line) < 12 * log.MOST_OF_VALUE


def test_the_trace_of_an_error_is_shown_with_its_beginning_and_its_end_alone(pipe: int) -> None:
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)
    try:
        try:
            raise ValueError("first " + "\x01" * 1_000_000)
        except ValueError as error:
            raise KeyError("last " + "\x02" * 1_000_000) from error
    except KeyError as error:
        Logger("test").exception("failed", error)
    line = os.read(pipe, 1 << 20).decode()
    assert len(line) < 8 * log.MOST_OF_TRACE
    assert "ValueError: first" in line and " characters ..." in line and line.endswith('"\n')


def test_what_comes_after_half_a_line_is_a_line_of_its_own(pipe: int) -> None:
    size = fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 8192)
    assert size == 8192
    Logger("test").info("too long", **{f"value{number}": "x" * 1000 for number in range(10)})
    half = os.read(pipe, 65536)
    assert half.endswith(b"xxx")
    Logger("test").info("next")
    assert [line.partition("Z ")[2] for line in (half + os.read(pipe, 65536)).decode().splitlines()[1:]] == [
        "warning log: 1 lines could not be written and are lost",
        "info    test: next",
    ]


def test_lines_of_several_threads_come_whole_and_stop_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(tmp_path / "log", "wb", buffering=0) as file:
        monkeypatch.setattr(log, "sink", Sink(file.fileno(), log.INFO))
        texts = dict.fromkeys("abcde", "x" * 1000)

        def write(thread: int) -> None:
            for number in range(2_000):
                Logger("server").info("a line", thread=thread, number=number, **texts)

        with ThreadPoolExecutor(4) as threads:
            for written in [threads.submit(write, thread) for thread in range(4)]:
                written.result()
    assert log.sink.dropped == 0
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 8_000
    assert all(line.endswith(" e=" + "x" * 1000) and len(line) > 5000 for line in lines)


_WITHOUT_DESCRIPTORS = """
import resource, sys
from arcbox_agent.agent.observe.log import Logger
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    open("/dev/null")
except OSError as error:
    Logger("server").exception("it failed", error, value="two\\x1blines\\u2028")
"""


def test_an_error_is_logged_though_no_descriptor_is_left() -> None:
    done = subprocess.run([sys.executable, "-c", _WITHOUT_DESCRIPTORS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert 'server: it failed value="two\\x1blines\\u2028" error="OSError(24, ' in line


def test_a_reader_that_is_gone_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(log, "sink", Sink(writing, log.INFO))
    Logger("server").info("nobody hears")
    assert log.sink.dropped == 1
    os.close(writing)


def test_what_comes_too_often_is_admitted_once_a_minute_with_how_many_were_suppressed() -> None:
    gate = OncePerMinute(interval=3600)
    assert [gate.admit("a") for _ in range(3)] == [0, None, None]
    assert gate.admit("b") == 0
    gate.interval = 0
    assert gate.admit("a") == 2
    assert gate.admit("a") == 0


def test_keys_without_number_share_one_and_what_is_suppressed_is_counted() -> None:
    gate = OncePerMinute(interval=3600)
    passed = [gate.admit(str(i)) for i in range(1000)]
    assert passed == [0] * (gate.MOST_KEYS + 1) + [None] * (999 - gate.MOST_KEYS)
    assert gate.is_full("1000")
    assert not gate.is_full("7")
    gate.interval = 0
    assert not gate.is_full("1000")


def test_a_line_says_how_many_like_it_were_suppressed() -> None:
    gate = OncePerMinute(interval=3600)
    lines: list[tuple[str, dict[str, object]]] = []

    def write(message: str, **values: object) -> None:
        lines.append((message, values))

    for number in range(3):
        gate.log(write, "refused", "also_refused", "uid 7", number=number)
    gate.log(write, "refused", "also_refused", "uid 8", number=3)
    gate.interval = 0
    gate.log(write, "refused", "also_refused", "uid 7", number=4)
    assert lines == [
        ("refused", {"number": 0, "also_refused": 0}),
        ("refused", {"number": 3, "also_refused": 0}),
        ("refused", {"number": 4, "also_refused": 2}),
    ]


def test_a_clock_that_cannot_be_set_is_told_once_a_minute() -> None:
    script = (
        "import os, time; from arcbox_agent.agent.clock import follow_host; "
        "from arcbox_agent.agent.metrics import Metrics; metrics = Metrics(); os.setuid(65534); "
        "[follow_host(int(time.time()) - 1000, metrics) for _ in range(5)]; print(metrics.counters['clock_refused'])"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "5\n")
    assert ended.stderr.count("cannot set the clock") == 1


def test_every_line_of_a_request_has_its_peer_and_its_trace_id(start_agent: StartAgent) -> None:
    agent = start_agent(log_level="debug")
    with Peer(agent.socket_path, version=2) as peer:
        peer.ask(AttachRequest(), trace_id="trace\n7")
    eventually(lambda: "request refused" in agent.log(), "it is logged")
    (line,) = [line for line in agent.log().splitlines() if "request refused" in line]
    assert f'peer="uid {os.getuid()} pid {os.getpid()}" trace="trace\\n7"' in line
    assert "code=400" in line


def test_what_goes_on_after_a_request_is_not_logged_as_part_of_it(start_agent: StartAgent) -> None:
    agent = start_agent()
    records, logs = agent.state_dir / "containers", agent.state_dir / "logs"
    with Peer(agent.socket_path, version=2) as peer:
        peer.ask(CreateContainerRequest(id="x", cmd=["true"]), trace_id="one")
        for directory in (records, logs):
            directory.rename(f"{directory}.away")
        peer.ask(RemoveContainerRequest(id="x"), trace_id="two")
        for directory in (records, logs):
            Path(f"{directory}.away").rename(directory)
        eventually(lambda: "is written again" in agent.log(), "it is logged")
    begun, ended = (line for line in agent.log().splitlines() if "the state of containers" in line)
    assert begun.endswith(" trace=two")
    assert ended.endswith("is written again")


def test_what_asyncio_reports_is_a_line_of_the_agents_log(pipe: int) -> None:
    logger = AsyncioLogger()
    logger.warning("Executing %s took %.3f seconds", "x", 1.5)
    logger.error("two\nlines")
    logger.log(31, "between two levels")
    try:
        raise OSError("gone")
    except OSError:
        logger.exception("exception calling callback for %r", 7)
    lines = os.read(pipe, 1 << 16).decode().splitlines()
    assert [line.partition(" ")[2] for line in lines[:3]] == [
        "warning loop: Executing x took 1.500 seconds",
        'error   loop: "two\\nlines"',
        "warning loop: between two levels",
    ]
    assert "error   loop: exception calling callback for 7 error=OSError('gone') traceback=\"Traceback" in lines[3]

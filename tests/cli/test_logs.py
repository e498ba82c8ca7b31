"""logs: what a container has written, from the agent or from a file."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import PATIENCE

if TYPE_CHECKING:
    from tests.cli.conftest import Arcboxctl


@pytest.fixture
def ended(ctl: Arcboxctl) -> Arcboxctl:
    """A container `c` that wrote five lines, two of them to stderr, and ended."""
    ctl.container("c", "sh", "-c", "for n in 1 2 3; do echo out $n; done; sleep 0.1; echo err 4 >&2; echo err 5 >&2")
    assert ctl("wait", "c").stdout == "0\n"
    return ctl


def test_each_stream_goes_to_the_one_of_the_same_name(ended: Arcboxctl) -> None:
    done = ended("logs", "c")
    assert (done.stdout, done.stderr) == ("out 1\nout 2\nout 3\n", "err 4\nerr 5\n")
    assert ended("logs", "--stdout", "c").stderr == ""
    assert ended("logs", "--stderr", "c").stdout == ""


def test_tail(ended: Arcboxctl) -> None:
    done = ended("logs", "--tail", "3", "c")
    assert (done.stdout, done.stderr) == ("out 3\n", "err 4\nerr 5\n")
    assert ended("logs", "-n", "1", "--stdout", "c").stdout == "out 3\n"
    assert ended("logs", "--tail", "all", "c").stdout == "out 1\nout 2\nout 3\n"
    done = ended("logs", "--tail", "0", "c")
    assert (done.stdout, done.stderr) == ("", "")
    assert ended("logs", "--tail", "0", "nope", code=125).stderr == "arcboxctl: container not found: nope\n"
    assert "neither a number of lines nor all" in ended("logs", "--tail", "-1", "c", code=125).stderr


def test_timestamps_and_since_and_until_to_the_nanosecond(ended: Arcboxctl) -> None:
    lines = ended("logs", "-t", "--stdout", "c").stdout.splitlines()
    times = [re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) out \d", line)[1] for line in lines]  # type: ignore[index]
    first_error = ended("logs", "-t", "--stderr", "c").stderr.split()[0]
    done = ended("logs", "--since", first_error, "c")
    assert (done.stdout, done.stderr.splitlines()[0]) == ("", "err 4")
    assert ended("logs", "--until", times[-1], "c").stdout == "out 1\nout 2\nout 3\n"
    assert ended("logs", "--until", times[-1], "c").stderr == ""
    assert ended("logs", "--since", "1h", "c").stdout == "out 1\nout 2\nout 3\n"
    assert ended("logs", "--until", "1h", "c").stdout == ""


def test_following_one_that_has_ended_ends(ended: Arcboxctl) -> None:
    assert ended("logs", "-f", "c").stdout == "out 1\nout 2\nout 3\n"


def test_a_follow_goes_on_until_the_container_ends(ctl: Arcboxctl, tmp_path: Path) -> None:
    go = tmp_path / "go"
    ctl.container("web", "sh", "-c", f"echo before; until test -e {go}; do sleep 0.05; done; echo after; exit 3")
    following = ctl.start("logs", "-f", "web")
    assert following.stdout is not None
    assert following.stdout.readline() == b"before\n"
    go.touch()
    out, err = following.communicate(timeout=PATIENCE)
    # A container's exit code is none of a follow's.
    assert (following.returncode, out, err) == (0, b"after\n", b"")


def test_a_follow_of_no_lines_shows_only_what_is_new_and_all_of_that(ctl: Arcboxctl) -> None:
    ctl.container("web", "sh", "-c", "n=0; while n=$((n + 1)); do echo $n; sleep 0.02; done")
    newest = ""
    while not newest:
        newest = ctl("logs", "--tail", "1", "web").stdout
    following = ctl.start("logs", "-f", "--tail", "0", "web")
    assert following.stdout is not None
    seen = [int(following.stdout.readline()) for _ in range(20)]
    assert seen[0] > int(newest)
    assert seen == list(range(seen[0], seen[0] + 20))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_just_ends_a_follow(ctl: Arcboxctl, number: signal.Signals, code: int) -> None:
    ctl.container("web", "sh", "-c", "echo up; exec sleep 600")
    following = ctl.start("logs", "-f", "web")
    assert following.stdout is not None and following.stdout.readline() == b"up\n"
    following.send_signal(number)
    out, err = following.communicate(timeout=PATIENCE)
    assert (following.returncode, out, err) == (code, b"", b"")
    assert ctl("ps", "-q").stdout != ""


def test_a_follow_ends_when_nobody_reads_it_any_more(ctl: Arcboxctl) -> None:
    """`logs -f web | grep -m1 up` ends with grep, not at the next line."""
    ctl.container("web", "sh", "-c", "echo up; exec sleep 600")
    following = ctl.start("logs", "-f", "web")
    assert following.stdout is not None and following.stderr is not None
    assert following.stdout.readline() == b"up\n"
    following.stdout.close()
    assert following.wait(PATIENCE) == 141
    assert following.stderr.read() == b""


def test_for_programs_it_is_a_line_an_entry(ended: Arcboxctl) -> None:
    lines = [json.loads(line) for line in ended("logs", "--json", "-t", "c").stdout.splitlines()]
    assert [list(line) for line in lines] == [["time", "stream", "data", "partial", "cursor"]] * 5
    assert [(line["stream"], line["data"]) for line in lines] == [
        ("stdout", "out 1"), ("stdout", "out 2"), ("stdout", "out 3"), ("stderr", "err 4"), ("stderr", "err 5"),
    ]  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", lines[0]["time"])


# ------------------------------------------------------------------ of a file

LOG = b"""\
2026-11-23T17:45:12.255151664Z stdout F one
2026-11-23T17:45:13.000000000Z stderr F two
2026-11-23T17:45:14.000000000Z stdout P thr
2026-11-23T17:45:14.100000000Z stdout F ee
"""


@pytest.fixture
def alone(start_ctl: Callable[[str], Arcboxctl]) -> Arcboxctl:
    """No agent anywhere."""
    return start_ctl("unix:///nowhere/agent.sock")


def test_a_file_needs_no_agent(alone: Arcboxctl, tmp_path: Path) -> None:
    (tmp_path / "c.log").write_bytes(LOG)
    path = str(tmp_path / "c.log")
    done = alone("logs", "--file", path)
    assert (done.stdout, done.stderr) == ("one\nthree\n", "two\n")
    assert alone("logs", "--file", path, "--tail", "1").stdout == "three\n"
    assert alone("logs", "--file", path, "--tail", "0").stdout == ""
    assert alone("logs", "--file", path, "--until", "2026-11-23T17:45:12.255151664Z").stdout == "one\n"
    assert alone("logs", "--file", path, "--stderr", "-t").stderr == "2026-11-23T17:45:13.000000000Z two\n"
    [line] = alone("logs", "--json", "--file", path, "--stderr").stdout.splitlines()
    entry = json.loads(line)
    cursor = entry.pop("cursor")
    assert entry == {"time": "2026-11-23T17:45:13.000000000Z", "stream": "stderr", "data": "two", "partial": False}
    assert alone("logs", "--file", path, "--after", cursor).stdout == "three\n"
    assert "not a cursor" in alone("logs", "--file", path, "--after", "x", code=125).stderr
    assert "--after and --tail" in alone("logs", "--file", path, "--after", cursor, "-n", "1", code=125).stderr


def test_all_of_a_file_reaches_a_pipe_that_does_not_block(alone: Arcboxctl, tmp_path: Path) -> None:
    text = b"".join(b"%d\n" % number for number in range(500_000))
    (tmp_path / "plain.log").write_bytes(text)
    read, write = os.pipe()
    os.set_blocking(write, False)
    # A small one, that it is full most of the time.
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    with open(read, "rb") as output:
        process = alone.start("logs", "--file", f"{tmp_path}/plain.log", stdout=write)
        os.close(write)
        assert output.read() == text
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, b"")


def test_a_plain_file_has_no_times(alone: Arcboxctl, tmp_path: Path) -> None:
    (tmp_path / "plain.log").write_text("anything\n")
    path = str(tmp_path / "plain.log")
    assert alone("logs", "--file", path).stdout == "anything\n"
    assert json.loads(alone("logs", "--json", "--file", path).stdout)["time"] is None


def test_a_file_that_is_not_there_is_named(alone: Arcboxctl, tmp_path: Path) -> None:
    done = alone("logs", "--file", f"{tmp_path}/none.log", "--tail", "0", code=125)
    assert done.stderr == f"arcboxctl: {tmp_path}/none.log: No such file or directory\n"


def test_a_file_and_a_container_are_not_read_together(alone: Arcboxctl, tmp_path: Path) -> None:
    for arguments in (["logs"], ["logs", "--file", "x", "web"]):
        assert "one of CONTAINER and --file is needed" in alone(*arguments, code=125).stderr

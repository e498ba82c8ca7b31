"""exec: a command in a running container, or in the guest itself."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import PATIENCE

if TYPE_CHECKING:
    from tests.cli.conftest import Arcboxctl


def test_output_and_exit_code_are_the_commands_own(ctl: Arcboxctl) -> None:
    ctl.container("web", "sleep", "600")
    done = ctl("exec", "web", "sh", "-c", "echo out; echo err >&2; exit 42", code=42)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_in_the_guest_itself(ctl: Arcboxctl) -> None:
    assert ctl("exec", "--guest", "echo", "hello").stdout == "hello\n"
    assert ctl("exec", "-", "echo", "-n", "hello").stdout == "hello"


def test_an_empty_container_is_not_the_guest(ctl: Arcboxctl, tmp_path: Path) -> None:
    # As in `arcboxctl exec "$CONTAINER" rm -r /data`, where the variable is not set.
    done = ctl("exec", "", "touch", f"{tmp_path}/touched", code=125)
    assert done.stderr.startswith("arcboxctl: the CONTAINER is empty; the guest itself is --guest, or -\n")
    assert not (tmp_path / "touched").exists()


def test_bytes_come_through_unchanged(ctl: Arcboxctl) -> None:
    process = ctl.start("exec", "-", "printf", r"\000\001\377")
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, b"\x00\x01\xff", b"")


def test_much_output_is_all_there_for_a_slow_reader_too(ctl: Arcboxctl) -> None:
    process = ctl.start("exec", "-", "head", "-c", "50000000", "/dev/zero")
    assert process.stdout is not None
    digest = hashlib.sha256()
    time.sleep(0.3)
    while chunk := process.stdout.read(1 << 16):
        digest.update(chunk)
    assert process.wait(PATIENCE) == 0
    assert digest.hexdigest() == hashlib.sha256(bytes(50_000_000)).hexdigest()


def test_standard_input_is_given_whole(ctl: Arcboxctl) -> None:
    text = "".join(f"line {n}\n" for n in range(50_000))
    assert ctl("exec", "-i", "-", "cat", input=text).stdout == text
    assert ctl("exec", "-", "cat", input="not asked for").stdout == ""


def test_standard_input_that_does_not_block_is_waited_for(ctl: Arcboxctl) -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    process = ctl.start("exec", "-i", "-", "cat", stdin=read)
    for piece in (b"first ", b"second"):
        os.write(write, piece)
        deadline = time.monotonic() + PATIENCE
        while select.select([read], [], [], 0)[0] and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    os.close(read)
    os.close(write)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, b"first second", b"")


def test_standard_input_of_a_detached_command_that_does_not_fit_a_request_is_refused(ctl: Arcboxctl) -> None:
    done = ctl("exec", "-d", "-i", "-", "true", input="x" * (17 << 20), code=125)
    assert done.stderr == "arcboxctl: standard input is longer than the 16711680 bytes that fit in a request\n"


def test_environment_directory_and_user_reach_it(ctl: Arcboxctl) -> None:
    done = ctl(
        "exec", "-e", "A=1", "-w", "/usr", "-u", "65534:65534", "-", "sh", "-c", "echo $A $PWD $(id -u):$(id -g)"
    )
    assert done.stdout == "1 /usr 65534:65534\n"


def test_a_signals_exit_code_is_128_and_the_signal(ctl: Arcboxctl) -> None:
    ctl("exec", "-", "sh", "-c", "kill -15 $$", code=143)


@pytest.mark.parametrize(
    ("command", "code"), [("/no/such/program", 127), ("no-such-program", 127), ("/etc/passwd", 126)]
)
def test_what_cannot_be_started_has_dockers_exit_codes(ctl: Arcboxctl, command: str, code: int) -> None:
    done = ctl("exec", "-", command, code=code)
    assert done.stderr.startswith("arcboxctl: exec failed: ")


def test_a_missing_working_directory_is_no_missing_command(ctl: Arcboxctl) -> None:
    done = ctl("exec", "-w", "/no/such/directory", "-", "true", code=125)
    assert done.stderr.startswith("arcboxctl: exec failed: working directory /no/such/directory: ")


def test_a_container_that_is_not_there_or_does_not_run(ctl: Arcboxctl) -> None:
    assert ctl("exec", "nope", "true", code=125).stderr == "arcboxctl: container not found: nope\n"
    ctl("create", "--name", "web", "x", "sleep", "600")
    assert ctl("exec", "web", "true", code=125).stderr.startswith("arcboxctl: ")


def test_a_time_out_kills_it_and_says_so(ctl: Arcboxctl) -> None:
    done = ctl("exec", "--timeout", "0.3", "-", "sh", "-c", "echo begun; sleep 600", code=124)
    assert (done.stdout, done.stderr) == ("begun\n", "arcboxctl: the command was killed after 0.3 s\n")


def test_detached_it_goes_on_and_its_pid_is_told(ctl: Arcboxctl, tmp_path: Path) -> None:
    pid = int(ctl("exec", "-d", "-", "sh", "-c", f"sleep 0.3; echo done > {tmp_path}/file").stdout)
    assert pid > 1
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "file").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "file").read_text() == "done\n"


def test_a_terminal_where_one_is_asked_for(ctl: Arcboxctl) -> None:
    assert ctl("exec", "-t", "-", "sh", "-c", "test -t 0 && test -t 1 && stty size").stdout.strip() == "24 80"
    size = {**os.environ, "ARCBOX_HOST": ctl.address, "COLUMNS": "100", "LINES": "33"}
    assert ctl("exec", "-t", "-", "stty", "size", env=size).stdout.strip() == "33 100"


def test_for_programs_it_is_a_line_a_piece_and_one_for_the_end(ctl: Arcboxctl) -> None:
    done = ctl("exec", "--json", "-", "sh", "-c", "printf out; exit 2", code=2)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"stream": "stdout", "data": "out"},
        {"exit_code": 2, "signal": 0, "timed_out": False, "output_cut": False},
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_command(ctl: Arcboxctl, number: signal.Signals, code: int) -> None:
    process = ctl.start("exec", "-", "sh", "-c", "echo $$; exec sleep 600")
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (code, b"", b"")
    assert gone(pid)


def test_a_closed_pipe_ends_it_silently(ctl: Arcboxctl) -> None:
    process = ctl.start("exec", "-", "sh", "-c", "echo $$; exec sleep 600")
    assert process.stdout is not None and process.stderr is not None
    pid = int(process.stdout.readline())
    process.stdout.close()
    assert process.wait(PATIENCE) == 141
    assert process.stderr.read() == b""
    assert gone(pid)


def test_ctrl_c_works_while_nobody_takes_the_output(ctl: Arcboxctl) -> None:
    process = ctl.start("exec", "-", "sh", "-c", "while echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; do :; done")
    assert process.stdout is not None
    assert process.stdout.read(1) == b"y"
    # Now the pipe fills, and arcboxctl waits for it.
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130


def gone(pid: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if not os.path.exists(f"/proc/{pid}"):
            return True
        time.sleep(0.02)
    return False


def test_it_warns_of_output_that_something_still_holds_open(ctl: Arcboxctl) -> None:
    script = "sleep 2 & echo hello"
    done = ctl("exec", "-", "sh", "-c", script)
    assert done.stdout == "hello\n"
    assert "warning: the output may be cut off" in done.stderr
    done = ctl("exec", "--json", "-", "sh", "-c", script)
    assert json.loads(done.stdout.splitlines()[-1])["output_cut"] is True
    assert done.stderr == ""
    assert ctl("exec", "-", "echo", "hello").stderr == ""

"""run: create, start, and stay with the container until it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.containers.support import eventually
from tools.soak import small_disk

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Arcboxctl
    from tests.conftest import StartAgent


def without_warnings(text: str) -> str:
    return "".join(line for line in text.splitlines(True) if not line.startswith("arcboxctl: warning: "))


def test_output_and_exit_code_are_the_containers_own(ctl: Arcboxctl) -> None:
    done = ctl("run", "x", "sh", "-c", "echo out; echo err >&2; exit 3", code=3)
    assert (done.stdout, without_warnings(done.stderr)) == ("out\n", "err\n")
    assert " Exited (3) " in ctl("ps", "-a").stdout


def test_bytes_come_through_unchanged(ctl: Arcboxctl) -> None:
    process = ctl.start("run", "--rm", "x", "printf", r"\000\001\377\r\n\nno newline")
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, b"\x00\x01\xff\r\n\nno newline")


def test_much_output_is_all_there(ctl: Arcboxctl) -> None:
    done = ctl("run", "--rm", "x", "seq", "200000")
    assert done.stdout == "".join(f"{n}\n" for n in range(1, 200001))


def test_rm_removes_it_when_it_has_ended(ctl: Arcboxctl) -> None:
    ctl("run", "--rm", "x", "sh", "-c", "exit 5", code=5)
    assert ctl("ps", "-aq").stdout == ""


def test_rm_has_nothing_to_say_where_somebody_else_removed_it(ctl: Arcboxctl) -> None:
    process = ctl.start("run", "--rm", "--name", "web", "x", "sh", "-c", "echo up; exec sleep 600")
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    ctl("rm", "-f", "web")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 137
    assert b"not removed" not in err


def test_detach_prints_the_id_and_leaves_it_running(ctl: Arcboxctl) -> None:
    container = ctl("run", "-d", "--name", "web", "x", "sleep", "600").stdout.strip()
    assert ctl("ps", "-q", "--no-trunc").stdout.strip() == container


def test_a_signals_exit_code_is_128_and_the_signal(ctl: Arcboxctl) -> None:
    ctl("run", "--rm", "x", "sh", "-c", "kill -9 $$", code=137)


@pytest.mark.parametrize(
    ("command", "code"), [("/no/such/program", 127), ("no-such-program", 127), ("/etc/passwd", 126), ("/etc", 126)]
)
def test_what_cannot_be_started_has_dockers_exit_codes(ctl: Arcboxctl, command: str, code: int) -> None:
    done = ctl("run", "--rm", "x", command, code=code)
    assert without_warnings(done.stderr).startswith("arcboxctl: failed to start: ")
    assert ctl("ps", "-aq").stdout == ""


def test_a_missing_working_directory_is_our_error_and_no_missing_command(ctl: Arcboxctl) -> None:
    for directory in ("relative", "/no/such/directory"):
        assert directory in ctl("run", "--rm", "-w", directory, "x", "true", code=125).stderr


def test_environment_directory_user_and_mounts_reach_it(ctl: Arcboxctl, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("FROM_FILE=1\nOVER=file\n")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "note").write_text("from the guest\n")
    done = ctl(
        "run", "--rm", "-e", "A=1", "-e", "OVER=option", "--env-file", str(file), "-w", "/usr", "-u", "65534:65534",
        "-v", f"{tmp_path}/shared:/mnt:ro", "--tmpfs", "/srv",
        "x", "sh", "-c", "echo $A $FROM_FILE $OVER $PWD $(id -u):$(id -g); cat /mnt/note; stat -f -c %T /srv",
    )  # fmt: skip
    assert done.stdout == "1 1 option /usr 65534:65534\nfrom the guest\ntmpfs\n"


def test_entrypoint_goes_before_the_command(ctl: Arcboxctl) -> None:
    assert ctl("run", "--rm", "--entrypoint", "echo", "x", "-n", "hello").stdout == "hello"


def test_options_after_the_image_are_the_commands(ctl: Arcboxctl) -> None:
    assert ctl("run", "--rm", "x", "echo", "--rm", "--json", "-d").stdout == "--rm --json -d\n"


def test_a_terminal_where_one_is_asked_for(ctl: Arcboxctl) -> None:
    assert ctl("run", "--rm", "-t", "x", "sh", "-c", "test -t 0 && test -t 1 && echo yes").stdout.strip() == "yes"
    assert ctl("run", "--rm", "x", "sh", "-c", "test -t 1 || echo no").stdout == "no\n"


def test_for_programs_it_is_a_line_an_entry_and_one_for_the_end(ctl: Arcboxctl) -> None:
    done = ctl("run", "--json", "--name", "j", "x", "sh", "-c", r"echo out; printf '\377'; exit 2", code=2)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [{name: value for name, value in line.items() if name not in ("time", "cursor")} for line in lines[:-1]] == [
        {"stream": "stdout", "data": "out", "partial": False},
        {"stream": "stdout", "data_base64": "/w==", "partial": True},
    ]
    container = ctl("ps", "-aq", "--no-trunc").stdout.strip()
    assert lines[-1] == {"id": container, "exit_code": 2, "signal": 0, "error": "", "output_cut": False}


def test_ctrl_c_is_forwarded_and_the_containers_exit_code_is_ours(ctl: Arcboxctl) -> None:
    process = ctl.start(
        "run", "--rm", "x", "sh", "-c", "trap 'echo caught; exit 9' INT; echo up; while :; do sleep 0.1; done"
    )
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (9, b"caught\n")
    assert ctl("ps", "-aq").stdout == ""


def test_sigterm_is_forwarded_too(ctl: Arcboxctl) -> None:
    process = ctl.start("run", "--rm", "x", "sh", "-c", "trap 'exit 8' TERM; echo up; while :; do sleep 0.1; done")
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 8


def test_a_second_ctrl_c_kills_what_ignores_the_first(ctl: Arcboxctl) -> None:
    process = ctl.start(
        "run", "--name", "stubborn", "x", "sh", "-c", "trap 'echo no' INT TERM; echo up; while :; do sleep 0.1; done"
    )
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == b"no\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 137
    assert " Exited (137) " in ctl("ps", "-a").stdout


def test_a_closed_pipe_ends_it_silently_and_rm_removes_the_container(ctl: Arcboxctl) -> None:
    process = ctl.start("run", "--rm", "x", "sh", "-c", "while echo y; do :; done")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"y\n"
    process.stdout.close()
    assert process.wait(60) == 141
    assert without_warnings(process.stderr.read().decode()) == ""
    assert ctl("ps", "-aq").stdout == ""


def test_what_the_agent_cannot_do_is_refused_with_the_way_to_do_it(ctl: Arcboxctl) -> None:
    assert "arcboxctl exec -i" in ctl("run", "-i", "x", "cat", code=125).stderr
    assert "--rm needs someone" in ctl("run", "-d", "--rm", "x", "true", code=125).stderr
    assert ctl("ps", "-aq").stdout == ""


def test_it_warns_where_what_passed_the_output_on_was_killed(ctl: Arcboxctl, start_agent: Any) -> None:
    impatient = {**os.environ, "ARCBOX_HOST": start_agent(late_output="0.2").address}
    done = ctl("run", "image", "bash", "-c", "exec > >(exec sleep 1000); exit 3", code=3, env=impatient)
    assert "warning: the output is cut off" in done.stderr


def test_output_that_is_lost_is_told_and_no_success(
    start_agent: StartAgent, start_ctl: Callable[[str], Arcboxctl], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "16m"):
        agent = start_agent(state_dir=str(tmp_path / "disk"), log_max_size="1MiB", log_max_files="2")
        ctl = start_ctl(agent.address)
        script = (
            "echo begin; until test -e full; do sleep 0.02; done; yes $(printf %099d 0) | head -c 20000000; "
            "touch written; until test -e room; do sleep 0.02; done; echo end"
        )
        ran = ctl.start("run", "--name", "web", "-w", str(tmp_path), "x", "sh", "-c", script)
        assert ran.stdout is not None and ran.stdout.readline() == b"begin\n"
        followed = ctl.start("logs", "-f", "web")
        assert followed.stdout is not None and followed.stdout.readline() == b"begin\n"
        ballast = tmp_path / "disk" / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        (tmp_path / "full").touch()
        eventually((tmp_path / "written").exists)
        ballast.unlink()
        (tmp_path / "room").touch()
        for process, code in ((ran, 125), (followed, 0)):
            out, err = process.communicate(timeout=60)
            assert process.returncode == code
            told = re.findall(
                rb"^arcboxctl: warning: output is lost here: (\d+) lines, (\d+) bytes: the log could not be written: "
                rb"No space left on device$",
                err,
                re.MULTILINE,
            )
            lost = sum(int(lines) for lines, _ in told)
            assert lost > 50_000
            assert sum(int(size) for _, size in told) == 100 * lost
            assert out.endswith(b"end\n")
            assert out.count(b"\n") - 1 + lost == 200_000

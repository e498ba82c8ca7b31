"""exec -i and -it, attach, executions, rsh: input as it comes, a real terminal, and the real rsync, git and sftp."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from arcbox_agent.cli.input_stream import Detached, KeyWatch, parse_keys
from arcbox_agent.sync import connect
from tests.cli.conftest import ARCBOXCTL, environment
from tests.cli.terminal import COLUMNS, ROWS, Terminal
from tests.client import servers
from tests.conftest import PATIENCE, StartAgent

if TYPE_CHECKING:
    from tests.cli.conftest import Arcboxctl


@pytest.fixture(autouse=True)
def nothing_is_left(ctl: Arcboxctl) -> None:
    with connect(ctl.address) as client:
        for each in client.executions(all=True):
            client.remove_execution(each.id, force=True)


def left(ctl: Arcboxctl) -> list[str]:
    with connect(ctl.address) as client:
        return [each.id for each in client.executions(all=True)]


def mode(terminal: Terminal) -> list[object]:
    return termios.tcgetattr(terminal.master)


def test_input_of_any_size_streams_both_ways(ctl: Arcboxctl, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(random.Random(1).randbytes(1 << 20) * 24)
    target = tmp_path / "target"
    with source.open("rb") as given, target.open("wb") as taken:
        process = ctl.start("exec", "-i", "-", "cat", stdin=given, stdout=taken)
        assert process.wait(PATIENCE) == 0
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()
    assert left(ctl) == []


def test_the_command_starts_before_its_input_ends(ctl: Arcboxctl) -> None:
    process = ctl.start("exec", "-i", "-", "cat", stdin=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"one\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"one\n"
    out, _ = process.communicate(timeout=PATIENCE)  # it closes the input
    assert (process.returncode, out) == (0, b"")


def test_the_command_may_end_before_its_input_does(ctl: Arcboxctl) -> None:
    process = ctl.start("exec", "-i", "-", "sh", "-c", "read line; echo $line; exit 7", stdin=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"one\n")
    process.stdin.flush()
    assert process.stdout.read() == b"one\n"
    assert process.wait(PATIENCE) == 7


def test_a_command_that_does_not_read_its_input_goes_on_without(ctl: Arcboxctl, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(5 << 20))
    with big.open("rb") as given:
        process = ctl.start("exec", "-i", "-", "sh", "-c", "exec 0<&-; sleep 0.5; echo done", stdin=given)
        assert process.communicate(timeout=PATIENCE) == (b"done\n", b"")
    assert process.returncode == 0


def test_a_reader_of_ours_that_goes_ends_the_command(ctl: Arcboxctl) -> None:
    script = "echo $$; while sleep 0.02; do echo more; done"
    process = ctl.start("exec", "-i", "-", "sh", "-c", script, stdin=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    pid = int(process.stdout.readline())
    process.stdout.close()
    assert process.wait(PATIENCE) == 141
    assert process.stderr.read() == b""
    assert not os.path.exists(f"/proc/{pid}")
    assert left(ctl) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it(ctl: Arcboxctl, number: signal.Signals, code: int) -> None:
    process = ctl.start("exec", "-i", "-", "sh", "-c", "echo $$; exec sleep 600", stdin=subprocess.PIPE)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.send_signal(number)
    assert process.wait(PATIENCE) == code
    assert not os.path.exists(f"/proc/{pid}")
    assert left(ctl) == []


def test_a_reader_of_ours_that_has_all_may_go_before_the_end(ctl: Arcboxctl) -> None:
    script = "echo all; exec 1>&- 2>&-; sleep 0.5; exit 3"
    process = ctl.start("exec", "-i", "-", "sh", "-c", script, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"all\n"
    process.stdout.close()
    assert process.wait(PATIENCE) == 3


def test_errors_and_exit_codes_are_those_of_exec(ctl: Arcboxctl) -> None:
    assert ctl("exec", "-i", "-", "/no/such", code=127).stderr.startswith("arcboxctl: exec failed: ")
    assert ctl("exec", "-i", "nope", "true", code=125).stderr == "arcboxctl: container not found: nope\n"
    assert ctl("exec", "-i", "--timeout", "0.3", "-", "sleep", "600", code=124).stdout == ""
    assert ctl("exec", "-i", "-", "sh", "-c", "kill -9 $$", code=137).stdout == ""
    done = ctl("exec", "-i", "--json", "-", "sh", "-c", "cat; exit 3", input="ab", code=3)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"stream": "stdout", "data": "ab"},
        {"exit_code": 3, "signal": 0, "timed_out": False, "output_cut": False},
    ]
    assert "is no key" in ctl("exec", "-it", "--detach-keys", "ctrl-1", "-", "true", code=125).stderr


def test_in_a_container_too(ctl: Arcboxctl) -> None:
    ctl.container("web", "sleep", "600")
    assert ctl("exec", "-i", "web", "cat", input="hello").stdout == "hello"


# ------------------------------------------------------------------ a terminal


def test_every_key_goes_to_the_command_and_the_terminal_is_as_before(at_terminal: type[Terminal]) -> None:
    script = "stty raw -echo; echo ready; head -c 262 | od -An -v -tu1"
    terminal = at_terminal("exec", "-it", "--detach-keys=", "-", "sh", "-c", script)
    before = mode(terminal)
    terminal.read_until(b"ready")
    assert mode(terminal) != before
    # All bytes, Ctrl-C, Ctrl-Z and Ctrl-\ among them; and a paste in brackets.
    keys = bytes(range(256)) + b"\x1b[200~"
    terminal.type(keys)
    shown = terminal.read_all()
    assert bytes(int(number) for number in shown.split()) == keys
    assert terminal.process.returncode == 0
    assert mode(terminal) == before


def test_the_size_follows(at_terminal: type[Terminal]) -> None:
    script = "stty size; trap 'stty size; exit 4' WINCH; echo ready; while :; do sleep 0.05; done"
    terminal = at_terminal("exec", "-it", "-", "sh", "-c", script)
    assert f"{ROWS} {COLUMNS}".encode() in terminal.read_until(b"ready")
    fcntl.ioctl(terminal.master, termios.TIOCSWINSZ, struct.pack("HHHH", 11, 77, 0, 0))
    assert b"11 77" in terminal.read_all()
    assert terminal.process.returncode == 4


def test_ctrl_c_is_the_commands(at_terminal: type[Terminal]) -> None:
    terminal = at_terminal(
        "exec", "-it", "-", "sh", "-c", "trap 'echo caught; exit 6' INT; echo ready; sleep 600 & wait"
    )
    terminal.read_until(b"ready")
    terminal.type(b"\x03")
    assert b"caught" in terminal.read_all()
    assert terminal.process.returncode == 6


@pytest.mark.parametrize(("option", "keys"), [((), b"\x10\x11"), (("--detach-keys", "ctrl-@,x"), b"\0x")])
def test_the_detach_keys_leave_it_and_attach_comes_back(
    ctl: Arcboxctl, at_terminal: type[Terminal], option: tuple[str, ...], keys: bytes
) -> None:
    terminal = at_terminal("exec", "-it", *option, "-", "sh", "-c", "echo ready; read a; echo got $a; exit 5")
    before = mode(terminal)
    terminal.read_until(b"ready")
    terminal.type(b"wo" + keys)
    shown = terminal.read_all()
    assert terminal.process.returncode == 0
    assert mode(terminal) == before
    (id,) = left(ctl)
    assert f"left {id}, which goes on" in shown.decode()
    again = at_terminal("attach", "--from-start", id[:12])
    again.read_until(b"ready")
    again.type(b"rd\r")
    assert b"got word" in again.read_all()
    assert again.process.returncode == 5


def test_detach_keys_are_found_in_pieces_and_their_beginning_alone_is_input() -> None:
    watch = KeyWatch(parse_keys("ctrl-p,ctrl-q"))
    assert [watch.typed(data) for data in (b"a\x10", b"b", b"\x10\x10", b"c")] == [b"a", b"\x10b", b"\x10", b"\x10c"]
    assert watch.typed(b"d\x10") == b"d"
    with pytest.raises(Detached) as caught:
        watch.typed(b"\x11e")
    assert caught.value.args == (b"",)
    assert KeyWatch(b"").typed(b"\x10\x11") == b"\x10\x11"
    assert parse_keys("x,ctrl-@,ctrl-Z,ctrl-_") == b"x\x00\x1a\x1f"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_from_outside_ends_it_and_restores_the_terminal(
    ctl: Arcboxctl, at_terminal: type[Terminal], number: signal.Signals
) -> None:
    terminal = at_terminal("exec", "-it", "-", "sh", "-c", "echo ready; exec sleep 600")
    before = mode(terminal)
    terminal.read_until(b"ready")
    os.kill(terminal.arcboxctl(), number)
    terminal.read_all()
    assert terminal.process.returncode == 128 + number
    assert mode(terminal) == before
    assert left(ctl) == []


def test_an_agent_that_is_lost_is_waited_for(start_agent: StartAgent) -> None:
    agent = start_agent()
    terminal = Terminal(agent.address, "exec", "-it", "-", "sh", "-c", "echo ready; read a; echo got $a")
    try:
        before = mode(terminal)
        terminal.read_until(b"ready")
        agent.kill()
        terminal.type(b"word\r")
        agent.restart()
        assert b"got word" in terminal.read_all()
        assert mode(terminal) == before
    finally:
        terminal.close()


def test_while_the_agent_is_away_the_detach_keys_still_leave(start_agent: StartAgent) -> None:
    agent = start_agent()
    terminal = Terminal(agent.address, "exec", "-it", "-", "sh", "-c", "echo ready; exec sleep 600")
    try:
        before = mode(terminal)
        terminal.read_until(b"ready")
        agent.kill()
        time.sleep(0.3)
        terminal.type(b"\x10\x11")
        assert b"which goes on" in terminal.read_all()
        assert mode(terminal) == before
        agent.restart()
        with connect(agent.address) as client:
            (info,) = client.executions()
            client.remove_execution(info.id, force=True)
    finally:
        terminal.close()


# --------------------------------------------------------- attach, executions


def test_attach_gives_input_and_shows_what_comes(ctl: Arcboxctl) -> None:
    with connect(ctl.address) as client:
        client.popen(["cat"], stdin=True, id="cat").detach()
    process = ctl.start("attach", "cat", stdin=subprocess.PIPE)
    out, _ = process.communicate(b"hello\n", timeout=PATIENCE)
    assert (process.returncode, out) == (0, b"hello\n")
    assert ctl("attach", "--from-start", "cat").stdout == "hello\n"
    assert ctl("attach", "nope", code=125).stderr == "arcboxctl: execution not found: nope\n"


def test_ctrl_c_leaves_what_was_attached_to(ctl: Arcboxctl) -> None:
    with connect(ctl.address) as client:
        client.popen(["sh", "-c", "echo a; sleep 600"], id="stays").detach()
    process = ctl.start("attach", "--from-start", "stays")
    assert process.stdout is not None
    assert process.stdout.readline() == b"a\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    assert ctl("executions", "ls", "-q").stdout == "stays\n"


def test_executions_are_listed_shown_waited_for_killed_and_removed(ctl: Arcboxctl) -> None:
    with connect(ctl.address) as client:
        client.popen(["sh", "-c", "echo out; echo err >&2; exit 3"], id="ended").wait()
        client.popen(["sh", "-c", "echo begun; sleep 600"], id="runs").detach()
    header, *rows = ctl("executions", "ls").stdout.splitlines()
    assert header.split() == ["EXECUTION", "ID", "CONTAINER", "COMMAND", "CREATED", "STATUS"]
    assert len(rows) == 1 and rows[0].startswith("runs ")
    assert "Exited (3)" in ctl("executions", "ls", "-a").stdout
    assert [json.loads(line)["id"] for line in ctl("executions", "ls", "-a", "--json").stdout.splitlines()] == [
        "ended",
        "runs",
    ]
    assert json.loads(ctl("executions", "inspect", "ended").stdout)["exit_code"] == 3
    logs = ctl("executions", "logs", "ended")
    assert (logs.stdout, logs.stderr) == ("out\n", "err\n")
    assert ctl("executions", "logs", "runs").stdout == "begun\n"
    assert ctl("executions", "wait", "ended").stdout == "3\n"
    follow = ctl.start("executions", "logs", "-f", "runs")
    assert ctl("executions", "rm", "runs", code=125).stderr.startswith("arcboxctl: ")
    assert ctl("executions", "kill", "runs", "nope", code=125).stderr == "arcboxctl: execution not found: nope\n"
    assert follow.communicate(timeout=PATIENCE)[0] == b"begun\n"
    assert json.loads(ctl("executions", "wait", "--json", "runs").stdout) == {
        "execution": "runs",
        "ok": True,
        "exit_code": 137,
        "signal": 9,
        "cause": "killed",
    }
    assert ctl("executions", "rm", "runs", "ended").stdout == "runs\nended\n"
    assert left(ctl) == []


def test_an_agent_without_executions_gets_all_of_the_input_at_once(
    start_ctl: Callable[[str], Arcboxctl],
) -> None:
    def old(connection: socket.socket) -> None:
        while (request := servers.read_request(connection)).type == servers.PING:
            connection.sendall(servers.pong(request))
        assert request.type == 0x0020
        assert b"all of it" in request.payload
        done = b"\x0a\x06stdout\x12\x05reply\x20\x01"
        connection.sendall(servers.frame(0x1020, done, request.trace))
        servers.answer_pings(connection)

    with servers.server(servers.answer_pings, old) as where:
        done = start_ctl(where.address)("exec", "-i", "-", "cat", input="all of it")
        assert done.stdout == "reply"


# ------------------------------------------------------------------------ rsh


@pytest.fixture
def rsh(ctl: Arcboxctl, tmp_path: Path) -> str:
    """A command line for `-e`; arcboxctl in a file, as programs split it at spaces."""
    program = tmp_path / "arcboxctl"
    program.write_text(f'#!/bin/sh\nexec {" ".join(ARCBOXCTL)} "$@"\n')
    program.chmod(0o755)
    return f"{program} rsh"


def tree(root: Path) -> dict[str, bytes]:
    return {str(each.relative_to(root)): each.read_bytes() for each in root.rglob("*") if each.is_file()}


def files(root: Path) -> Path:
    chosen = random.Random(2)
    for number in range(30):
        directory = root / f"d{number % 5}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"file {number}").write_bytes(chosen.randbytes(chosen.randrange(200_000)))
    return root


@pytest.mark.parametrize(("host", "guest"), [("any", " --guest"), ("web", "")])
def test_rsync_copies_there_and_back(ctl: Arcboxctl, rsh: str, tmp_path: Path, host: str, guest: str) -> None:
    ctl.container("web", "sleep", "600")
    source = files(tmp_path / "source")
    env = environment(ctl.address)
    for words in (
        (f"{source}/", f"{host}:{tmp_path}/there/"),
        (f"{host}:{tmp_path}/there/", f"{tmp_path}/back/"),
    ):
        subprocess.run(["rsync", "-a", "-e", rsh + guest, *words], env=env, check=True, timeout=PATIENCE)
    assert tree(tmp_path / "back") == tree(source)
    assert left(ctl) == []


def test_git_clones_and_pushes(ctl: Arcboxctl, rsh: str, tmp_path: Path) -> None:
    env = {
        **environment(ctl.address),
        "GIT_SSH_COMMAND": f"{rsh} --guest",
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
        "HOME": str(tmp_path),
    }

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], env=env, check=True, timeout=PATIENCE, capture_output=True, text=True)
        return done.stdout

    bare, clone = tmp_path / "bare.git", tmp_path / "clone"
    git("init", "-q", "--bare", str(bare))
    git("clone", "-q", f"guest:{bare}", str(clone))
    files(clone / "content")
    git("-C", str(clone), "add", "-A")
    git("-C", str(clone), "commit", "-q", "-m", "first")
    git("-C", str(clone), "push", "-q", "origin", "HEAD")
    git("clone", "-q", f"guest:{bare}", str(tmp_path / "again"))
    assert tree(tmp_path / "again" / "content") == tree(clone / "content")


def test_sftp_talks_to_its_server(ctl: Arcboxctl, rsh: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(random.Random(3).randbytes(1 << 20))
    server = f"{rsh.removesuffix(' rsh')} exec -i - /usr/lib/openssh/sftp-server"
    commands = f"put {source} {tmp_path}/there\nget {tmp_path}/there {tmp_path}/back\n"
    for words in (["-D", server], ["-S", f"{rsh.removesuffix(' rsh')}-rsh", "root@-"]):
        wrapper = tmp_path / "arcboxctl-rsh"
        wrapper.write_text(f'#!/bin/sh\nexec {rsh} "$@"\n')
        wrapper.chmod(0o755)
        subprocess.run(
            ["sftp", "-q", "-b", "-", *words],
            input=commands.encode(),
            env=environment(ctl.address),
            check=True,
            timeout=PATIENCE,
            capture_output=True,
        )
        assert (tmp_path / "back").read_bytes() == source.read_bytes()
        (tmp_path / "back").unlink()


def test_rsh_takes_the_words_of_ssh(ctl: Arcboxctl) -> None:
    def rsh(*words: str, code: int = 0) -> str:
        done = ctl("rsh", *words, code=code)
        return done.stdout + done.stderr

    assert rsh("-", "echo", "$((1", "+", "2))") == "3\n"
    assert rsh("-x", "-a", "-oClearAllForwardings=yes", "-o", "Port=1", "-p22", "-T", "--", "-", "echo a") == "a\n"
    assert rsh("-l", "root", "-", "id", "-un") == "root\n"
    assert rsh("nobody@-", "id -un") == "nobody\n"
    assert rsh("--guest", "anything", "exit 9", code=9) == ""
    assert rsh("-G", "web") == "host web\n"
    assert "-Z is no option of ssh" in rsh("-Z", "web", code=125)
    assert "no HOST is given" in rsh(code=125)
    assert "no subsystem is called 'gopher'" in rsh("-", "-s", "gopher", code=125)

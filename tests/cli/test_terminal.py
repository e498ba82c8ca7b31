"""arcboxctl at a real terminal: a pty that is its controlling terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.cli.terminal import Terminal

if TYPE_CHECKING:
    from tests.cli.conftest import Arcboxctl


def test_a_commands_terminal_has_the_size_of_ours(at_terminal: type[Terminal]) -> None:
    terminal = at_terminal("exec", "-t", "-", "stty", "size")
    # Both terminals, the command's and ours, turn a newline into CR LF.
    assert terminal.read_all() == b"50 132\r\r\n"
    assert terminal.process.returncode == 0


def test_ctrl_c_typed_ends_a_command(at_terminal: type[Terminal]) -> None:
    terminal = at_terminal("exec", "-", "sh", "-c", "echo up; exec sleep 600")
    assert terminal.read_until(b"up\r\n") == b"up\r\n"
    terminal.type(b"\x03")
    assert terminal.read_all() == b"^C"
    assert terminal.process.returncode == 130


def test_ctrl_c_typed_before_the_agent_answers_ends_the_wait(at_terminal: type[Terminal]) -> None:
    terminal = at_terminal("--host", "unix:///nowhere/agent.sock", "--wait", "600", "ping")
    # Not before it has its handlers: the interpreter's own start is not ours to judge.
    time.sleep(1)
    terminal.type(b"\x03")
    assert terminal.read_all() == b"^C"
    assert terminal.process.returncode == 130


def test_input_from_the_keyboard_goes_line_by_line_and_ends_with_ctrl_d(at_terminal: type[Terminal]) -> None:
    terminal = at_terminal("exec", "-i", "-", "cat")
    for line in (b"one", b"two"):
        terminal.type(line + b"\n")
        # The terminal's own echo, then what the command has written.
        assert terminal.read_until(line + b"\r\n" + line + b"\r\n") == line + b"\r\n" + line + b"\r\n"
    terminal.type(b"\x04")
    assert terminal.read_all() == b""
    assert terminal.process.returncode == 0


def test_ctrl_c_typed_goes_to_the_container_of_a_run(at_terminal: type[Terminal], ctl: Arcboxctl) -> None:
    script = "trap 'echo caught; exit 9' INT; echo up; while :; do sleep 0.1; done"
    terminal = at_terminal("run", "--rm", "x", "sh", "-c", script)
    assert terminal.read_until(b"up\r\n").endswith(b"up\r\n")
    terminal.type(b"\x03")
    assert terminal.read_until(b"caught\r\n") == b"^Ccaught\r\n"
    assert terminal.read_all() == b""
    assert terminal.process.returncode == 9
    assert ctl("ps", "-aq").stdout == ""

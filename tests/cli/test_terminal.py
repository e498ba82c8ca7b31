"""arcboxctl at a real terminal: a pty that is its controlling terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import ARCBOXCTL, environment
from tests.conftest import PATIENCE

if TYPE_CHECKING:
    from tests.cli.conftest import Arcboxctl

ROWS, COLUMNS = 50, 132


class Terminal:
    """A person's end of a terminal that arcboxctl runs on."""

    def __init__(self, address: str, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        # Without these, which a test run may have set, the size is the terminal's own.
        env = {name: value for name, value in environment(address).items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *ARCBOXCTL, *arguments], stdin=slave, stdout=slave, stderr=slave, env=env
        )
        os.close(slave)
        self.seen = b""

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def read_until(self, text: bytes) -> bytes:
        """What it shows, up to `text` or its end."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.seen and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.master, 4096)
                except OSError:
                    break  # EIO: the other end is closed
        before, found, self.seen = self.seen.partition(text)
        return before + found

    def read_all(self) -> bytes:
        shown = self.read_until(b"\0no such thing\0")
        self.process.wait(PATIENCE)
        return shown

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def at_terminal(ctl: Arcboxctl) -> Iterator[type[Terminal]]:
    opened: list[Terminal] = []

    def open_one(*arguments: str) -> Terminal:
        opened.append(Terminal(ctl.address, *arguments))
        return opened[-1]

    yield open_one  # type: ignore[misc]
    for terminal in opened:
        terminal.close()


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


def test_input_from_the_keyboard_is_asked_for_and_ends_with_ctrl_d(at_terminal: type[Terminal]) -> None:
    terminal = at_terminal("exec", "-i", "-", "tr", "a-z", "A-Z")
    note = b"arcboxctl: reading standard input to its end (Ctrl-D); the command starts then\r\n"
    assert terminal.read_until(note) == note
    terminal.type(b"hello\n")
    # The terminal's own echo, by which we know that the line is in.
    assert terminal.read_until(b"hello\r\n") == b"hello\r\n"
    terminal.type(b"\x04")
    assert terminal.read_until(b"HELLO\r\n").endswith(b"HELLO\r\n")
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

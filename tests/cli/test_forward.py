"""forward and wait-for, by the real program, with real sockets at all ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from arcbox_agent.cli.forward import Forwarded, parse
from arcbox_agent.client.endpoint import Endpoint
from tests.conftest import PATIENCE

if TYPE_CHECKING:
    from tests.cli.conftest import Arcboxctl


class Shouting:
    """A server that answers what it gets in capitals, when that has ended."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            with sock:
                received = b""
                while data := sock.recv(65536):
                    received += data
                if received:  # else it was only a look whether anybody is here
                    sock.sendall(received.upper())

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._thread.join(PATIENCE)


@pytest.fixture
def tcp() -> Iterator[int]:
    """The port of a Shouting."""
    server = Shouting(socket.create_server(("127.0.0.1", 0)))
    yield server.listener.getsockname()[1]
    server.close()


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[str]:
    """The path of a Shouting."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "shouting"))
    listener.listen()
    server = Shouting(listener)
    yield str(tmp_path / "shouting")
    server.close()


def ask(address: str) -> bytes:
    """What the server behind a listener's address answers."""
    if address.startswith("/"):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address)
    else:
        host, _, port = address.rpartition(":")
        sock = socket.create_connection((host, int(port)))
    with sock:
        sock.settimeout(PATIENCE)
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        received = b""
        while data := sock.recv(65536):
            received += data
    return received


def ended(process: subprocess.Popen[bytes], number: int) -> str:
    """What it wrote to standard error; it ends by that signal with its exit code."""
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    return errors.decode()


def test_several_listeners_at_once_both_ways(ctl: Arcboxctl, tcp: int, unix: str, tmp_path: Path) -> None:
    options = ["-L", f"0:localhost:{tcp}", "-L", f"{tmp_path}/local:{unix}"]
    options += ["-R", f"127.0.0.1:0:{unix}", "-R", f"{tmp_path}/remote:127.0.0.1:{tcp}"]
    process = ctl.start("forward", *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    lines = [process.stdout.readline().decode() for _ in range(4)]
    found = [re.fullmatch(r"(host|guest) (\S+) -> (host|guest) (\S+)\n", line) for line in lines]
    assert all(found), lines
    assert [match[1] + match[3] for match in found if match] == ["hostguest", "hostguest", "guesthost", "guesthost"]
    for match in found:
        assert match is not None
        assert ask(match[2]) == b"HELLO"
        assert ask(match[2]) == b"HELLO"
    assert ended(process, signal.SIGINT) == ""
    assert not (tmp_path / "local").exists()


def test_for_programs_and_what_is_refused_on_the_other_side(ctl: Arcboxctl, tmp_path: Path) -> None:
    process = ctl.start("--json", "forward", "-L", f"0:{tmp_path}/none", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    assert (list(told), told["side"], told["to"]) == (["side", "address", "to"], "host", f"{tmp_path}/none")
    with pytest.raises(ConnectionResetError):
        ask(told["address"])
    errors = ended(process, signal.SIGTERM)
    assert errors == (f"arcboxctl: connect to {tmp_path}/none failed: ENOENT: No such file or directory\n")


def test_a_listener_that_cannot_be_is_an_error(ctl: Arcboxctl, tcp: int) -> None:
    assert "in use" in ctl("forward", "-L", f"{tcp}:localhost:1", code=125).stderr
    text = f"listen on 127.0.0.1:{tcp} failed: EADDRINUSE: Address already in use"
    assert text in ctl("forward", "-R", f"{tcp}:localhost:1", code=125).stderr
    assert "give -L or -R" in ctl("forward", code=125).stderr


@pytest.mark.parametrize(
    ("value", "listen", "to"),
    [
        ("8080:localhost:80", ("127.0.0.1", 8080, ""), ("localhost", 80, "")),
        ("*:8080:db:80", ("0.0.0.0", 8080, ""), ("db", 80, "")),
        (":8080:db:80", ("0.0.0.0", 8080, ""), ("db", 80, "")),
        ("[::1]:8080:[fe80::1]:80", ("::1", 8080, ""), ("fe80::1", 80, "")),
        ("/a:/b", ("", 0, "/a"), ("", 0, "/b")),
        ("/a:db:80", ("", 0, "/a"), ("db", 80, "")),
        ("1.2.3.4:80:/b", ("1.2.3.4", 80, ""), ("", 0, "/b")),
        ("80:/b", ("127.0.0.1", 80, ""), ("", 0, "/b")),
    ],
)
def test_what_ssh_understands(value: str, listen: tuple[str, int, str], to: tuple[str, int, str]) -> None:
    for back in (False, True):
        assert parse(value, back) == Forwarded(back, Endpoint(*listen), Endpoint(*to))


@pytest.mark.parametrize("value", ["", "80", "80:x", "x:/b", "a:b:c:d:5", "80:db:x", "80:db:0", "1:2:3:70000"])
def test_what_ssh_does_not_understand_either(value: str) -> None:
    with pytest.raises(click.UsageError):
        parse(value, False)


def test_wait_for_a_port_a_socket_and_a_file(ctl: Arcboxctl, tcp: int, unix: str, tmp_path: Path) -> None:
    assert ctl("wait-for", "port", str(tcp)).stdout == ""
    assert ctl("wait-for", "port", f"localhost:{tcp}").stdout == ""
    assert ctl("wait-for", "socket", unix).stdout == ""
    assert ctl("wait-for", "file", str(tmp_path)).stdout == ""
    late = ctl("wait-for", "file", f"{tmp_path}/none", "--timeout", "0.1", code=1)
    assert (late.stdout, late.stderr) == ("", f"arcboxctl: {tmp_path}/none: there is no such file\n")
    late = ctl("--json", "wait-for", "file", f"{tmp_path}", "--changes", "-t", "0.1", code=1)
    assert json.loads(late.stdout) == {"met": False, "last": f"{tmp_path}: it has not changed"}
    assert "is no port" in ctl("wait-for", "port", "/x", code=125).stderr


def test_wait_for_a_line_of_a_log_or_of_an_execution_and_for_ends(ctl: Arcboxctl) -> None:
    ctl.container("talker", "sh", "-c", "echo ready: 42; sleep 60")
    assert ctl("wait-for", "log", "talker", r"ready: \d+").stdout == "ready: 42\n"
    assert json.loads(ctl("--json", "wait-for", "log", "talker", "4").stdout) == {"met": True, "found": "ready: 42"}
    assert "has matched" in ctl("wait-for", "log", "talker", "never", "-t", "0.1", code=1).stderr
    assert "container not found" in ctl("wait-for", "log", "nobody", "x", code=125).stderr
    assert "is wrong at character 0" in ctl("wait-for", "log", "talker", "*", code=125).stderr
    assert ctl("wait-for", "process", str(2**22 + 1)).stdout == ""
    ctl("rm", "--force", "talker")

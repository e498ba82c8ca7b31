"""The rivals as running programs, and the load that both sides get."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.compiled import compiled
from tools.stress.agent import PATIENCE, cpu_seconds

SOURCES = Path(__file__).resolve().parent / "rivals"


def rival(name: str) -> Path:
    """The program made of rivals/NAME.c."""
    return compiled(SOURCES / f"{name}.c")


@contextmanager
def running(*command: str | Path, listening_at: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server process, from when its socket answers until the end of the block."""
    process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE
        while not _takes_connections(listening_at):
            assert process.poll() is None, f"{command[0]} ended"
            assert time.monotonic() < deadline, f"{command[0]} does not listen"
            time.sleep(0.005)
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _takes_connections(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Target:
    """A server under load: its socket, and the process whose CPU time counts."""

    socket_path: Path
    pid: int

    def run_on(self, cpu: int) -> None:
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {cpu})


@dataclass(frozen=True, slots=True)
class Load:
    """The load generator with one request and the bytes that must answer it."""

    request: Path
    reply: Path
    connections: int
    depth: int
    total: int

    def run(self, target: Target, cpu: int) -> tuple[float, float, float]:
        """Requests a second, median seconds of a batch, and the server's CPU seconds per request."""
        before = cpu_seconds(target.pid)
        done = subprocess.run(
            [
                *(rival("load"), target.socket_path, self.request, self.reply),
                *map(str, (self.connections, self.depth, self.total)),
            ],
            check=True,
            stdout=subprocess.PIPE,
            preexec_fn=_pinned(cpu),
        )
        seconds, p50, _ = map(float, done.stdout.split())
        total = -(-self.total // self.depth) * self.depth
        return total / seconds, p50 / 1e9, (cpu_seconds(target.pid) - before) / total


def _pinned(cpu: int) -> Callable[[], None]:
    return lambda: os.sched_setaffinity(0, {cpu})


def ask(path: Path, request: bytes) -> bytes:
    """The reply to one request: one frame, whole."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(path))
        connection.sendall(request)
        reply = b""
        while len(reply) < 4 or len(reply) < 4 + int.from_bytes(reply[:4], "big"):
            got = connection.recv(65536)
            assert got, "the server closed the connection"
            reply += got
    return reply


#: Python as the leanest way to start it: no site, no environment, no user's directory.
BARE_PYTHON = (sys.executable, "-ISE")

"""What the container tests share: a loop to run in, and what to count."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from arcbox_agent.errors import RequestError
from tools.pace import patience

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T], timeout: float = 60.0) -> T:
    """On the agent's own kind of loop, and not for ever; `timeout` as in tools/pace.py."""

    async def bounded() -> T:
        async with asyncio.timeout(patience(timeout)):
            return await main

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


@contextlib.contextmanager
def leased(path: Path, program: str = "/bin/busybox") -> Iterator[Callable[[], object]]:
    """A copy of a program at `path`, whose execution hangs until what this gives is called, or the block ends."""
    shutil.copy2(program, path)
    former = signal.signal(signal.SIGIO, lambda *_: None)  # what tells the holder that the lease is wanted
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield lambda: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, former)


def null() -> int:
    return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


def open_descriptors() -> Counter[str]:
    """What is open, by kind: numbers and inodes left out."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the listing itself
        found[target.split(":[")[0]] += 1
    return found


def children() -> list[int]:
    """Every child of this process, zombies included."""
    found: list[int] = []
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                found.extend(int(pid) for pid in file.read().split())
        except FileNotFoundError:
            continue  # the thread has ended meanwhile
    return sorted(found)


class Counts(Counter[str]):
    """Metrics, as far as what is tested needs them."""

    def add(self, name: str, n: int = 1) -> None:
        self[name] += n

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        self[name] = 0


def eventually(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    """Wait for what must come true; `timeout` as in tools/pace.py."""
    deadline = time.monotonic() + patience(timeout)
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def text_of(error: RequestError) -> str:
    """What the agent said, without what the client adds."""
    return error.message.split("\ntrace id")[0]


def lines_of(client: Any, ref: str) -> list[bytes]:
    return [entry.data for entry in client.logs(ref)]


def alive(pid: int) -> bool:
    """Whether that process runs: a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return line[line.rindex(b")") + 2 : line.rindex(b")") + 3] not in (b"Z", b"X")


def keeper_of(directory: Path) -> int:
    """The keeper of the agent that has its directories there."""
    (found,) = (pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_keeper_of(pid, directory))
    return found


def _is_keeper_of(pid: int, directory: Path) -> bool:
    try:
        with open(f"/proc/{pid}/comm") as file:
            if not file.read().startswith("arcbox-keeper"):
                return False
        sockets = {os.readlink(f"/proc/{pid}/fd/0").split("[")[1].rstrip("]")}
        with open("/proc/net/unix") as file:
            return any(line.split()[6] in sockets and str(directory) in line for line in file.readlines()[1:])
    except (OSError, IndexError):
        return False

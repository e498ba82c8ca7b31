"""The real arcboxctl, as a process, against the real agent."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from arcbox_agent.sync import connect
from tests.conftest import PATIENCE, REPOSITORY, RunningAgent

if TYPE_CHECKING:
    from tests.cli.terminal import Terminal

#: A shell that runs the tests in the background has SIGINT ignored, nohup SIGHUP, which arcboxctl would respect.
ARCBOXCTL = ["env", "--default-signal=INT,QUIT,TERM,HUP", sys.executable, "-m", "arcbox_agent.cli"]


def environment(address: str) -> dict[str, str]:
    return {
        **os.environ,
        "ARCBOX_HOST": address,
        "PYTHONPATH": str(REPOSITORY / "src"),
        # Warnings that arcboxctl causes are errors, as they are in the tests' own process.
        "PYTHONWARNINGS": "error",
        # As in a person's shell: what is written and not flushed is written at the end.
        "PYTHONUNBUFFERED": "",
    }


class Arcboxctl:
    """`ctl("ps", "-a")` runs it to its end; `ctl.start(...)` leaves it running."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.started: list[subprocess.Popen[bytes]] = []

    def __call__(self, *arguments: str, code: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        options.setdefault("env", environment(self.address))
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        done = subprocess.run(
            [*ARCBOXCTL, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False, **options
        )
        if code is not None:
            assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        options.setdefault("env", environment(self.address))
        for stream in ("stdin", "stdout", "stderr"):
            options.setdefault(stream, subprocess.DEVNULL if stream == "stdin" else subprocess.PIPE)
        process = subprocess.Popen([*ARCBOXCTL, *arguments], **options)
        self.started.append(process)
        return process

    def container(self, name: str, *command: str) -> str:
        """A container that runs; its id."""
        return self("run", "-d", "--name", name, "busybox", *command).stdout.strip()


@pytest.fixture(scope="module")
def shared_agent() -> Iterator[RunningAgent]:
    """One agent for the tests of a module: arcboxctl's own tests need no new one each."""
    with tempfile.TemporaryDirectory(prefix="arcbox-") as directory:
        agent = RunningAgent(Path(directory), {"containers_at_exit": "stop"}, [])
        try:
            agent.wait_until_it_answers()
            yield agent
            agent.stop()
        finally:
            agent.kill()


@pytest.fixture
def ctl(shared_agent: RunningAgent) -> Iterator[Arcboxctl]:
    with_agent = Arcboxctl(shared_agent.address)
    yield with_agent
    for process in with_agent.started:
        process.kill()
        process.communicate()
    # The next test finds an agent without containers.
    with connect(shared_agent.address) as client:
        for container in client.list_containers(all=True):
            client.remove_container(container.id, force=True)


@pytest.fixture
def start_ctl() -> Callable[[str], Arcboxctl]:
    """`start_ctl(address)`: for an agent of the test's own, or for none."""
    return Arcboxctl


@pytest.fixture
def at_terminal(ctl: Arcboxctl) -> Iterator[type[Terminal]]:
    from tests.cli.terminal import Terminal

    opened: list[Terminal] = []

    def open_one(*arguments: str) -> Terminal:
        opened.append(Terminal(ctl.address, *arguments))
        return opened[-1]

    yield open_one  # type: ignore[misc]
    for terminal in opened:
        terminal.close()

"""The real arcboxctl, as a process, against the real agent."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import PATIENCE, REPOSITORY

if TYPE_CHECKING:
    from tests.conftest import RunningAgent

ARCBOXCTL = [sys.executable, "-m", "arcbox_agent.cli"]


def environment(address: str) -> dict[str, str]:
    return {
        **os.environ,
        "ARCBOX_HOST": address,
        "PYTHONPATH": str(REPOSITORY / "src"),
        # Warnings that arcboxctl causes are errors, as they are in the tests' own process.
        "PYTHONWARNINGS": "error",
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


@pytest.fixture
def ctl(agent: RunningAgent) -> Any:
    with_agent = Arcboxctl(agent.address)
    yield with_agent
    for process in with_agent.started:
        process.kill()
        process.communicate()


@pytest.fixture
def start_ctl() -> Callable[[str], Arcboxctl]:
    return Arcboxctl

"""A copy of the checkout to make mutants in, and a run of tests in it.

The checkout itself is never touched: the copy has its own src, tests and compiled modules, and
PYTHONPATH puts them before whatever is installed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = Path("src/arcbox_agent")

#: What no test needs.
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".benchmarks", ".hypothesis", ".*_cache", "__pycache__", "build", "dist", "*.egg-info"
)

#: One test may take this long, in seconds, before it counts as one that hangs.
TEST_TIMEOUT = 60

#: After the signal that ends a run: so long may its tests take to end what they started.
PATIENCE = 20.0


@dataclass(frozen=True)
class Outcome:
    """`killed_by`: the test that failed; what went wrong before any test did; None: all passed."""

    killed_by: str | None
    seconds: float


class Scratch:
    """One copy; a run of tests at a time."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="arcbox-mutants-")
        self.root = Path(self._directory.name) / "checkout"
        shutil.copytree(REPOSITORY, self.root, symlinks=True, ignore=LEFT_OUT)
        self._environment = {**os.environ, "PYTHONPATH": str(self.root / "src")}
        self._written = 0

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._directory.cleanup()

    def write(self, file: str, source: str) -> None:
        """Put `source` in the place of a file of the package."""
        path = self.root / PACKAGE / file
        path.write_text(source)
        # Compiled modules are told apart by size and whole seconds: two mutants of one second are not.
        self._written += 1
        os.utime(path, (self._written, self._written))

    def compile(self) -> str | None:
        """Compile what has changed; what the compiler said where that failed."""
        # By the time of a file alone a mutant, which is old on purpose, would not be compiled.
        environment = {**self._environment, "CYTHON_FORCE_REGEN": "1"}
        if shutil.which("ccache"):
            environment.setdefault("CC", "ccache gcc")
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout if done.returncode else None

    def run(self, tests: Sequence[str], timeout: float) -> Outcome:
        """Run `tests` until one fails, for at most `timeout` seconds: longer counts as failed."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--timeout={TEST_TIMEOUT}"]
        command += ["-rfE", "--tb=no", "-m", "not slow and not vm", *tests]
        began = time.monotonic()
        with subprocess.Popen(
            command,
            cwd=self.root,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                said, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                self._end(process)
                return Outcome(f"hangs for {timeout:.0f} s", time.monotonic() - began)
        seconds = time.monotonic() - began
        if process.returncode == 0:
            return Outcome(None, seconds)
        return Outcome(_first_failure(said), seconds)

    def _end(self, process: subprocess.Popen[str]) -> None:
        """As a person at the keyboard would: so the tests end the agents that they started."""
        for number in (signal.SIGINT, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                break
            try:
                process.communicate(timeout=PATIENCE)
                break
            except subprocess.TimeoutExpired:
                continue


def _first_failure(said: str) -> str:
    lines = said.splitlines()
    for line in lines:
        if line.startswith(("FAILED ", "ERROR ")):
            return line.split(" ", 1)[1].split(" - ")[0]
    return next((line for line in reversed(lines) if line.strip()), "pytest said nothing")

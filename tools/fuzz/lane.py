"""One part's worker, watched from outside: how far it is, that it does not hang, and what ended it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tools.fuzz.minimise import minimise
from tools.fuzz.record import Record
from tools.fuzz.worker import FAILED
from tools.sanitized import ROOT

#: An execution that takes so many seconds hangs, also where many others want the processor.
HANGS = 120.0
#: Seconds for making an input smaller that ends its process.
MINIMISING = 60.0
#: Of what a failed worker said, so much is shown: a sanitizer's report begins with what is wrong, and
#: an exception ends with it.
SHOWN = 4000


class Outcome(NamedTuple):
    name: str
    executions: int
    seconds: float
    #: Of them, so many the worker spent on a processor, without its start.
    worked: float
    #: Where the failing input was saved; None: there was none.
    saved: Path | None


class Lane:
    """The worker of one part, from its start to its outcome.

    `objects`: every Python object has memory of its own, whose bounds ASan knows.  That costs five
    times the time.  Without it ASan knows the bounds of what the compiled part allocates itself.
    """

    def __init__(self, part: str, objects: bool, directory: Path, environment: Mapping[str, str]) -> None:
        self.part = part
        self.name = part if objects else f"{part}, quick"
        # In memory, and away with what a worker leaves that was ended.
        self._memory = tempfile.TemporaryDirectory(prefix="arcbox-fuzz-", dir="/dev/shm")
        self.scratch = Path(self._memory.name)
        # Some parts drop root's rights before they begin.
        self.scratch.chmod(0o777)
        self._environment = {**environment, "TMPDIR": str(self.scratch)}
        if not objects:
            self._environment.pop("PYTHONMALLOC", None)
        self._directory = directory
        self._words = directory / f"{self.name}.stderr"
        self._path = directory / f"{self.name}.record"
        self._record = Record(self._path, create=True)
        self.process: subprocess.Popen[bytes] | None = None
        self._seen = -1
        self._moved = self._begun = time.monotonic()

    def start(self, seed: int, executions: int, seconds: float) -> None:
        self._begun = self._moved = time.monotonic()
        self.process = self._worker(f"{seed} {self.name}", str(executions), str(seconds))

    def _worker(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tools.fuzz.worker", self.part, str(self._path), *arguments]
        with open(self._words, "wb") as words:
            return subprocess.Popen(command, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, stderr=words)

    @property
    def executions(self) -> int:
        return self._record.executions

    def poll(self) -> Outcome | None:
        """The outcome, once there is one."""
        assert self.process is not None, "poll comes after start"
        now = time.monotonic()
        status = self.process.poll()
        if status is None:
            if self.executions != self._seen:
                self._seen, self._moved = self.executions, now
            if now - self._moved < HANGS:
                return None
            self.process.send_signal(signal.SIGUSR1)  # where it hangs: on stderr
            time.sleep(1)
            self.process.kill()
            status = self.process.wait()
        count, worked, data = self.executions, self._record.worked, self._record.data
        saved = None if status == 0 else self._fail(status, data)
        self.stop()
        return Outcome(self.name, count, now - self._begun, worked, saved)

    def stop(self) -> None:
        """Nothing is left of the worker; also where there was none, or it has ended."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self._record.close()
        self._memory.cleanup()

    def _fail(self, status: int, data: bytes) -> Path:
        said = self._words.read_bytes().decode(errors="replace")
        print(said if len(said) <= 2 * SHOWN else f"{said[:SHOWN]}\n ...\n{said[-SHOWN:]}", file=sys.stderr)
        if status != FAILED:
            data = minimise(data, lambda smaller: self._ends(smaller, status), MINIMISING)
        saved = self._directory / f"{self.part}-{hashlib.sha256(data).hexdigest()[:12]}"
        saved.write_bytes(data)
        how = f"exit code {status}" if status >= 0 else signal.Signals(-status).name
        print(
            f"fuzz: {self.part} failed ({how}) on an input of {len(data)} bytes: python -m tools.fuzz --input {saved}\n"
            f"    {data[:200]!r}",
            file=sys.stderr,
        )
        return saved

    def _ends(self, data: bytes, status: int) -> bool:
        """Whether a worker ends in the same way on this input alone."""
        file = self._directory / f"{self.name}.smaller"
        file.write_bytes(data)
        process = self._worker("--input", str(file))
        try:
            return process.wait(HANGS) == status
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait() == status


def run_again(part: str, file: Path, directory: Path, environment: Mapping[str, str]) -> int:
    """One input, with every judge; the worker's words go to stderr."""
    path = directory / f"{part}.record"
    Record(path, create=True).close()
    command = [sys.executable, "-m", "tools.fuzz.worker", part, str(path), "--input", str(file)]
    with tempfile.TemporaryDirectory(prefix="arcbox-fuzz-", dir="/dev/shm") as scratch:
        os.chmod(scratch, 0o777)
        return subprocess.run(command, cwd=ROOT, env={**environment, "TMPDIR": scratch}, check=False).returncode

"""A real agent process, how to hurt it, and what it holds: descriptors, memory, CPU, children."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcbox_agent.agent.containers.runtimes.guest import SPARE_SCOPES
from tools.pace import patience

ROOT = Path(__file__).resolve().parent.parent.parent

#: Only what hangs takes this long; a loaded machine does not.
PATIENCE = patience(60.0)

#: VMADDR_CID_LOCAL: this machine, over the loopback of AF_VSOCK.
LOCAL_CID = 1

#: A ping of version 1, from docs/protocol.md.
PING = bytes.fromhex("0000000a000000010a0470696e67")


class AgentEndedError(Exception):
    """The agent ended, or hung, when it should have answered; the text has its log."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a process holds.

    `memory`: its private bytes.  `files`: what each descriptor is.  `children`: but for
    the keeper, which stays.
    """

    files: tuple[str, ...]
    threads: int
    children: tuple[int, ...]
    memory: int

    def describe(self) -> str:
        return (
            f"{len(self.files)} fds, {self.threads} threads, {len(self.children)} children, {self.memory / 1e6:.1f} MB"
        )


class AgentProcess:
    """One agent, listening on a unix socket in `directory`, with settings as in docs/configuration.md.

    `vsock_port`: it is reached over the loopback of AF_VSOCK there, and not over that socket.
    """

    def __init__(
        self,
        directory: Path,
        *,
        settings: dict[str, str] | None = None,
        state_dir: Path | None = None,
        python: tuple[str, ...] = (sys.executable,),
        vsock_port: int | None = None,
    ) -> None:
        self.directory = directory
        self.socket_path = directory / "agent.sock"
        self.address = f"unix://{self.socket_path}"
        self.state_dir = state_dir or directory / "state"
        self.run_dir = directory / "run"
        self.log_path = directory / "agent.log"
        self.settings = settings or {}
        self._listen = f"unix:{self.socket_path}"
        #: For a socket of one's own: its family and whom it connects to.
        self.peer: tuple[int, Any] = (socket.AF_UNIX, str(self.socket_path))
        if vsock_port is not None:
            self.address = f"vsock://{LOCAL_CID}:{vsock_port}"
            self._listen = f"vsock:{vsock_port}"
            self.settings = {"allow_cid": str(LOCAL_CID), **self.settings}
            self.peer = (socket.AF_VSOCK, (LOCAL_CID, vsock_port))
        self.python = python
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the process; it need not answer yet."""
        command = [*self.python, "-m", "arcbox_agent.agent", "--listen", self._listen]
        command += ["--state-dir", str(self.state_dir), "--run-dir", str(self.run_dir)]
        for name, value in self.settings.items():
            command += ["--" + name.replace("_", "-"), value]
        path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )

    def wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE
        while not self.answers():
            if (code := self._process.poll()) is not None:
                raise AgentEndedError(f"the agent ended with {code}:\n{self.log()}")
            if time.monotonic() > deadline:
                raise AgentEndedError(f"the agent does not answer:\n{self.log()}")
            time.sleep(0.003)

    def answers(self) -> bool:
        """Does it answer a ping within a second?"""
        try:
            family, address = self.peer
            with socket.socket(family) as connection:
                connection.settimeout(1.0)
                connection.connect(address)
                connection.sendall(PING)
                return connection.recv(1) != b""
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL: no chance to do anything more."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE)

    def stop(self) -> None:
        """SIGTERM and the clean end that must follow; returns when the process is gone."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AgentEndedError(f"the agent did not stop:\n{self.log()}") from None
        if code != 0:
            raise AgentEndedError(f"the agent ended with {code}:\n{self.log()}")

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self, *, whole: bool = False) -> str:
        """The agent's log, of all its lives; or the end of it."""
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return text if whole else text[-8000:]

    def holdings(self) -> Holdings:
        return holdings(self.pid)

    def holdings_at_rest(self, like: Holdings | None = None) -> Holdings:
        """What it holds when it has no children and as many files as `like`; without that, when they do not change.

        What it holds after 10 s is told in any case.
        """
        deadline = time.monotonic() + 10
        last = self.holdings()
        while time.monotonic() < deadline:
            time.sleep(0.1 if like else 0.5)
            now = self.holdings()
            if not now.children and now.files == (like or last).files:
                return now
            last = now
        return last

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pid)


def holdings(pid: int) -> Holdings:
    files = []
    spare = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue  # closed meanwhile
        if "/.commands/.exec-" in target and (spare := spare + 1) <= SPARE_SCOPES:
            continue  # the cgroup of a command that is over, kept open for the next one
        # Numbers differ from one time to the next: a socket is a socket.
        files.append(target.partition(":[")[0])
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    children: set[int] = set()
    for task in tasks:
        try:
            children.update(map(int, (task / "children").read_text().split()))
        except (FileNotFoundError, ProcessLookupError):
            continue
    # The keeper stays for the next container.
    children = {child for child in children if _name(child) != "arcbox-keeper"}
    return Holdings(tuple(sorted(files)), len(tasks), tuple(sorted(children)), memory(pid)["Private"])


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def memory(pid: int) -> dict[str, int]:
    """Bytes by the kernel's names (Rss, Pss, ...), and `Private`: what is this process's alone."""
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        sizes[name] = int(value.split()[0]) * 1024
    sizes["Private"] = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return sizes


def peak_rss(pid: int) -> int:
    """The most bytes that were resident at once since `forget_peak_rss`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/{pid}/status has no VmHWM")


def forget_peak_rss(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def cpu_seconds(pid: int) -> float:
    """CPU time of all the threads that are there, to the nanosecond."""
    spent = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        spent += int((task / "schedstat").read_text().split()[0])
    return spent / 1e9

"""A real agent for every test that wants one, and a runner for coroutines.

`agent`         a running agent; stopped at the end, which must be clean
`start_agent`   starts agents with settings of the test's own choice
`run_async`     runs a coroutine; the test runs twice, on asyncio and on uvloop
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from tools.pace import factor, patience

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parent.parent

#: Only what hangs takes this long; a loaded machine does not.
PATIENCE = patience(60.0)

#: A V1 PingRequest("ping"), as in docs/protocol.md: needs none of our own code to be right.
PING = bytes.fromhex("0000000a000000010a0470696e67")


#: In a guest, where tests/vm runs the client's tests again, clients come over the loopback
#: of AF_VSOCK instead of the unix socket.
OVER_VSOCK = os.environ.get("ARCBOX_TEST_TRANSPORT") == "vsock"

#: Ports of a range of this process's own: several may run tests at once (pytest -n).
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_vsock_ports = itertools.count(20000 + 1000 * _WORKER)


_NOT_ROOT = "not root: the tests that mount, change users, limit with cgroups or boot a guest fail"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # The time-out of each test stretches as all limits do.  Before pytest-timeout reads it, and only
    # where neither the command line nor the environment sets one.
    if config.getoption("timeout", None) is None and "PYTEST_TIMEOUT" not in os.environ:
        config.option.timeout = patience(float(config.getini("timeout")))


def pytest_report_header() -> list[str]:
    pace = f"pace: time limits are those of the reference machine x {factor():.1f}"
    return [pace, _NOT_ROOT] if os.geteuid() else [pace]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    yield
    # Once more after what failed, which the header is far away from.
    if os.geteuid() and (terminalreporter.stats.keys() & {"failed", "error"}):
        terminalreporter.write_line(_NOT_ROOT)


class RunningAgent:
    """One agent process, listening on a unix socket in a directory of its own."""

    def __init__(self, directory: Path, settings: dict[str, str | list[str]], listen: list[str]) -> None:
        self.directory = directory
        self.socket_path = directory / "agent.sock"
        self.address = f"unix://{self.socket_path}"
        self.state_dir = directory / "state"
        self.run_dir = directory / "run"
        self.log_path = directory / "agent.log"
        if OVER_VSOCK:
            port = next(_vsock_ports)
            self.address = f"vsock://1:{port}"
            listen = [*listen, f"vsock:{port}"]
            settings = {"allow_cid": "1", **settings}
        self.settings = settings
        self.listen = listen
        self.process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "arcbox_agent.agent"]
        for listen in (f"unix:{self.socket_path}", *self.listen):
            command += ["--listen", listen]
        command += ["--state-dir", str(self.state_dir), "--run-dir", str(self.run_dir)]
        for name, value in self.settings.items():
            for one in [value] if isinstance(value, str) else value:
                command.append(f"--{name.replace('_', '-')}={one}")
        path = os.pathsep.join(filter(None, [str(REPOSITORY / "src"), os.environ.get("PYTHONPATH")]))
        with open(self.log_path, "ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={**os.environ, "PYTHONPATH": path},
            )

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            if self.process.poll() is not None:
                pytest.fail(f"the agent ended with {self.process.returncode}:\n{self.log()}")
            try:
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.settimeout(PATIENCE)
                    connection.connect(str(self.socket_path))
                    connection.sendall(PING)
                    if connection.recv(1):
                        return
            except OSError:
                pass
            if time.monotonic() > deadline:
                pytest.fail(f"the agent does not answer:\n{self.log()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """SIGTERM, and the clean exit that must follow."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"the agent did not stop:\n{self.log()}")
        assert code == 0, f"the agent ended with {code}:\n{self.log()}"

    def kill(self) -> None:
        """SIGKILL: the agent gets no chance to do anything more."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def restart(self) -> None:
        """Start it again, with the state it has, after `stop` or `kill`."""
        assert self.process.poll() is not None, "stop or kill it first"
        self.process = self._spawn()
        self.wait_until_it_answers()


#: The fixture `start_agent`.
StartAgent = Callable[..., RunningAgent]


@pytest.fixture
def start_agent() -> Iterator[StartAgent]:
    """`start_agent(listen=[...], NAME=VALUE, ...)`: settings as in docs/configuration.md.

    Containers are stopped with the agent, unless the test says `containers_at_exit="leave"`.
    """
    running: list[RunningAgent] = []
    directories: list[str] = []

    def start(*, listen: list[str] | None = None, **settings: str | list[str]) -> RunningAgent:
        # Not tmp_path: that is often longer than a socket's path can be.
        directory = tempfile.mkdtemp(prefix="arcbox-")
        directories.append(directory)
        agent = RunningAgent(Path(directory), {"containers_at_exit": "stop", **settings}, listen or [])
        running.append(agent)
        agent.wait_until_it_answers()
        return agent

    try:
        yield start
        for agent in running:
            # One that the test has ended by itself is the test's own affair.
            if agent.process.poll() is None:
                agent.stop()
    finally:
        for agent in running:
            if agent.process.poll() is None:
                agent.kill()
        for directory in directories:
            shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def agent(start_agent: StartAgent) -> Iterator[RunningAgent]:
    agent = start_agent()
    yield agent
    if agent.process.poll() is None:
        agent.stop()
    assert agent.process.returncode == 0, f"the agent ended with {agent.process.returncode}:\n{agent.log()}"


class RunAsync(Protocol):
    """The fixture `run_async`."""

    def __call__(self, coroutine: Coroutine[Any, Any, T]) -> T: ...


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


_LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": _uvloop,
}


@pytest.fixture(params=sorted(_LOOPS))
def run_async(request: pytest.FixtureRequest) -> RunAsync:
    """`run_async(coroutine)`: its result.

    Fails on what the loop would only have logged (an exception in a callback, one
    that was never retrieved), and on what hangs.
    """

    def run(coroutine: Coroutine[Any, Any, T]) -> T:
        unhandled: list[dict[str, Any]] = []

        async def bounded() -> T:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
            async with asyncio.timeout(PATIENCE):
                return await coroutine

        with asyncio.Runner(loop_factory=_LOOPS[request.param]) as runner:
            result = runner.run(bounded())
        assert unhandled == []
        return result

    return run

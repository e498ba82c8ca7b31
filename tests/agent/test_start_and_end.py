"""How the agent starts, refuses to, and ends."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent.agent.agent import Agent
from arcbox_agent.agent.config.directories import prepare
from arcbox_agent.agent.config.table import Settings
from arcbox_agent.agent.handlers.power import Power
from arcbox_agent.errors import AgentFailedError
from arcbox_agent.wire import (
    CreateContainerRequest,
    Error,
    ExecOutput,
    ExecRequest,
    PingRequest,
    PingResponse,
    ShutdownRequest,
    ShutdownResponse,
    StartContainerRequest,
    WaitContainerRequest,
)
from tests.agent.peer import Peer, eventually
from tests.agent.test_listeners import directories, run_agent
from tests.conftest import PATIENCE, REPOSITORY, RunningAgent, StartAgent

PONG = PingResponse(message="pong", version="0.1.0")


def test_version_help_and_check_config_start_nothing(tmp_path: Path) -> None:
    version = run_agent("--version")
    assert (version.returncode, version.stdout, version.stderr) == (0, "arcbox-agent 0.1.0\n", "")
    help = run_agent("--help")
    assert (help.returncode, help.stderr) == (0, "")
    assert "--state-dir DIR" in help.stdout
    check = run_agent("--check-config", "--listen", f"unix:{tmp_path}/a.sock", *directories(tmp_path))
    assert (check.returncode, check.stderr) == (0, "")
    assert f'state_dir = "{tmp_path}/state"\n' in check.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lsten=unix:/a"], "arcbox-agent: unknown argument '--lsten=unix:/a': see --help\n"),
        (["serve"], "arcbox-agent: unknown argument 'serve': see --help\n"),
        (["--state-dir"], "arcbox-agent: --state-dir needs a value\n"),
        (["--max-connections=0"], "arcbox-agent: max_connections: '0' is below the minimum of 1\n"),
        (["--config=/no/such"], "arcbox-agent: config: cannot read /no/such: No such file or directory\n"),
    ],
)
def test_a_wrong_setting_ends_with_2_and_names_it(arguments: list[str], message: str) -> None:
    ended = run_agent(*arguments)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", message)


def test_an_agent_that_nobody_could_reach_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f"listen = []\nstate_dir = '{tmp_path}/s'\nrun_dir = '{tmp_path}/r'\n")
    ended = run_agent("--config", str(tmp_path / "config.toml"))
    assert (ended.returncode, "listen: names no address" in ended.stderr) == (2, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_and_leaves_no_socket(start_agent: StartAgent, number: signal.Signals) -> None:
    agent = start_agent()
    agent.process.send_signal(number)
    assert agent.process.wait(PATIENCE) == 0
    assert not agent.socket_path.exists()
    assert f"signal received signal={number.name}" in agent.log()


def test_sighup_changes_nothing(agent: RunningAgent) -> None:
    agent.process.send_signal(signal.SIGHUP)
    eventually(lambda: "SIGHUP ignored" in agent.log(), "the signal is logged")
    with Peer(agent.socket_path) as peer:
        assert peer.ask(PingRequest()) == PONG


def test_a_call_that_runs_is_finished_before_the_end(start_agent: StartAgent) -> None:
    agent = start_agent()
    with Peer(agent.socket_path) as peer, Peer(agent.socket_path) as idle:
        marker = agent.directory / "began"
        peer.send(ExecRequest(cmd=["sh", "-c", f"touch {marker}; sleep 0.5; echo done"]), PingRequest())
        eventually(marker.exists, "the command runs")
        agent.process.terminate()
        # Who asks for nothing is sent away at once.
        assert idle.bytes_until_closed() == b""
        assert peer.reply() == ExecOutput(stream="stdout", data=b"done\n", done=True)
        assert peer.reply() == PONG
        assert peer.is_closed_by_the_agent()
    assert agent.process.wait(PATIENCE) == 0


def test_a_call_that_takes_longer_than_the_deadline_is_told(start_agent: StartAgent) -> None:
    agent = start_agent(shutdown_timeout="0.2")
    with Peer(agent.socket_path) as peer:
        marker = agent.directory / "began"
        peer.send(ExecRequest(cmd=["sh", "-c", f"touch {marker}; sleep 1000"]))
        eventually(marker.exists, "the command runs")
        agent.process.terminate()
        assert peer.reply() == Error(code=500, message="the agent is stopping")
        assert peer.is_closed_by_the_agent()
    assert agent.process.wait(PATIENCE) == 0


def test_a_wait_whose_turn_comes_while_the_agent_ends_does_not_hold_it_up(start_agent: StartAgent) -> None:
    agent = start_agent(shutdown_timeout="3000")
    with Peer(agent.socket_path) as peer:
        peer.ask(CreateContainerRequest(name="lasting", cmd=["sleep", "1000"]))
        peer.ask(StartContainerRequest(id="lasting"))
        marker, go = agent.directory / "began", agent.directory / "go"
        peer.send(
            ExecRequest(cmd=["sh", "-c", f"touch {marker}; until test -e {go}; do sleep 0.02; done"]),
            WaitContainerRequest(id="lasting"),
        )
        eventually(marker.exists, "the command runs")
        agent.process.terminate()
        eventually(lambda: not agent.socket_path.exists(), "it has begun to end")
        go.touch()
        assert peer.reply() == ExecOutput(stream="stdout", done=True)
        assert peer.reply() == Error(code=500, message="the agent is stopping")
    assert agent.process.wait(PATIENCE) == 0


def test_a_machine_that_is_ending_another_way_is_not_said_to_do_it_this_way(tmp_path: Path) -> None:
    async def main() -> None:
        agent = Agent(Settings(state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run"), init=True))
        call: Any = None  # the handler needs nothing of it
        power = Power(agent.settings, agent.request_stop)
        for reboot in (False, False):
            assert power.shutdown(ShutdownRequest(reboot=reboot), call) == ShutdownResponse(accepted=True)
        with pytest.raises(AgentFailedError, match="failed to reboot: the agent is ending already, with poweroff"):
            power.shutdown(ShutdownRequest(reboot=True), call)
        assert agent.action == "poweroff"
        await agent.stop(0)

    asyncio.run(main())


def test_nobody_is_accepted_while_it_ends(start_agent: StartAgent) -> None:
    agent = start_agent(shutdown_timeout="30")
    with Peer(agent.socket_path) as peer:
        marker, go = agent.directory / "began", agent.directory / "go"
        peer.send(ExecRequest(cmd=["sh", "-c", f"touch {marker}; until test -e {go}; do sleep 0.02; done"]))
        eventually(marker.exists, "the command runs")
        agent.process.terminate()
        eventually(lambda: not agent.socket_path.exists(), "the listener is closed")
        with pytest.raises(OSError):
            Peer(agent.socket_path)
        go.touch()
        assert peer.reply() == ExecOutput(stream="stdout", done=True)
    assert agent.process.wait(PATIENCE) == 0


def test_a_second_signal_ends_it_at_once(start_agent: StartAgent) -> None:
    agent = start_agent(shutdown_timeout="3000")
    with Peer(agent.socket_path) as peer:
        marker = agent.directory / "began"
        peer.send(ExecRequest(cmd=["sh", "-c", f"touch {marker}; exec sleep 30"]))
        eventually(marker.exists, "the command runs")
        agent.process.terminate()
        eventually(lambda: "stopping action=exit" in agent.log(), "it began to stop")
        agent.process.terminate()
        assert agent.process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_two_agents_never_share_a_state_directory(agent: RunningAgent) -> None:
    other = run_agent(
        "--listen",
        f"unix:{agent.directory}/other.sock",
        "--state-dir",
        str(agent.state_dir),
        "--run-dir",
        str(agent.directory / "run2"),
    )
    assert other.returncode == 2
    assert "is in use by another agent: stop it, or name another directory (--state-dir DIR)" in other.stderr
    assert not (agent.directory / "other.sock").exists()


def test_two_agents_never_share_a_run_directory(agent: RunningAgent) -> None:
    """The second would sweep what the containers of the first need, and take its keeper."""
    other = run_agent(
        "--listen",
        f"unix:{agent.directory}/other.sock",
        "--state-dir",
        str(agent.directory / "state2"),
        "--run-dir",
        str(agent.run_dir),
    )
    assert other.returncode == 2
    assert "is in use by another agent: stop it, or name another directory (--run-dir DIR)" in other.stderr
    assert not (agent.directory / "other.sock").exists()


def test_its_directories_are_for_itself_alone(start_agent: StartAgent, tmp_path: Path) -> None:
    agent = start_agent()
    for path in (agent.state_dir, agent.run_dir):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    agent.stop()
    agent.state_dir.chmod(0o755)
    agent.restart()
    assert stat.S_IMODE(agent.state_dir.stat().st_mode) == 0o700


def test_a_state_directory_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = run_agent(
        "--listen",
        f"unix:{tmp_path}/a.sock",
        "--run-dir",
        str(tmp_path / "run"),
        "--state-dir",
        str(tmp_path / "file" / "state"),
    )
    assert ended.returncode == 2
    assert "a part of the path is no directory: move it away" in ended.stderr
    assert "--state-dir DIR" in ended.stderr


def test_what_an_agent_of_the_same_number_left_when_it_was_killed_is_no_obstacle(tmp_path: Path) -> None:
    settings = Settings(state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run"))
    for path in (tmp_path / "state", tmp_path / "run"):
        path.mkdir()
        (path / f".probe.{os.getpid()}").touch()
    for lock in prepare(settings):
        os.close(lock)
    assert list((tmp_path / "state").iterdir()) == list((tmp_path / "run").iterdir()) == []


# ------------------------------------------------------------- the machine's end


def test_a_mount_point_that_is_not_utf_8_is_one_like_any_other(tmp_path: Path) -> None:
    target = os.fsdecode(bytes(tmp_path) + b"/\xff")
    os.mkdir(target)
    script = (
        "import sys; from arcbox_agent import _guest; _guest.mount('none', sys.argv[1], 'tmpfs', 0, ''); "
        "print(ascii([line.split()[1] for line in open('/proc/self/mounts', errors='surrogateescape')]))"
    )
    mounted = subprocess.run(
        ["unshare", "-m", "--propagation", "private", sys.executable, "-c", script, target],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (mounted.returncode, mounted.stderr) == (0, "")
    assert ascii(target) in mounted.stdout


def test_the_machine_ends_though_no_descriptor_is_left_to_see_what_is_mounted() -> None:
    # The three that are open already are all there may be.
    script = (
        "import resource; from arcbox_agent.agent.guest import power; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); power._make_read_only()"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0
    assert "cannot remount read-only" in ended.stderr


def test_the_machine_ends_though_a_disk_hangs() -> None:
    # The reading end of a pipe that nobody writes into stands for the disk.
    script = (
        "import os; from arcbox_agent.agent.guest import power; power._within(0.1, lambda: os.read(os.pipe()[0], 1))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0
    assert "a disk does not answer: the machine ends without it" in ended.stderr


# ------------------------------------------------------------- service manager


class Manager:
    """A service manager's notification socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(PATIENCE)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def message(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().splitlines())


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told_of_start_and_end(tmp_path: Path, abstract: bool) -> None:
    address = f"@arcbox-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    manager = Manager(address)
    process = subprocess.Popen(
        [sys.executable, "-m", "arcbox_agent.agent", "--listen", f"unix:{tmp_path}/a.sock", *directories(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"},
        stderr=subprocess.DEVNULL,
    )
    try:
        assert manager.message() == {
            "READY": "1",
            "STATUS": f"listening on unix:{tmp_path}/a.sock",
            "MAINPID": str(process.pid),
        }
        # It is there as soon as it says so.
        with Peer(tmp_path / "a.sock") as peer:
            assert peer.ask(PingRequest()) == PONG
        assert manager.message() == {"WATCHDOG": "1"}
        assert manager.message() == {"WATCHDOG": "1"}
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0
    while (message := manager.message()) == {"WATCHDOG": "1"}:
        pass
    assert message == {"STOPPING": "1", "STATUS": "stopping"}
    manager.socket.close()


# ------------------------------------------------------------------- the process


def oom_score_adj_after_asking_for(value: str) -> str:
    """What a process has that asks for it: root without CAP_SYS_RESOURCE may not lower it."""
    program = f"echo {value} > /proc/self/oom_score_adj; cat /proc/self/oom_score_adj"
    return subprocess.run(["sh", "-c", program], capture_output=True, text=True, timeout=PATIENCE).stdout


def test_its_descriptor_limit_is_raised_and_its_oom_score_lowered(start_agent: StartAgent) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        agent = start_agent()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE)[0] >= hard
    assert Path(f"/proc/{agent.process.pid}/oom_score_adj").read_text() == oom_score_adj_after_asking_for("-900")
    with Peer(agent.socket_path) as peer:
        # What it starts gets both back.
        reply = peer.ask(ExecRequest(cmd=["sh", "-c", "ulimit -Sn; cat /proc/self/oom_score_adj"]))
    assert reply == ExecOutput(stream="stdout", data=b"1024\n0\n", done=True)


def test_it_imports_nothing_that_it_can_start_without(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.argv[1:] = ['--version']\n"
        "from arcbox_agent.agent.__main__ import main\n"
        "main()\n"
        "heavy = {'ssl', '_ssl', 'subprocess', 'inspect', 'argparse', 'dataclasses', 'psutil', 'click', 'tomllib',\n"
        "         'arcbox_agent.client', 'arcbox_agent.cli', 'multiprocessing', 'typing', 'json', 'zlib', 'shutil',\n"
        "         're', 'traceback', 'linecache', 'tokenize', 'textwrap', 'encodings.ascii'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "import inspect, logging, ssl, subprocess, typing\n"
        "print(inspect.signature(main), ssl.SSLContext.__name__, subprocess.run.__name__, logging.Logger.__name__,\n"
        "      typing.Optional[int])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
    )
    assert ended.stderr == ""
    # The real modules are there for whoever asks for them later.
    assert ended.stdout == "arcbox-agent 0.1.0\n[]\n() -> 'int' SSLContext run Logger typing.Optional[int]\n"

"""Where the agent listens, whom it lets in, and what each listener allows."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent.wire import (
    AgentInfo,
    AgentInfoRequest,
    CreateContainerRequest,
    Error,
    ExecRequest,
    PingRequest,
    PingResponse,
    ShutdownRequest,
)
from tests.agent.peer import Peer, eventually, only_peer
from tests.conftest import PATIENCE, REPOSITORY, StartAgent

PONG = PingResponse(message="pong", version="0.1.0")


def run_agent(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "arcbox_agent.agent", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
        **options,
    )


def directories(path: Path) -> list[str]:
    return ["--state-dir", str(path / "state"), "--run-dir", str(path / "run")]


# ------------------------------------------------------------------ unix sockets


def test_a_unix_socket_is_for_its_owner_alone_and_its_new_directories_too(
    start_agent: StartAgent, tmp_path: Path
) -> None:
    path = tmp_path / "a" / "b" / "agent.sock"
    agent = start_agent(listen=[f"unix:{path}"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700
    with Peer(path) as peer:
        assert peer.ask(PingRequest()) == PONG
    agent.stop()
    assert not path.exists()


def test_a_stale_socket_is_replaced(start_agent: StartAgent, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    start_agent(listen=[f"unix:{path}"])
    with Peer(path) as peer:
        assert peer.ask(PingRequest()) == PONG


def test_a_socket_on_which_somebody_answers_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        ended = run_agent("--listen", f"unix:{path}", *directories(tmp_path))
        assert ended.returncode == 2
        assert "somebody answers there: is another agent running?" in ended.stderr
        other.accept()[0].close()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    path.write_text("mine")
    ended = run_agent("--listen", f"unix:{path}", *directories(tmp_path))
    assert ended.returncode == 2
    assert "there is a file that is no socket: move it away" in ended.stderr
    assert path.read_text() == "mine"


def test_a_socket_that_somebody_else_has_put_in_place_is_not_removed(start_agent: StartAgent, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    agent = start_agent(listen=[f"unix:{path}"])
    path.unlink()
    path.write_text("mine")
    agent.stop()
    assert path.read_text() == "mine"


# --------------------------------------------------------------------- who may talk


def as_user(uid: int, path: Path) -> subprocess.CompletedProcess[bytes]:
    """Send a ping as another user; what came back is its output."""
    # It changes its user by itself: the interpreter may be where that user cannot look.
    program = (
        "import os, socket, sys\n"
        "uid = int(sys.argv[1])\n"
        "os.setgroups([]); os.setgid(uid); os.setuid(uid)\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[2])\n"
        "try:\n s.sendall(bytes.fromhex('0000000400000001')); sys.stdout.buffer.write(s.recv(99))\n"
        "except OSError: pass\n"
    )
    return subprocess.run(
        [sys.executable, "-ISE", "-c", program, str(uid), str(path)], capture_output=True, timeout=PATIENCE
    )


def open_to_all(path: Path) -> None:
    """File modes out of the way: what is tested is the agent's own check."""
    path.chmod(0o666)
    for parent in (path.parent, *path.parent.parents):
        if str(parent) != "/" and str(parent) != "/tmp":
            parent.chmod(parent.stat().st_mode | 0o011)


def test_a_peer_of_another_user_is_refused_and_logged_once_a_minute(start_agent: StartAgent) -> None:
    agent = start_agent()
    open_to_all(agent.socket_path)
    for _ in range(5):
        refused = as_user(12345, agent.socket_path)
        assert (refused.stdout, refused.stderr) == (b"", b"")
    with Peer(agent.socket_path) as peer:
        info = peer.ask(AgentInfoRequest())
    assert isinstance(info, AgentInfo)
    assert info.counters["connections_refused_peer"] == 5
    lines = [line for line in agent.log().splitlines() if "peer is not allowed" in line]
    assert len(lines) == 1
    assert 'peer="uid 12345 pid ' in lines[0]
    assert "setting=allow_uid" in lines[0]


def test_a_user_that_is_allowed_may_talk(start_agent: StartAgent) -> None:
    agent = start_agent(allow_uid=["12345", "12346"])
    open_to_all(agent.socket_path)
    assert as_user(12346, agent.socket_path).stdout.hex() == "00000011000010010a04706f6e671205302e312e30"


# -------------------------------------------------------------- what they may do

CREATE = CreateContainerRequest(cmd=["true"], id="never-made")
EXEC = ExecRequest(cmd=["true"])


@pytest.mark.parametrize(
    ("mode", "create", "execute"),
    [
        (
            "read-only",
            "this listener does not allow changing anything: its mode refuses CreateContainerRequest",
            "this listener does not allow running commands: its mode refuses ExecRequest",
        ),
        ("no-exec", None, "this listener does not allow running commands: its mode refuses ExecRequest"),
    ],
)
def test_what_the_mode_of_a_listener_refuses_gets_403(
    start_agent: StartAgent, tmp_path: Path, mode: str, create: str | None, execute: str
) -> None:
    path = tmp_path / "scoped.sock"
    start_agent(listen=[f"unix:{path}?mode={mode}"])
    with Peer(path) as peer:
        assert peer.ask(EXEC) == Error(code=403, message=execute)
        reply = peer.ask(CREATE)
        if create is None:
            assert not (isinstance(reply, Error) and reply.code == 403)
        else:
            assert reply == Error(code=403, message=create)
        # Reading is allowed in every mode, and the connection lives.
        assert peer.ask(PingRequest()) == PONG
        info = peer.ask(AgentInfoRequest())
    assert isinstance(info, AgentInfo)
    assert [(each.address, each.mode, each.connections) for each in info.listeners][1] == (f"unix:{path}", mode, 1)


def test_a_read_only_listener_shuts_no_machine_down(start_agent: StartAgent, tmp_path: Path) -> None:
    path = tmp_path / "scoped.sock"
    agent = start_agent(listen=[f"unix:{path}?mode=read-only"])
    with Peer(path) as peer:
        reply = peer.ask(ShutdownRequest())
    assert isinstance(reply, Error)
    assert reply.code == 403
    assert agent.process.poll() is None


def test_every_route_needs_an_access_that_full_mode_grants() -> None:
    from arcbox_agent.agent.config.access import MODES, NEEDS, Access

    assert MODES["full"] == set(Access)
    assert set(NEEDS) == set(Access)


# ------------------------------------------------------------- the bound on them


def test_one_connection_more_than_the_bound_gets_429_in_its_own_version(start_agent: StartAgent) -> None:
    agent = start_agent(max_connections="3")
    text = "the agent's bound of 3 connections is reached (max_connections)"
    peers = [only_peer(agent), Peer(agent.socket_path), Peer(agent.socket_path)]
    for peer in peers:
        assert peer.ask(PingRequest()) == PONG
    for version, trace_id in ((1, None), (2, "t")):
        with Peer(agent.socket_path, version=version) as refused:
            refused.send(PingRequest(), trace_id=trace_id)
            frame = refused.frame()
            assert (frame.type, frame.trace_id) == (0xFFFF, trace_id)
            assert frame.payload == bytes.fromhex("000001ad") + len(text).to_bytes(4, "big") + text.encode()
            assert refused.is_closed_by_the_agent()
    peers.pop().close()

    def admitted() -> bool:
        with Peer(agent.socket_path) as peer:
            return peer.ask(PingRequest()) == PONG

    eventually(admitted, "a place is free again")
    for peer in peers:
        assert peer.ask(PingRequest()) == PONG
        peer.close()


def test_far_more_connections_than_the_bound_cost_nothing_and_are_told(start_agent: StartAgent) -> None:
    agent = start_agent(max_connections="3")
    with ExitStack() as open_peers:
        peers = [open_peers.enter_context(only_peer(agent))]
        peers += [open_peers.enter_context(Peer(agent.socket_path)) for _ in range(299)]
        # The first three are in; the last, far over the bound, are told without being asked.
        assert peers[0].ask(PingRequest()) == PONG
        try:
            peers[-1].send(PingRequest())
        except BrokenPipeError:
            pass  # told and closed already
        refused = peers[-1].reply()
        assert refused == Error(code=429, message="the agent's bound of 3 connections is reached (max_connections)")


# ------------------------------------------------------------ sockets from systemd


@pytest.mark.parametrize("mode", ["", "?mode=read-only"])
def test_the_agent_serves_a_socket_that_systemd_opened(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "activated.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        # As systemd does it: from descriptor 3 on, for the process of LISTEN_PID.
        program = (
            "import os, sys\n"
            "os.dup2(int(sys.argv[1]), 3)\n"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='api')\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'arcbox_agent.agent', *sys.argv[2:]])\n"
        )
        arguments = directories(tmp_path) + (["--listen", f"systemd:api{mode}"] if mode else [])
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(listening.fileno()), *arguments],
            pass_fds=[listening.fileno()],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
        )
    try:
        with Peer(path) as peer:
            assert peer.ask(PingRequest()) == PONG
            info = peer.ask(AgentInfoRequest())
            assert isinstance(info, AgentInfo)
            assert [(each.address, each.mode) for each in info.listeners] == [
                (f"unix:{path}", mode.removeprefix("?mode=") or "full")
            ]
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    # It was not ours to make, and is not ours to remove.
    assert path.exists()


def test_a_socket_that_systemd_did_not_pass_is_an_error_that_names_it(tmp_path: Path) -> None:
    ended = run_agent("--listen", "systemd:api", *directories(tmp_path))
    assert ended.returncode == 2
    assert "systemd:api: systemd passed no such socket" in ended.stderr


@pytest.mark.parametrize("count", ["", "-1", "one", "\u00b2", "1" * 30])
def test_a_count_of_sockets_that_is_no_number_ends_the_start_with_its_name(tmp_path: Path, count: str) -> None:
    program = (
        "import os, sys\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=sys.argv[1])\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'arcbox_agent.agent', *sys.argv[2:]])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, count, *directories(tmp_path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
    )
    assert ended.returncode == 2
    assert f"LISTEN_FDS={count!r} from systemd is no number of descriptors" in ended.stderr


# ------------------------------------------------------------------------- vsock


def test_a_vsock_port_is_opened_on_every_cid(start_agent: StartAgent) -> None:
    agent = start_agent(listen=["vsock:10241"])
    with Peer(agent.socket_path) as peer:
        info = peer.ask(AgentInfoRequest())
    assert isinstance(info, AgentInfo)
    assert [each.address for each in info.listeners] == [f"unix:{agent.socket_path}", "vsock:10241"]
    ended = run_agent("--listen", "vsock:10241", *directories(agent.directory / "other"))
    assert ended.returncode == 2
    assert "vsock:10241: Address already in use" in ended.stderr

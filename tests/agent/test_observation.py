"""What the agent tells of the guest, and of itself."""

from __future__ import annotations

import ipaddress
import os
import platform
import re
import socket
import stat
from pathlib import Path

import psutil
import pytest

from arcbox_agent.agent.containers import journal
from arcbox_agent.agent.handlers.system import _unquote
from arcbox_agent.agent.metrics import COUNTERS
from arcbox_agent.agent.processes import small_file
from arcbox_agent.agent.serving.metrics_endpoint import MAX_SCRAPERS
from arcbox_agent.wire import AgentInfo, AgentInfoRequest, GetSystemInfoRequest, PingRequest, SystemInfo
from tests.agent.peer import Peer, eventually
from tests.conftest import REPOSITORY, RunningAgent, StartAgent

# -------------------------------------------------------------------- the guest


def test_every_field_of_system_info_is_true(agent: RunningAgent) -> None:
    with Peer(agent.socket_path) as peer:
        info = peer.ask(GetSystemInfoRequest())
    assert isinstance(info, SystemInfo)
    assert info.kernel_version == Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert info.arch == platform.machine()
    assert info.hostname == socket.gethostname()
    os_release = platform.freedesktop_os_release()
    assert info.os_name == os_release["NAME"]
    assert info.os_version == os_release.get("VERSION_ID", "")
    memory = psutil.virtual_memory()
    assert info.total_memory == memory.total
    # These go on changing; a wrong unit or field would be off by far more.
    assert abs(info.available_memory - memory.available) < memory.total // 10
    assert info.cpu_count == psutil.cpu_count()
    assert len(info.load_average) == 3
    assert all(abs(a - b) < 10 for a, b in zip(info.load_average, psutil.getloadavg(), strict=True))
    assert 0 <= float(Path("/proc/uptime").read_text().split()[0]) - info.uptime < 60


def test_the_addresses_are_those_under_which_others_reach_the_guest(agent: RunningAgent) -> None:
    expected = set()
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family in (socket.AF_INET, socket.AF_INET6):
                parsed = ipaddress.ip_address(address.address.partition("%")[0])
                if not parsed.is_loopback and not parsed.is_link_local:
                    expected.add(str(parsed))
    with Peer(agent.socket_path) as peer:
        info = peer.ask(GetSystemInfoRequest())
    assert isinstance(info, SystemInfo)
    assert sorted(info.ip_addresses) == sorted(expected)
    versions = [ipaddress.ip_address(address).version for address in info.ip_addresses]
    assert versions == sorted(versions)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("debian", "debian"),
        ('"Debian GNU/Linux"', "Debian GNU/Linux"),
        ("'a \"b\"'", 'a "b"'),
        (r'"a \"b\" \$c \\ \d"', r'a "b" $c \ \d'),
        ('"', '"'),
        ("", ""),
    ],
)
def test_values_of_os_release_are_read_as_a_shell_would(written: str, value: str) -> None:
    assert _unquote(written) == value


# -------------------------------------------------------------------- the agent


def test_agent_info_tells_of_itself(start_agent: StartAgent) -> None:
    agent = start_agent(max_connections="77", frame_timeout="2.5")
    with Peer(agent.socket_path) as peer:
        for _ in range(3):
            peer.ask(PingRequest())
        eventually(lambda: peer.ask(AgentInfoRequest()).connections == 1, "nobody else is connected")  # type: ignore[attr-defined]
        info = peer.ask(AgentInfoRequest())
    assert isinstance(info, AgentInfo)
    assert (info.version, info.pid, info.state_dir, info.runtime) == (
        "0.1.0",
        agent.process.pid,
        str(agent.state_dir),
        "process",
    )
    assert [(each.address, each.connections, each.mode) for each in info.listeners] == [
        (f"unix:{agent.socket_path}", 1, "full")
    ]
    assert (info.connections, info.queued_bytes, info.log_lag_bytes) == (1, 0, 0)
    assert (info.limits["max_connections"], info.limits["frame_timeout_ms"]) == (77, 2500)
    assert set(COUNTERS) <= set(info.counters)
    assert info.counters["requests"] >= 5
    assert info.counters["connections_accepted"] >= 2
    assert info.uptime_ms > 0
    assert {"ping", "get_system_info", "agent_info"} <= set(info.features)


# ------------------------------------------------------------------- prometheus


def scrape(path: Path, request: bytes) -> tuple[str, str]:
    """(head, body) of the reply."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        connection.sendall(request)
        reply = b""
        while data := connection.recv(1 << 16):
            reply += data
    head, _, body = reply.decode().partition("\r\n\r\n")
    return head, body


def test_prometheus_reads_the_counters_and_gauges(start_agent: StartAgent, tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    agent = start_agent(metrics_listen=f"unix:{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Peer(agent.socket_path) as peer:
        for _ in range(7):
            peer.ask(PingRequest())
        head, body = scrape(path, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert head.splitlines()[0] == "HTTP/1.0 200 OK"
    assert "Content-Type: text/plain; version=0.0.4; charset=utf-8" in head
    assert f"Content-Length: {len(body)}" in head
    lines = body.splitlines()
    assert "# TYPE arcbox_agent_requests_total counter" in lines
    values = {name: float(value) for name, value in (line.split(" ") for line in lines if line[0] != "#")}
    assert values["arcbox_agent_requests_total"] >= 8
    assert values["arcbox_agent_connections"] >= 1
    assert values["arcbox_agent_uptime_seconds"] > 0
    for name in values:
        assert f"# TYPE {name} " in body
        assert f"# HELP {name} " in body, f"say what {name} counts"


def test_the_page_of_operations_names_metrics_that_exist(start_agent: StartAgent, tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    start_agent(metrics_listen=f"unix:{path}")
    _, body = scrape(path, b"GET /metrics HTTP/1.0\r\n\r\n")
    exist = set(re.findall(r"^arcbox_agent_(\w+?)(?:_total)? ", body, re.MULTILINE))
    page = (REPOSITORY / "docs" / "operations.md").read_text()
    table = page.partition("| metric | means |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", table)) - {"max_connections", "LimitNOFILE"}
    assert "accept_errors" in named
    assert named <= exist | {name.removesuffix("_total") for name in exist}


def test_every_counter_is_declared_with_what_it_counts() -> None:
    # Those of the events of containers stand in a table.
    used = set(journal.COUNTERS.values())
    for path in (REPOSITORY / "src" / "arcbox_agent" / "agent").rglob("*.py"):
        used |= set(re.findall(r'(?:metrics\.add\(|counters\[|_count\()"(\w+)"', path.read_text()))
    assert used <= set(COUNTERS)
    assert set(COUNTERS) <= used, "declared and never counted"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", "HTTP/1.0 404 Not Found"),
        (b"POST /metrics HTTP/1.0\r\n\r\n", "HTTP/1.0 405 Method Not Allowed"),
        (b"\r\n\r\n", "HTTP/1.0 405 Method Not Allowed"),
        (b"GET /metrics?x=1 HTTP/1.0\n\n", "HTTP/1.0 200 OK"),
        (b"GET /metrics HTTP/1.0\r\nX: " + b"x" * 9000, "HTTP/1.0 431 Request Header Fields Too Large"),
    ],
)
def test_other_requests_to_the_metrics_socket(
    start_agent: StartAgent, tmp_path: Path, request_bytes: bytes, status: str
) -> None:
    path = tmp_path / "metrics.sock"
    start_agent(metrics_listen=f"unix:{path}")
    head, _ = scrape(path, request_bytes)
    assert head.splitlines()[0] == status


def test_scrapers_that_are_too_many_are_told_of_once_a_minute(start_agent: StartAgent, tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    agent = start_agent(metrics_listen=f"unix:{path}")
    hanging = [socket.socket(socket.AF_UNIX) for _ in range(MAX_SCRAPERS + 5)]
    for each in hanging:
        each.settimeout(60)
        each.connect(str(path))
    for each in hanging[MAX_SCRAPERS:]:
        assert each.recv(1) == b""
    assert agent.log().count("scraper refused: too many") == 1
    for each in hanging:
        each.close()


def test_the_metrics_socket_leaves_nothing_behind(start_agent: StartAgent, tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    agent = start_agent(metrics_listen=f"unix:{path}")
    hanging = socket.socket(socket.AF_UNIX)
    hanging.connect(str(path))
    agent.stop()
    assert not os.path.exists(path)
    hanging.close()


@pytest.mark.parametrize("kind", ["fifo", "device", "directory"])
def test_what_is_no_regular_file_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "os-release"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="not a regular file"):
        small_file.read(str(path), 10)
    assert len(os.listdir("/proc/self/fd")) == before


def test_of_a_large_file_the_beginning_is_read(tmp_path: Path) -> None:
    path = tmp_path / "os-release"
    path.write_bytes(b"NAME=x" * 10_000)
    assert small_file.read(str(path), 6) == b"NAME=x"

"""The clock in pings, by an agent that does not set this machine's."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arcbox_agent.agent import clock
from arcbox_agent.errors import BadRequestError
from arcbox_agent.wire import Error, PingRequest, PingResponse
from tests.agent.peer import Peer
from tests.conftest import StartAgent

SECOND = 1_000_000_000


def ask(peer: Peer, **fields: int | bool) -> PingResponse:
    reply = peer.ask(PingRequest(**fields))  # type: ignore[arg-type]
    assert isinstance(reply, PingResponse), reply
    return reply


def test_a_timed_ping_tells_the_clocks_the_long_way_too(start_agent: StartAgent) -> None:
    with Peer(start_agent(set_clock="no").socket_path) as peer:
        for long_way in ({}, {"detail": True}):
            before = time.time_ns(), time.monotonic_ns()
            reply = ask(peer, timed=True, **long_way)
            after = time.time_ns(), time.monotonic_ns()
            assert before[0] <= reply.time_ns <= after[0]
            assert before[1] <= reply.monotonic_ns <= after[1]
            assert (reply.clock, reply.behind_ns) == ("", 0)
        assert ask(peer, detail=True).time_ns == 0


def test_whoever_may_not_set_the_clock_is_told_so_and_how_far_it_is_off(start_agent: StartAgent) -> None:
    agent = start_agent(set_clock="no")
    with Peer(agent.socket_path) as peer:
        told = ask(peer, timed=True)
        for off in (3 * SECOND, -3 * SECOND, SECOND // 2):
            asked_at = told.time_ns + off, told.monotonic_ns
            reply = ask(peer, timestamp_ns=asked_at[0], monotonic_ns=asked_at[1], slew=True)
            assert reply.clock == "forbidden"
            # However long the request was under way: the agent's own clock measured that.
            assert abs(reply.behind_ns - off) < SECOND // 100
            assert reply.time_ns > told.time_ns


def test_a_read_only_listener_sets_no_clock(start_agent: StartAgent, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("sockets") / "ro.sock"
    start_agent(listen=[f"unix:{path}?mode=read-only"])
    with Peer(path) as peer:
        assert ask(peer, timestamp_ns=time.time_ns() + 3600 * SECOND).clock == "forbidden"


def test_a_clock_that_agrees_is_left_alone(start_agent: StartAgent) -> None:
    with Peer(start_agent().socket_path) as peer:
        told = ask(peer, timed=True)
        for off, least in ((SECOND // 20, 0), (-SECOND // 20, 0), (SECOND // 20, SECOND // 10)):
            reply = ask(peer, timestamp_ns=told.time_ns + off, monotonic_ns=told.monotonic_ns, least_ns=least)
            assert reply.clock == "left"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"timestamp_ns": 1}, "timestamp_ns 1 is no time that a clock can be set to"),
        ({"timestamp_ns": -5}, "timestamp_ns -5 is no time"),
        ({"timestamp_ns": 2**63 - 1}, "is no time that a clock can be set to"),
        ({"timestamp_ns": 1_800_000_000 * SECOND, "monotonic_ns": 2**62}, "was never told by this agent"),
        ({"timestamp_ns": 1_800_000_000 * SECOND, "monotonic_ns": -1}, "monotonic_ns -1 was never told by this agent"),
    ],
)
def test_an_impossible_time_is_refused(start_agent: StartAgent, fields: dict[str, int], text: str) -> None:
    with Peer(start_agent(set_clock="no").socket_path) as peer:
        reply = peer.ask(PingRequest(**fields))  # type: ignore[arg-type]
        assert isinstance(reply, Error)
        assert reply.code == 400
        assert text in reply.message


def test_the_difference_is_the_same_however_long_the_request_takes() -> None:
    now, monotonic = time.time_ns(), time.monotonic_ns()
    time.sleep(0.2)
    assert abs(clock.compare(now + SECOND, monotonic) - SECOND) < SECOND // 50
    assert abs(clock.compare(now + SECOND, 0) - SECOND + SECOND // 5) < SECOND // 10
    with pytest.raises(BadRequestError):
        clock.compare(now, time.monotonic_ns() + SECOND)


def test_a_hypervisors_clock_is_known_by_its_name_and_must_be_a_clock(tmp_path: Path) -> None:
    for name, clock_name in (("ptp0", "some card"), ("ptp1", "KVM virtual PTP")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clock_name").write_text(f"{clock_name}\n")
    assert clock.hypervisor_time(str(tmp_path / "none")) == 0
    assert clock.hypervisor_time(str(tmp_path), str(tmp_path / "none")) == 0
    devices = tmp_path / "dev"
    devices.mkdir()
    (devices / "ptp1").write_text("no clock")
    assert clock.hypervisor_time(str(tmp_path), str(devices)) == 0


#: The clock is set to the middle of the host's second: by so much from a clock so far behind that second's beginning.
#: It is never set here: nobody may.
SECONDS_SENT = """
import os, sys, time
from arcbox_agent.agent import clock
from arcbox_agent.agent.metrics import Metrics
from arcbox_agent.agent.observe.rate import OncePerMinute
os.setuid(65534)
ahead, metrics, late = float(sys.argv[1]), Metrics(), 1.0
while late > 0.01:  # until the call comes when it should
    metrics.counters.clear()
    clock._refused_log = OncePerMinute()
    time.sleep((ahead - time.time()) % 1)
    now = time.time()
    second = round(now - ahead)
    clock.follow_host(second, metrics)
    late = time.time() - second - ahead
print(metrics.counters.get("clock_refused", 0))
"""


@pytest.mark.parametrize(
    ("ahead", "by"),
    [
        (-108000, 108000.5),
        (-2.5, 3),
        (-1.9, 2.4),
        (-0.5, 1),
        (-0.13, 0.63),
        (-0.07, None),
        (0, None),
        (0.5, None),
        (0.97, None),
        (1.47, None),
        (1.53, -1.03),
        (1.9, -1.4),
        (2.5, -2),
        (108000, -107999.5),
    ],
)
def test_whole_seconds_set_a_clock_that_they_prove_wrong(ahead: float, by: float | None) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SECONDS_SENT, str(ahead)], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(ended.stdout) == (by is not None)
    behind = [float(found) for found in re.findall(r"cannot set the clock behind=([-\d.]+)", ended.stderr)]
    assert behind[-1:] == ([] if by is None else [pytest.approx(by, abs=0.02)])


def test_a_kernel_that_refuses_is_told_and_counted() -> None:
    script = (
        "import os; from arcbox_agent.agent.clock import follow_host_exactly as follow; "
        "from arcbox_agent.agent.metrics import Metrics; metrics = Metrics(); os.setuid(65534); "
        "done = [follow(ns, least, slew, metrics).done for ns, least, slew in "
        "((10**11, 0, False), (-10**11, 0, True), (10**8, 0, True), (99_999_999, 0, True), (-10**7, 10**7, False))]; "
        "print(*done, metrics.counters['clock_refused'])"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "refused refused refused left refused 4\n")
    assert ended.stderr.count("cannot set the clock") == 1

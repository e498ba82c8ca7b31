"""sync_time, by guests whose clocks are off by what their agents say."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

import arcbox_agent
from arcbox_agent import wire
from arcbox_agent.client import ClockSync
from arcbox_agent.errors import ClockNotSetError, UnsupportedError
from tests.client.servers import read_request, server
from tests.conftest import RunAsync

SECOND = 1_000_000_000


class Guest:
    """An agent whose clock is `ahead` ns ahead of this machine's; `does`: what it does about it."""

    def __init__(self, ahead: int, does: Callable[[Guest, wire.PingRequest], str], slow: float = 0.0) -> None:
        self.ahead = ahead
        self.does = does
        self.slow = slow
        self.asked: list[wire.PingRequest] = []

    def serve(self, connection: socket.socket) -> None:
        try:
            while True:
                request = read_request(connection)
                ping = wire.PingRequest.decode(request.payload)
                reply = wire.PingResponse(message="pong", version="1", features=["ping"] if ping.detail else [])
                time.sleep(self.slow)
                if ping.timestamp_ns:
                    self.asked.append(ping)
                    reply.clock = self.does(self, ping)
                reply.time_ns, reply.monotonic_ns = time.time_ns() + self.ahead, time.monotonic_ns() + 5
                connection.sendall(wire.encode_message(reply, request.trace.decode()))
        except EOFError:
            pass

    def sync(self, run_async: RunAsync, **options: bool) -> ClockSync:
        async def main(address: str) -> ClockSync:
            async with arcbox_agent.connect(address) as client:
                return await client.sync_time(**options)

        with server(self.serve) as agent:
            return run_async(main(agent.address))


def steps(guest: Guest, ping: wire.PingRequest) -> str:
    # The host's clock at a moment of the agent's monotonic clock, as an agent reckons.
    behind = ping.timestamp_ns + (time.monotonic_ns() + 5 - ping.monotonic_ns) - (time.time_ns() + guest.ahead)
    guest.ahead += behind
    return "step"


@pytest.mark.parametrize("ahead", [3 * SECOND, -3 * SECOND, SECOND // 3, -SECOND // 3])
def test_a_clock_that_is_off_is_set_and_measured_again(run_async: RunAsync, ahead: int) -> None:
    guest = Guest(ahead, steps)
    sync = guest.sync(run_async)
    assert sync.how == "step"
    assert sync.before is not None
    assert sync.after is not None
    assert abs(sync.before - ahead / SECOND) <= 0.02
    assert abs(sync.after) <= 0.01
    assert abs(guest.ahead) < SECOND // 100
    assert (guest.asked[0].slew, guest.asked[0].least_ns) == (False, 5_000_000)


def test_a_clock_that_agrees_is_not_touched(run_async: RunAsync) -> None:
    guest = Guest(1000, steps)
    sync = guest.sync(run_async)
    assert (sync.how, guest.asked) == ("left", [])
    assert sync.before == sync.after


def test_a_difference_that_the_way_explains_is_left(run_async: RunAsync) -> None:
    # The agent's clock is read at the end of 60 ms: it seems to be 30 ms ahead.
    guest = Guest(0, steps, slow=0.06)
    sync = guest.sync(run_async)
    assert (sync.how, guest.asked) == ("left", [])
    assert sync.round_trip >= 0.06


def test_a_slew_is_asked_for_once_and_not_waited_for(run_async: RunAsync) -> None:
    guest = Guest(SECOND // 5, lambda guest, ping: "slew")
    sync = guest.sync(run_async, slew=True)
    assert sync.how == "slew"
    assert sync.after == sync.before
    assert [ping.slew for ping in guest.asked] == [True]


def test_a_clock_that_runs_away_is_set_a_few_times(run_async: RunAsync) -> None:
    guest = Guest(SECOND, lambda guest, ping: "step")
    sync = guest.sync(run_async)
    assert len(guest.asked) == 3
    assert sync.after is not None
    assert 0.9 < sync.after < 1.1


@pytest.mark.parametrize(
    ("reason", "text"), [("forbidden", "its agent may not set it"), ("refused", "the guest's kernel does not let")]
)
def test_an_agent_that_does_not_set_its_clock_is_an_error(run_async: RunAsync, reason: str, text: str) -> None:
    guest = Guest(-2 * SECOND, lambda guest, ping: reason)
    with pytest.raises(ClockNotSetError, match=rf"^the guest's clock is -2\.0\d\d s off: {text}|-1\.9") as caught:
        guest.sync(run_async)
    assert caught.value.reason == reason
    assert -2.1 < caught.value.ahead < -1.9


def test_an_agent_without_a_clock_in_its_pings_is_sent_whole_seconds(run_async: RunAsync) -> None:
    seen = []

    def serve(connection: socket.socket) -> None:
        try:
            while True:
                request = read_request(connection)
                ping = wire.PingRequest.decode(request.payload)
                seen.append(ping.timestamp_secs)
                reply = wire.PingResponse(message="pong", version="1", features=["ping"] if ping.detail else [])
                connection.sendall(wire.encode_message(reply, request.trace.decode()))
        except EOFError:
            pass

    async def main(address: str) -> ClockSync:
        async with arcbox_agent.connect(address) as client:
            return await client.sync_time()

    before = time.time()
    with server(serve) as agent:
        sync = run_async(main(agent.address))
    assert (sync.how, sync.before, sync.after) == ("sent", None, None)
    assert seen[:2] == [0, 0]
    assert before - 1 <= seen[2] <= time.time() + 1


def test_a_strange_agent_is_sent_no_time_that_it_would_pass_over(run_async: RunAsync) -> None:
    def serve(connection: socket.socket) -> None:
        try:
            while True:
                request = read_request(connection)
                connection.sendall(wire.encode_message(wire.PingResponse(message="pong"), request.trace.decode()))
        except EOFError:
            pass

    async def main(address: str) -> None:
        async with arcbox_agent.connect(address) as client:
            with pytest.raises(UnsupportedError, match="PingRequest.timestamp_ns"):
                await client.call(wire.PingRequest(timestamp_ns=1), wire.PingResponse)

    with server(serve) as agent:
        run_async(main(agent.address))

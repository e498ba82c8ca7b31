"""Life in a guest whose PID 1 is the agent: children, clock, faults, memory, disk."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import time
from collections.abc import Awaitable, Callable

import pytest

import arcbox_agent
from arcbox_agent import wire
from arcbox_agent.client import Client, ClockSync
from arcbox_agent.errors import BadRequestError, TransportError
from tests.vm.conftest import with_client
from tests.vm.machine import Machine, agent_command, guest_environment
from tests.vm.packages import REPOSITORY

#: PingRequest("ping") and its answer, in V1, up to the agent's version.
PING = bytes.fromhex("0000000a000000010a0470696e67")
PONG = bytes.fromhex("00000017000010010a0a706f6e673a2070696e671205")


async def shell(client: Client, script: str) -> str:
    """What a shell in the guest prints."""
    return (await client.exec(["/bin/sh", "-ec", script], check=True)).stdout.decode()


# ------------------------------------------------------------------------ children


def test_orphans_are_reaped_and_nobodys_exit_code_is_stolen(guest: Machine) -> None:
    # Each command leaves a grandchild that outlives it for a moment, and ends as an orphan.
    script = "setsid sh -c 'sleep 0.2; exit 7' </dev/null >/dev/null 2>&1 & exit $0"

    async def work(client: Client) -> tuple[list[int], str]:
        results = await asyncio.gather(*(client.exec(["/bin/sh", "-c", script, str(code)]) for code in range(20)))
        while zombies := await shell(client, "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z 1 ' || true"):
            if int(zombies) == 0:
                break
            await asyncio.sleep(0.2)
        return [result.exit_code for result in results], zombies

    codes, _ = with_client(guest, work)
    assert codes == list(range(20))


def test_a_container_whose_processes_are_reparented_ends_with_its_own_code(guest: Machine) -> None:
    async def work(client: Client) -> tuple[int, str]:
        created = await client.create_container(
            cmd=["/bin/sh", "-c", "setsid sleep 300 & sh -c 'sleep 300 & ' ; echo done; exit 3"]
        )
        await client.start_container(created.id)
        ended = await client.wait_container(created.id)
        left = await shell(client, "cat /proc/[0-9]*/comm 2>/dev/null | grep -cx sleep || true")
        await client.remove_container(created.id)
        return ended.status_code, left.strip()

    assert with_client(guest, work) == (3, "0")


def test_the_agent_is_protected_from_the_oom_killer_and_its_children_are_not(guest: Machine) -> None:
    async def work(client: Client) -> list[str]:
        script = "cat /proc/1/oom_score_adj /proc/self/oom_score_adj; ulimit -n; grep '^Max open' /proc/1/limits"
        return (await shell(client, script)).splitlines()

    agent, child, descriptors, limit = with_client(guest, work)
    assert (agent, child) == ("-900", "0")
    # The kernel starts PID 1 with 1024 of 4096, and its children have that still.
    assert descriptors == "1024"
    assert limit.split()[3:5] == ["65536", "65536"]


def test_what_the_agent_weighs_in_a_guest(guest: Machine) -> None:
    async def work(client: Client) -> str:
        command = [sys.executable, "-m", "tests.vm.footprint", "1"]
        result = await client.exec(command, env=guest_environment(), working_dir=str(REPOSITORY), check=True)
        return result.stdout.decode()

    _, pss = with_client(guest, work).split()
    # docs/guest.md has the figure: about 14 MB.
    assert (5 << 20) < int(pss) < (20 << 20)


# --------------------------------------------------------------------------- clock


def test_a_ping_with_the_hosts_time_repairs_a_wrong_clock(guest: Machine) -> None:
    async def work(client: Client) -> None:
        for wrong in ("2001-01-01", "2099-01-01"):
            await shell(client, f"date -s {wrong}")
            await client.sync_time()
            there, here = float(await shell(client, "date +%s.%N")), time.time()
            assert abs(there - here) < 60

    seen = len(guest.console())
    with_client(guest, work)
    lines = guest.console()[seen:]
    assert len(re.findall("clock: clock set by the host behind=[0-9]{4}", lines)) == 1
    assert len(re.findall("clock: clock set by the host behind=-[0-9]{4}", lines)) == 1
    assert lines.count("random pool reseeded") >= 2


@pytest.mark.parametrize("off", [3.0, -3.0, 0.3, -0.3, 0.05])
def test_sync_time_sets_a_clock_to_within_ten_milliseconds(guest: Machine, off: float) -> None:
    async def work(client: Client) -> tuple[ClockSync, ClockSync]:
        await client.sync_time()
        move = f"import time; time.clock_settime(time.CLOCK_REALTIME, time.time() + {off})"
        await client.exec([sys.executable, "-c", move], check=True)
        return await client.sync_time(), await client.sync_time()

    sync, again = with_client(guest, work)
    print(sync, again)
    assert sync.how in ("step", "ptp")
    assert sync.before is not None
    assert abs(sync.before - off) < 0.02 + sync.round_trip
    for measured in (sync, again):
        assert measured.after is not None
        assert abs(measured.after) <= 0.01
        assert measured.round_trip < 0.05


def test_a_slew_brings_a_small_difference_in_bit_by_bit(guest: Machine) -> None:
    async def work(client: Client) -> tuple[ClockSync, list[float]]:
        await client.sync_time()
        move = "import time; time.clock_settime(time.CLOCK_REALTIME, time.time() - 0.3)"
        await client.exec([sys.executable, "-c", move], check=True)
        sync = await client.sync_time(slew=True)
        offs = []
        for _ in range(2):
            measured = await client.sync_time(slew=True)
            assert measured.before is not None
            offs.append(measured.before)
            await asyncio.sleep(10)
        # Nothing of it is left for the tests that follow.
        await client.sync_time()
        return sync, offs

    sync, (first, second) = with_client(guest, work)
    assert sync.how == "slew"
    assert first < -0.25
    # 500 millionths are 5 ms in ten seconds.
    assert 0.002 < second - first < 0.05


def test_a_small_difference_leaves_the_clock_alone(guest: Machine) -> None:
    async def work(client: Client) -> tuple[int, int]:
        await client.sync_time()
        before = (await client.agent_info()).counters.get("clock_set", 0)
        guests = float(await shell(client, "date +%s.%N"))
        await client.call(wire.PingRequest(timestamp_secs=int(guests)), wire.PingResponse)
        return before, (await client.agent_info()).counters.get("clock_set", 0)

    before, after = with_client(guest, work)
    assert before == after


@pytest.mark.parametrize("off", [-0.7, -1.9, 2.2, 3600.0])
def test_whole_seconds_set_a_clock_to_within_half_a_second(guest: Machine, off: float) -> None:
    async def work(client: Client) -> float:
        await client.sync_time()
        move = f"import time; time.clock_settime(time.CLOCK_REALTIME, time.time() + {off})"
        await client.exec([sys.executable, "-c", move], check=True)
        # At the beginning of a second they tell most: a clock that is 0.7 s behind is before it.
        await asyncio.sleep(1 - time.time() % 1)
        await client.ping(set_clock=True)
        left = (await client.sync_time()).before
        assert left is not None
        return left

    assert abs(with_client(guest, work)) < 0.6


def test_an_impossible_time_is_refused(guest: Machine) -> None:
    async def work(client: Client) -> None:
        for impossible in (1, 2**62):
            with pytest.raises(BadRequestError, match=f"timestamp_secs {impossible} is no time"):
                await client.call(wire.PingRequest(timestamp_secs=impossible), wire.PingResponse)

    with_client(guest, work)


def test_who_may_only_look_cannot_set_the_clock(guest: Machine) -> None:
    with_client(guest, leaves_the_clock_alone(guest.address_of(1025)))


def test_an_agent_may_be_told_to_leave_the_clock_alone(guest: Machine) -> None:
    async def start(client: Client) -> int:
        command = [sys.executable, "-m", "arcbox_agent.agent", "--listen", "vsock:3000", "--no-set-clock"]
        command += ["--state-dir", "/run/other/state", "--run-dir", "/run/other/run"]
        return await client.exec_detached(command, env=guest_environment())

    pid = with_client(guest, start)
    guest.wait_until_it_listens(3000)
    try:
        with_client(guest, leaves_the_clock_alone(guest.address_of(3000)))
    finally:
        with_client(guest, lambda client: client.exec(["/bin/sh", "-c", f"kill {pid}"], check=True))


def leaves_the_clock_alone(address: str) -> Callable[[Client], Awaitable[None]]:
    async def work(client: Client) -> None:
        before = float(await shell(client, "date +%s.%N"))
        async with arcbox_agent.connect(address) as other:
            for wrong in (978_307_200, 4_070_908_800):  # 2001 and 2099
                request = wire.PingRequest(message="x", timestamp_secs=wrong)
                assert (await other.call(request, wire.PingResponse)).message == "pong: x"
        assert before <= float(await shell(client, "date +%s.%N")) < before + 100

    return work


# ------------------------------------------------------------------- runtime status


def test_the_runtime_is_told_truthfully(guest: Machine) -> None:
    async def work(client: Client) -> tuple[wire.RuntimeEnsureResponse, wire.RuntimeStatusResponse]:
        return await client.ensure_runtime(), await client.runtime_status()

    ensured, status = with_client(guest, work)
    assert (ensured.ready, ensured.status, ensured.endpoint) == (True, "ready", "")
    assert (status.containerd_ready, status.docker_ready) == (False, False)
    assert [(service.name, service.status) for service in status.services] == [("process", "running")]


# ------------------------------------------------------------------------ connections


def test_two_thousand_connections_to_the_agent_leave_none_behind(guest: Machine) -> None:
    async def connections(client: Client) -> int:
        return (await client.agent_info()).connections

    before = with_client(guest, connections)
    for _ in range(2000):
        with guest.dial() as stream:
            stream.sendall(PING)
            assert stream.recv(len(PONG), socket.MSG_WAITALL) == PONG
    after = with_client(guest, connections)
    assert after == before


def test_a_client_that_has_ended_its_sending_gets_every_reply(guest: Machine) -> None:
    with guest.dial() as stream:
        stream.sendall(PING * 500)
        stream.shutdown(socket.SHUT_WR)
        received = bytearray()
        while block := stream.recv(1 << 16):
            received += block
    reply, count = bytes(received[: len(received) // 500]), len(received) / 500
    assert reply.startswith(PONG) and len(reply) == count
    assert received == reply * 500


def test_clients_that_reset_their_connections_harm_nobody(guest: Machine) -> None:
    async def work(client: Client) -> None:
        for size in (0, 1, 7, 13, 14, 15, 28 * 100):
            for _ in range(10):
                with guest.dial() as stream:
                    # Closed with replies unread, and in the middle of a frame.
                    stream.sendall((PING * 200)[:size])
                assert (await client.ping("still")).message == "pong: still"
        while (await client.agent_info()).connections > 1:
            await asyncio.sleep(0.05)

    with_client(guest, work)


def test_a_client_that_stops_reading_stops_its_command_and_loses_nothing(guest: Machine) -> None:
    script = "import sys; sys.stdout.buffer.write(b''.join(b'%015d\\n' % n for n in range(1 << 19)))"

    async def memory(client: Client) -> int:
        status = await shell(client, "grep VmRSS /proc/1/status")
        return int(status.split()[1]) << 10

    async def work(client: Client) -> None:
        before = await memory(client)
        received = bytearray()
        async with client.exec_stream([sys.executable, "-c", script]) as parts:
            async for part in parts:
                if not received:
                    await asyncio.sleep(3)  # 8 MiB want to come meanwhile
                    assert await memory(client) < before + (4 << 20)
                if part.stream == "stdout":
                    received += part.data
        assert received == b"".join(b"%015d\n" % number for number in range(1 << 19))

    with_client(guest, work)


def test_a_host_that_vanishes_leaves_an_agent_that_serves_its_guest(boot: Callable[..., Machine]) -> None:
    machine = boot(
        agent_command("--listen", "vsock:1024", "--listen", "unix:/run/a.sock", "--idle-timeout", "2"),
        kernel_vsock=False,
    )
    # Speaks over the unix socket, and on the console: the only way out that is left.
    script = """
import socket, time
ping = bytes.fromhex("0000000a000000010a0470696e67")
while True:
    with socket.socket(socket.AF_UNIX) as stream, open("/dev/console", "w") as console:
        stream.connect("/run/a.sock")
        stream.sendall(ping)
        print("ANSWERED" if stream.recv(100)[8:] else "SILENT", file=console)
    time.sleep(0.5)
"""

    async def work() -> None:
        async with arcbox_agent.connect(machine.address, wait=60) as client:
            await client.exec_detached([sys.executable, "-c", script])
            output = client.exec_stream(["/bin/sh", "-c", "while echo tick; do sleep 0.1; done"])
            async for _ in output:
                break
            machine.kill("vsock")
            with pytest.raises(TransportError):
                while True:
                    await client.ping()
            try:
                await output.aclose()
            except TransportError:
                pass

    machine.wait_until_it_listens()
    asyncio.run(work())
    answers = machine.console().count("ANSWERED")
    deadline = time.monotonic() + 60
    while machine.console().count("ANSWERED") < answers + 3:
        assert time.monotonic() < deadline, machine.failure("the agent does not answer in its guest")
        time.sleep(0.1)
    assert "SILENT" not in machine.console()


# --------------------------------------------------------------------- service manager

#: In the guest: takes reports as a host would, from an agent of its own.
_MANAGER = r"""
import os, socket, subprocess, sys
kind = getattr(socket, "SOCK_" + sys.argv[2].upper())
listener = socket.socket(socket.AF_VSOCK, kind)
listener.bind((socket.VMADDR_CID_ANY, 4711))
listener.listen()
agent = subprocess.Popen(sys.argv[3:], env={**os.environ, "NOTIFY_SOCKET": f"{sys.argv[1]}:1:4711"})
for end in (False, True):
    if end:
        agent.terminate()
    connection, (_, port) = listener.accept()
    text = b""
    while part := connection.recv(4096):
        text += part
    connection.close()
    print(port < 1024, *text.decode().replace(f"MAINPID={agent.pid}", "MAINPID").splitlines(), sep="|")
sys.exit(agent.wait())
"""


@pytest.mark.parametrize(
    ("prefix", "kind"),
    [("vsock-stream", "stream"), ("vsock-seqpacket", "seqpacket"), ("vsock", "seqpacket")],
)
def test_a_host_is_told_over_vsock_of_start_and_end(guest: Machine, prefix: str, kind: str) -> None:
    command = [sys.executable, "-m", "arcbox_agent.agent", "--listen", "unix:/run/notify.sock"]
    command += ["--state-dir", "/run/notify/state", "--run-dir", "/run/notify/run"]

    async def work(client: Client) -> str:
        done = await client.exec(
            [sys.executable, "-c", _MANAGER, prefix, kind, *command], env=guest_environment(), timeout=60, check=True
        )
        return done.stdout.decode()

    assert with_client(guest, work) == (
        "True|READY=1|STATUS=listening on unix:/run/notify.sock|MAINPID\nTrue|STOPPING=1|STATUS=stopping\n"
    )

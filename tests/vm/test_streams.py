"""Streams between host and guest: nothing lost, nothing held up, every end noticed.

These judge what carries the agent's bytes: virtio-vsock, and on hosts without
/dev/vhost-vsock the backend of these tests.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from arcbox_agent.client import Client
from tests.vm.conftest import with_client
from tests.vm.machine import Machine, guest_environment
from tests.vm.packages import REPOSITORY
from tests.vm.streams import pattern

PORT = 5000
MIB = 1 << 20
#: All that may lie between two programs: the guest's socket and queue, the backend's
#: buffer, the host's socket; a quarter of a MiB each, and as much again.
IN_BETWEEN = 2 * MIB

_names = itertools.count()


@pytest.fixture(scope="module")
def streams(guest: Machine) -> Iterator[Machine]:
    async def start(client: Client) -> int:
        command = [sys.executable, "-m", "tests.vm.streams", str(PORT)]
        return await client.exec_detached(command, env=guest_environment(), working_dir=str(REPOSITORY))

    pid = with_client(guest, start)
    guest.wait_until_it_listens(PORT)
    yield guest

    async def stop(client: Client) -> None:
        await client.exec(["/bin/sh", "-c", f"kill {pid}"], check=True)

    with_client(guest, stop)


def ask(machine: Machine, line: str) -> socket.socket:
    stream = machine.dial(PORT)
    stream.sendall(line.encode() + b"\n")
    return stream


def read_all(stream: socket.socket) -> bytes:
    received = bytearray()
    while block := stream.recv(1 << 16):
        received += block
    return bytes(received)


def answer(machine: Machine, line: str) -> bytes:
    with ask(machine, line) as stream:
        return read_all(stream)


def summary(data: bytes) -> bytes:
    return b"%d %s\n" % (len(data), hashlib.sha256(data).hexdigest().encode())


def test_bytes_both_ways_at_once_come_through_unchanged(streams: Machine) -> None:
    data = pattern(8 * MIB)
    with ask(streams, "echo") as stream:

        def send() -> None:
            stream.sendall(data)
            stream.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = read_all(stream)
        sender.join()
    assert received == data


def test_after_the_host_ends_its_sending_the_guest_still_answers(streams: Machine) -> None:
    data = os.urandom(100_001)
    with ask(streams, "sink") as stream:
        stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)
        assert read_all(stream) == summary(data)


def test_the_guests_close_reaches_the_host_behind_its_last_byte(streams: Machine) -> None:
    with ask(streams, "source 1000003 close") as stream:
        assert read_all(stream) == pattern(1_000_003)


def test_what_a_guest_sent_before_it_closed_is_there_for_a_reader_that_comes_late(streams: Machine) -> None:
    name, size = f"late-{next(_names)}", 600_000
    with ask(streams, f"source {size} {name}") as stream:
        received = bytearray()
        # No more than it takes for the guest to be rid of the last byte, and to close.
        while int(answer(streams, f"sent {name}")) < size:
            received += stream.recv(1 << 13)
        while block := stream.recv(1 << 13):
            received += block
            time.sleep(0.01)  # for what the device and the guest may have to say to each other of it
    assert received == pattern(size)


def test_a_host_that_stops_reading_stops_the_guest_and_loses_nothing(streams: Machine) -> None:
    name = f"slow-{next(_names)}"
    with ask(streams, f"source {16 * MIB} {name}") as stream:
        before = -1
        while (taken := int(answer(streams, f"sent {name}"))) != before or not taken:
            before = taken
            time.sleep(0.5)
        assert taken <= IN_BETWEEN
        assert read_all(stream) == pattern(16 * MIB)


def test_a_guest_that_stops_reading_stops_the_host_and_loses_nothing(streams: Machine) -> None:
    name = f"slow-{next(_names)}"
    data = pattern(16 * MIB)
    with ask(streams, f"stall {name}") as stream:
        stream.settimeout(1.0)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < len(data):
                sent += stream.send(data[sent : sent + MIB])
        assert sent <= IN_BETWEEN
        # Others are not held up meanwhile.
        assert answer(streams, f"go {name}") == b"gone\n"
        stream.settimeout(60)
        stream.sendall(data[sent:])
        stream.shutdown(socket.SHUT_WR)
        assert read_all(stream) == summary(data)


def test_hundreds_of_connections_one_after_the_other(streams: Machine) -> None:
    for number in range(300):
        with ask(streams, "echo") as stream:
            stream.sendall(b"%d" % number)
            stream.shutdown(socket.SHUT_WR)
            assert read_all(stream) == b"%d" % number


def test_two_hundred_connections_at_once(streams: Machine) -> None:
    open_streams = [ask(streams, "echo") for _ in range(200)]
    for number, stream in enumerate(open_streams):
        stream.sendall(b"%d" % number)
    for number, stream in enumerate(open_streams):
        stream.shutdown(socket.SHUT_WR)
        assert read_all(stream) == b"%d" % number
        stream.close()


def test_a_port_where_nobody_listens_is_refused(streams: Machine) -> None:
    with pytest.raises(OSError):
        streams.dial(5999)
    assert answer(streams, f"sent nobody-{next(_names)}") == b"0\n"


def test_a_host_that_closes_without_reading_ends_the_guests_stream(streams: Machine) -> None:
    name = f"gone-{next(_names)}"
    stream = ask(streams, f"source {64 * MIB} {name}")
    assert stream.recv(1)
    stream.close()
    # The guest's sender ends: it stops where it was, far from the end.
    before = -1
    while (taken := int(answer(streams, f"sent {name}"))) != before:
        before = taken
        time.sleep(0.3)
    assert taken < 64 * MIB


def test_the_guest_connects_to_the_host(streams: Machine) -> None:
    port = 7000
    if streams.kernel_vsock:
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        listener.bind((socket.VMADDR_CID_ANY, port))
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{streams.vsock_path}_{port}")
    with listener:
        listener.listen(1)
        listener.settimeout(60)
        with ask(streams, f"dial {port} from-the-guest") as stream:
            inward, _ = listener.accept()
            with inward:
                assert read_all(inward) == b"from-the-guest"
                inward.sendall(b"from-the-host")
            assert read_all(stream) == b"from-the-host"


def test_the_guest_is_refused_where_no_host_listens(streams: Machine) -> None:
    with ask(streams, "dial 7999 nobody") as stream:
        assert read_all(stream) == b""


_SENDS_AND_DIES = """
import ctypes, os, socket, subprocess, sys, time
sys.path.insert(0, {repository!r})
subprocess.run(["/sbin/modprobe", "vmw_vsock_virtio_transport"], check=True)
from tests.vm.streams import pattern
listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
listener.bind((socket.VMADDR_CID_ANY, 1024))
listener.listen(1)
stream, _ = listener.accept()
stream.sendall(pattern({size}))
time.sleep(1)
ctypes.CDLL(None).reboot(0x4321FEDC)
"""


def test_what_a_guest_sent_before_it_was_switched_off_is_delivered(boot: Callable[..., Machine]) -> None:
    # As much as its socket and the host's side take without a reader.
    size = 200_000
    script = _SENDS_AND_DIES.format(repository=str(REPOSITORY), size=size)
    machine = boot([sys.executable, "/dies.py"], files={"/dies.py": (script, 0o644)})
    deadline = time.monotonic() + 60
    while True:
        try:
            stream = machine.dial()
            break
        except OSError:
            assert time.monotonic() < deadline, machine.console()
            time.sleep(0.05)
    with stream:
        machine.wait_until_off()
        assert read_all(stream) == pattern(size)

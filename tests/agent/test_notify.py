"""NOTIFY_SOCKET: which addresses are understood, and what becomes of a report that nobody takes."""

from __future__ import annotations

import socket
import threading

import pytest

from arcbox_agent.agent.observe.notify import Notifier, parse_vsock
from tests.containers.support import eventually

STREAM, DGRAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("vsock:2:4711", ((DGRAM, SEQPACKET, STREAM), 2, 4711)),
        ("vsock-dgram:2:1", ((DGRAM,), 2, 1)),
        ("vsock-seqpacket:1:4711", ((SEQPACKET,), 1, 4711)),
        ("vsock-stream:4294967294:4294967294", ((STREAM,), 4294967294, 4294967294)),
    ],
)
def test_an_address_over_vsock(address: str, expected: tuple[tuple[int, ...], int, int]) -> None:
    assert parse_vsock(address) == expected


NONE = ["vsock:2", "vsock::1", "vsock:-1:1", "vsock:2:x", "vsock:4294967295:1", "vsock:2:99999999999", "vsock-raw:2:1"]


@pytest.mark.parametrize("address", [*NONE, "nothing", "unix:/a"])
def test_an_address_of_no_known_kind_is_told(address: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert parse_vsock(address) is None
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready("x")
    assert notifier.address == ""
    assert f"NOTIFY_SOCKET is of no known kind: nothing is reported address={address}" in capfd.readouterr().err


def test_a_host_that_takes_no_report_holds_up_nothing_and_is_told_of(capfd: pytest.CaptureFixture[str]) -> None:
    # A datagram over vsock is what no hypervisor has; the report goes nowhere at once.
    notifier = Notifier({"NOTIFY_SOCKET": "vsock-dgram:2:4711"})
    for _ in range(100):
        notifier.alive()
    eventually(lambda: not any(thread.name == "notify" for thread in threading.enumerate()))
    told = capfd.readouterr().err
    assert told.count("the host cannot be told of the agent's state") == 1
    assert "address=vsock-dgram:2:4711" in told

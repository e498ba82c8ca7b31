"""Addresses: what is understood, and what the error says to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from arcbox_agent import address as address_module
from arcbox_agent.address import (
    CID_ANY,
    MAX_UNIX_PATH,
    HybridVsockAddress,
    ListenAddress,
    UnixAddress,
    VsockAddress,
    parse_address,
    parse_listen,
)
from arcbox_agent.errors import AddressError, ArcboxError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("vsock://3:1024", VsockAddress(3, 1024)),
        ("vsock://0:1", VsockAddress(0, 1)),
        ("vsock://4294967294:4294967294", VsockAddress(4294967294, 4294967294)),
        ("unix:///run/arcbox-agent.sock", UnixAddress("/run/arcbox-agent.sock")),
        ("unix:///with:colon", UnixAddress("/with:colon")),
        ("firecracker:///tmp/v.sock:1024", HybridVsockAddress("/tmp/v.sock", 1024)),
        ("firecracker:///tmp/a:b:52", HybridVsockAddress("/tmp/a:b", 52)),
        ("cloud-hypervisor:///v.sock:1024", HybridVsockAddress("/v.sock", 1024, "cloud-hypervisor")),
    ],
)
def test_an_address_to_dial_is_understood_and_written_back(text: str, address: str) -> None:
    assert parse_address(text) == address
    assert str(parse_address(text)) == text
    assert hash(parse_address(text)) == hash(address)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "write vsock://CID:PORT, unix:///path or firecracker:///path:PORT"),
        ("/run/agent.sock", "write vsock://CID:PORT, unix:///path or firecracker:///path:PORT"),
        ("vsock:1024", "write vsock://CID:PORT, unix:///path or firecracker:///path:PORT"),
        ("tcp://localhost:1", "unknown scheme 'tcp': write vsock://"),
        ("vsock://3", "the port is missing: write vsock://CID:PORT"),
        ("vsock://:1024", "cid '' is not a number"),
        ("vsock://+3:1024", "cid '+3' is not a number"),
        ("vsock://3:1_0", "port '1_0' is not a number"),
        ("vsock://3: 1024", "port ' 1024' is not a number"),
        ("vsock://\u0663:1024", "is not a number"),
        ("vsock://4294967295:1024", "cid 4294967295 is not between 0 and 4294967294"),
        ("vsock://3:0", "port 0 is not between 1 and 4294967294"),
        ("vsock://3:4294967295", "port 4294967295 is not between 1 and 4294967294"),
        ("vsock://3:" + "9" * 5000, "is not a number"),
        ("unix://run/agent.sock", "the path 'run/agent.sock' is not absolute: begin it with /"),
        ("unix://", "the path '' is not absolute"),
        ("unix:///run/a\0b", "the path holds a NUL character"),
        ("unix:///run/a.sock?mode=full", "an address to dial has no options"),
        ("firecracker:///tmp/v.sock", "the guest's port is missing: write firecracker:///path:PORT"),
        ("firecracker://v.sock:1024", "the path 'v.sock' is not absolute"),
    ],
)
def test_an_address_that_cannot_be_dialled_says_what_to_do(text: str, reason: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(text)
    assert reason in str(caught.value)
    assert caught.value.address == text
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, ArcboxError)


def test_a_path_may_have_just_the_bytes_that_a_socket_address_holds() -> None:
    longest = "/" + "p" * (MAX_UNIX_PATH - 1)
    assert parse_address("unix://" + longest) == UnixAddress(longest)
    with pytest.raises(AddressError, match=f"is {MAX_UNIX_PATH + 1} bytes long"):
        parse_address("unix://" + longest + "p")
    # Bytes count, not characters.
    with pytest.raises(AddressError, match="use a shorter one"):
        parse_address("unix:///" + "é" * (MAX_UNIX_PATH // 2 + 1))


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("vsock:1024", ListenAddress(VsockAddress(CID_ANY, 1024))),
        ("vsock:1024?mode=read-only", ListenAddress(VsockAddress(CID_ANY, 1024), "read-only")),
        ("unix:/run/a.sock", ListenAddress(UnixAddress("/run/a.sock"))),
        ("unix:/run/a.sock?mode=no-exec", ListenAddress(UnixAddress("/run/a.sock"), "no-exec")),
    ],
)
def test_an_address_to_listen_on_is_understood_and_written_back(text: str, listen: str) -> None:
    assert parse_listen(text) == listen
    assert str(parse_listen(text)) == text
    assert hash(parse_listen(text)) == hash(listen)


def test_a_unix_socket_to_listen_on_may_be_written_as_it_is_dialled() -> None:
    assert parse_listen("unix:///run/a.sock") == parse_listen("unix:/run/a.sock")


def test_the_name_of_a_mode_is_handed_on_as_it_stands() -> None:
    assert parse_listen("vsock:1?mode=Whatever").mode == "Whatever"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "write vsock:PORT or unix:/path"),
        ("1024", "write vsock:PORT or unix:/path"),
        ("tcp:80", "unknown scheme 'tcp'"),
        ("vsock:", "port '' is not a number"),
        ("vsock:-1", "port '-1' is not a number"),
        ("vsock:4294967295", "port 4294967295 is not between"),
        ("vsock://3:1024", "an agent listens on any cid: write vsock:PORT"),
        ("unix:run/a.sock", "is not absolute"),
        ("unix:/a?", "unknown options ''"),
        ("unix:/a?mode", "unknown options 'mode'"),
        ("unix:/a?mode=", "unknown options 'mode='"),
        ("unix:/a?mode=full&mode=full", "only mode=NAME can follow the ?"),
        ("unix:/a?uid=0", "only mode=NAME can follow the ?"),
    ],
)
def test_an_address_that_cannot_be_listened_on_says_what_to_do(text: str, reason: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_listen(text)
    assert reason in str(caught.value)


def test_addresses_of_two_kinds_are_never_equal() -> None:
    assert parse_address("unix:///a") != parse_address("firecracker:///a:1")
    assert parse_address("vsock://1:1") != parse_listen("vsock:1")


def test_the_module_is_light_enough_for_a_guest() -> None:
    heavy = "{'dataclasses', 'inspect', 'urllib', 'urllib.parse', 'ipaddress', 'socket'}"
    script = f"import sys; import arcbox_agent.address; print(sorted({heavy} & set(sys.modules)))"
    source = Path(address_module.__file__).parent.parent
    run = subprocess.run(
        [sys.executable, "-S", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(source)},  # -S: nothing that is installed is found
    )
    assert run.stdout == "[]\n"

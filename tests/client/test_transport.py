"""Dialling: the hypervisors' handshake, an agent that is not there yet, and what the errors say."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path

import pytest

import arcbox_agent
from arcbox_agent.address import HybridVsockAddress, UnixAddress
from arcbox_agent.client import transport
from arcbox_agent.errors import CallTimeoutError, ConnectError
from tests.conftest import RunAsync

from .servers import Serve, answer_pings, closed_by_client, receive, server


def receive_all(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


def handshake(reply: list[bytes], then: Serve = answer_pings) -> Serve:
    """A hypervisor's socket that answers `CONNECT 1024` with `reply`."""

    def serve(connection: socket.socket) -> None:
        assert receive(connection, len(b"CONNECT 1024\n")) == b"CONNECT 1024\n"
        for part in reply:
            connection.sendall(part)
            time.sleep(0.01)
        then(connection)

    return serve


@pytest.mark.parametrize(
    "reply",
    [[b"OK 1073741824\n"], [b"O", b"K", b" ", b"5", b"\n"], [b"OK 4294967295\n"]],
    ids=["at once", "byte by byte", "highest port"],
)
@pytest.mark.parametrize("scheme", ["firecracker", "cloud-hypervisor"])
def test_a_hypervisors_socket_is_asked_for_the_port(run_async: RunAsync, reply: list[bytes], scheme: str) -> None:
    async def main(path: str) -> str:
        async with arcbox_agent.connect(f"{scheme}://{path}:1024") as client:
            return (await client.ping()).message

    with server(handshake(reply)) as hypervisor:
        assert run_async(main(hypervisor.path)) == "pong"


def test_what_follows_the_handshake_in_one_packet_is_the_agents(run_async: RunAsync) -> None:
    # An agent that refuses a connection says so before it has read anything.
    refusal = bytes.fromhex("0000001f 0000ffff 000001ad 00000013") + b"too many connection"

    def serve(connection: socket.socket) -> None:
        receive(connection, len(b"CONNECT 1024\n"))
        connection.sendall(b"OK 1\n" + refusal)
        closed_by_client(connection)

    async def main(path: str) -> str:
        with pytest.raises(arcbox_agent.errors.BusyError) as caught:
            await arcbox_agent.connect(f"firecracker://{path}:1024")
        return str(caught.value)

    with server(serve) as hypervisor:
        assert run_async(main(hypervisor.path)) == "too many connection"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ([], "the hypervisor closed the connection: does the agent listen on vsock port 1024?"),
        ([b"OK 12"], "the hypervisor closed the connection"),
        ([b"ERR no such port\n"], "the socket answered b'ERR no such port\\n' and not `OK`"),
        ([b"OK\n"], "the socket answered b'OK\\n' and not `OK`"),
        ([b"OK -1\n"], "and not `OK`"),
        ([b"\0" * 4096], "and not `OK`"),
        ([b"OK " + b"1" * 4096], "and not `OK`"),
    ],
    ids=["refused", "cut", "error", "no port", "negative", "zeros", "endless"],
)
def test_a_handshake_that_fails_says_how(run_async: RunAsync, reply: list[bytes], reason: str) -> None:
    def serve(connection: socket.socket) -> None:
        receive(connection, len(b"CONNECT 1024\n"))
        for part in reply:
            connection.sendall(part)

    async def main(path: str) -> str:
        with pytest.raises(ConnectError) as caught:
            await arcbox_agent.connect(f"firecracker://{path}:1024")
        return str(caught.value)

    with server(serve) as hypervisor:
        assert reason in run_async(main(hypervisor.path))


def test_a_handshake_that_never_ends_is_given_up(run_async: RunAsync) -> None:
    async def main(path: str) -> None:
        with pytest.raises(CallTimeoutError) as caught:
            await arcbox_agent.connect(f"firecracker://{path}:1024", timeout=0.1)
        assert caught.value.seconds == 0.1

    with server(lambda connection: (receive(connection, 13), closed_by_client(connection))) as hypervisor:
        run_async(main(hypervisor.path))


def test_an_address_where_nobody_is_says_what_to_look_at(run_async: RunAsync, tmp_path: Path) -> None:
    async def reason(address: str) -> str:
        with pytest.raises(ConnectError) as caught:
            await arcbox_agent.connect(address)
        assert caught.value.address == address
        return str(caught.value)

    missing = f"unix://{tmp_path}/none"
    expected = f"cannot connect to {missing}: there is no such socket: is the agent, or the VM, running?"
    assert run_async(reason(missing)) == expected

    dead = tmp_path / "dead"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    assert run_async(reason(f"unix://{dead}")).endswith("nobody listens there: is the agent running?")


def test_what_is_no_socket_is_not_waited_for(run_async: RunAsync, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    async def main(address: str) -> None:
        with pytest.raises(ConnectError, match="that file is not a socket$"):
            await arcbox_agent.connect(address, wait=600)

    for path in (tmp_path, tmp_path / "file"):
        run_async(main(f"unix://{path}"))
        run_async(main(f"firecracker://{path}:1024"))


def test_a_host_without_vsock_is_told_what_to_use(run_async: RunAsync, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_VSOCK")

    async def main() -> None:
        with pytest.raises(ConnectError, match=r"this host has no AF_VSOCK: use the hypervisor's socket"):
            # Waiting would not help, and is not done.
            await arcbox_agent.connect("vsock://3:1024", wait=600)

    run_async(main())


def test_a_vsock_port_where_nobody_listens_is_an_error(run_async: RunAsync) -> None:
    async def main() -> None:
        with pytest.raises(ConnectError) as caught:
            await arcbox_agent.connect("vsock://1:54321", timeout=5)
        assert str(caught.value).startswith("cannot connect to vsock://1:54321: ")

    run_async(main())


def test_wait_goes_on_until_the_agent_is_up(run_async: RunAsync, tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "s")
        connecting = asyncio.ensure_future(wait_for(path))
        await asyncio.sleep(0.1)
        assert not connecting.done()
        with socket.socket(socket.AF_UNIX) as listener:
            # Bound, and not yet listening: refused.
            listener.bind(path)
            await asyncio.sleep(0.1)
            assert not connecting.done()
            listener.listen()
            # The first one is dropped, as by a hypervisor whose guest is not up.
            await asyncio.to_thread(lambda: listener.accept()[0].close())
            connection = await asyncio.to_thread(lambda: listener.accept()[0])
            answering = asyncio.create_task(asyncio.to_thread(answer_pings, connection))
            client = await connecting
            assert (await client.ping()).message == "pong"
            await client.aclose()
            await answering
            connection.close()

    async def wait_for(path: str) -> arcbox_agent.Client:
        return await arcbox_agent.connect(f"unix://{path}", wait=30)

    run_async(main())


def test_wait_that_is_over_tells_the_last_reason(run_async: RunAsync, tmp_path: Path) -> None:
    async def main() -> str:
        with pytest.raises(ConnectError) as caught:
            await arcbox_agent.connect(f"unix://{tmp_path}/none", wait=0.1)
        return str(caught.value)

    message = run_async(main())
    assert message == (
        f"cannot connect to unix://{tmp_path}/none: there is no such socket: "
        "is the agent, or the VM, running? (tried for 0.1 s)"
    )


def test_wait_also_ends_where_connections_are_accepted_and_nothing_replies(run_async: RunAsync) -> None:
    async def main(path: str) -> None:
        with pytest.raises(ConnectError) as caught:
            await arcbox_agent.connect(f"unix://{path}", wait=0.2)
        assert caught.value.reason == "it accepts connections and does not reply (tried for 0.2 s)"

    with server(receive_all) as silent:
        run_async(main(silent.path))


def test_a_listener_with_a_full_queue_is_waited_for(run_async: RunAsync, tmp_path: Path) -> None:
    path = str(tmp_path / "s")

    async def main(listener: socket.socket) -> None:
        address = UnixAddress(path)
        opening = [asyncio.ensure_future(transport.open_socket(address)) for _ in range(20)]
        await asyncio.sleep(0.1)
        assert not all(task.done() for task in opening)
        accepted = await asyncio.to_thread(lambda: [listener.accept()[0] for _ in opening])
        opened = await asyncio.gather(*opening)
        # Each is a connection, and not only a descriptor that is said to be one.
        for number, sock in enumerate(opened):
            sock.sendall(bytes([number]))
        assert sorted(sock.recv(1)[0] for sock in accepted) == list(range(20))
        for sock in (*opened, *accepted):
            sock.close()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        run_async(main(listener))


def test_a_dial_that_is_cancelled_leaves_no_descriptor(run_async: RunAsync) -> None:
    async def main(path: str) -> None:
        before = len(os.listdir("/proc/self/fd"))
        address = HybridVsockAddress(path, 1024)
        opening = asyncio.ensure_future(transport.open_socket(address))
        await asyncio.sleep(0.05)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        while len(os.listdir("/proc/self/fd")) > before + 1:  # The server's end.
            await asyncio.sleep(0.01)

    with server(lambda connection: (receive(connection, 13), closed_by_client(connection))) as hypervisor:
        run_async(main(hypervisor.path))

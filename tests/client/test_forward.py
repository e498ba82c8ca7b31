"""Connections into the guest and back, by the client and a real agent, with real sockets at all four ends."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

import arcbox_agent
from arcbox_agent import sync
from arcbox_agent.client.client import Client
from arcbox_agent.client.endpoint import Endpoint
from arcbox_agent.errors import AddressError, AgentFailedError, ConnectionLostError
from tests.conftest import RunAsync, RunningAgent

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Service:
    """What listens in the guest (which is this machine); `take` gives the server's end of the next connection."""

    def __init__(self) -> None:
        self._new: asyncio.Queue[Streams] = asyncio.Queue()
        self.server: asyncio.Server
        self.at: Any

    async def take(self) -> Streams:
        return await self._new.get()

    async def came(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._new.put_nowait((reader, writer))


@asynccontextmanager
async def service(path: str = "") -> AsyncIterator[Service]:
    found = Service()
    if path:
        found.server = await asyncio.start_unix_server(found.came, path)
        found.at = path
    else:
        found.server = await asyncio.start_server(found.came, "127.0.0.1", 0)
        found.at = found.server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        found.server.close()


def where(service: Service) -> dict[str, Any]:
    return {"path": service.at} if isinstance(service.at, str) else {"port": service.at}


def reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_connection_into_the_guest_is_a_pair_of_asyncio_streams(
    agent: RunningAgent, run_async: RunAsync, tmp_path: Path, kind: str
) -> None:
    async def main() -> None:
        path = str(tmp_path / "s") if kind == "unix" else ""
        async with service(path) as there, arcbox_agent.connect(agent.address) as client:
            reader, writer = await client.open_connection(**where(there))
            far_reader, far_writer = await there.take()
            writer.write(b"question\n")
            await writer.drain()
            assert await far_reader.readline() == b"question\n"
            far_writer.write(b"answer\n")
            assert await reader.readline() == b"answer\n"
            writer.write(b"rest")
            writer.write_eof()
            assert await far_reader.read() == b"rest"
            far_writer.write(b"last")
            far_writer.close()
            assert await reader.read() == b"last"
            writer.close()
            await writer.wait_closed()
            assert (await client.ping()).message == "pong"

    run_async(main())


async def order(client: Client, there: Service, steps: str) -> None:
    """Close four ends in an order: r, w are this side's reader and writer, R, W the guest's."""
    reader, writer = await client.open_connection(**where(there))
    far_reader, far_writer = await there.take()
    writer.write(b"in")
    far_writer.write(b"out")
    await asyncio.gather(writer.drain(), far_writer.drain())
    for step in steps:
        if step == "w":
            writer.write(b" end")
            writer.write_eof()
        elif step == "W":
            far_writer.write(b" END")
            far_writer.write_eof()
        elif step == "r":
            assert await reader.read() == b"out END"
        else:
            assert await far_reader.read() == b"in end"
    writer.close()
    far_writer.close()
    await asyncio.gather(writer.wait_closed(), far_writer.wait_closed())


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_the_four_ends_close_in_every_order(
    agent: RunningAgent, run_async: RunAsync, tmp_path: Path, kind: str
) -> None:
    # A reader ends behind the writer that it reads from.
    orders = ["".join(steps) for steps in permutations("wWrR")]
    orders = [steps for steps in orders if steps.index("W") < steps.index("r") and steps.index("w") < steps.index("R")]
    assert len(orders) == 6

    async def main() -> None:
        path = str(tmp_path / "s") if kind == "unix" else ""
        async with service(path) as there, arcbox_agent.connect(agent.address) as client:
            before = await descriptors(client, agent)
            for steps in orders:
                await order(client, there, steps)
            await no_forwards(client, agent, before)

    run_async(main())


async def no_forwards(client: Client, agent: RunningAgent, before: int) -> None:
    """The agent has no more descriptors than `before`, but for this client's connections."""
    while await descriptors(client, agent) > before:
        await asyncio.sleep(0.02)


async def descriptors(client: Client, agent: RunningAgent) -> int:
    """Of the agent, without those of connections to it."""
    connections = (await client.agent_info()).connections
    return len(os.listdir(f"/proc/{agent.process.pid}/fd")) - connections


def test_a_refusal_has_the_name_of_the_errno(agent: RunningAgent, run_async: RunAsync, tmp_path: Path) -> None:
    async def main() -> None:
        async with arcbox_agent.connect(agent.address) as client:
            with pytest.raises(AgentFailedError, match="failed: ENOENT: No such file or directory"):
                await client.open_connection(path=str(tmp_path / "none"))
            with socket.create_server(("127.0.0.1", 0)) as server:
                port = server.getsockname()[1]
            with pytest.raises(AgentFailedError, match=f"127.0.0.1:{port} failed: ECONNREFUSED: Connection refused"):
                await client.open_connection("127.0.0.1", port)
            assert (await client.ping()).message == "pong"

    run_async(main())


def test_a_reset_in_the_guest_is_one_here(agent: RunningAgent, run_async: RunAsync) -> None:
    async def main() -> None:
        async with service() as there, arcbox_agent.connect(agent.address) as client:
            before = await descriptors(client, agent)
            reader, writer = await client.open_connection(**where(there))
            _, far_writer = await there.take()
            far_writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
            reset(far_writer)
            with pytest.raises(ConnectionResetError, match="reset by peer"):
                await reader.read()
            writer.close()
            await no_forwards(client, agent, before)

    run_async(main())


def test_an_abort_here_is_a_reset_in_the_guest_and_a_close_is_none(agent: RunningAgent, run_async: RunAsync) -> None:
    async def main() -> None:
        async with service() as there, arcbox_agent.connect(agent.address) as client:
            before = await descriptors(client, agent)
            _, writer = await client.open_connection(**where(there))
            far_reader, far_writer = await there.take()
            writer.transport.abort()
            with pytest.raises(ConnectionResetError):
                await far_reader.read()
            far_writer.close()
            _, writer = await client.open_connection(**where(there))
            far_reader, far_writer = await there.take()
            writer.write(b"x" * 1_000_000)
            writer.close()
            assert len(await far_reader.read()) == 1_000_000
            await writer.wait_closed()
            far_writer.close()
            await no_forwards(client, agent, before)

    run_async(main())


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_listener_of_this_host_leads_into_the_guest(
    agent: RunningAgent, run_async: RunAsync, tmp_path: Path, kind: str
) -> None:
    async def main() -> None:
        remote = str(tmp_path / "remote") if kind == "unix" else ""
        local: Any = str(tmp_path / "local") if kind == "unix" else 0
        async with service(remote) as there, arcbox_agent.connect(agent.address) as client:
            before = await descriptors(client, agent)
            async with client.forward(local, there.at) as forward:
                for _ in range(3):
                    reader, writer = await reach(forward.address)
                    far_reader, far_writer = await there.take()
                    writer.write(b"question")
                    writer.write_eof()
                    assert await far_reader.read() == b"question"
                    far_writer.write(b"answer")
                    far_writer.close()
                    assert await reader.read() == b"answer"
                    writer.close()
                reader, writer = await reach(forward.address)
                _, far_writer = await there.take()
                while not forward.connections:
                    await asyncio.sleep(0.01)
            # What is left at the end of the forward is reset; a unix socket ends.
            if kind == "tcp":
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            else:
                assert await reader.read() == b""
            writer.close()
            far_writer.close()
            with pytest.raises(OSError):
                await reach(forward.address)
            assert not (tmp_path / "local").exists()
            await no_forwards(client, agent, before)

    run_async(main())


async def reach(endpoint: Endpoint) -> Streams:
    if endpoint.path:
        return await asyncio.open_unix_connection(endpoint.path)
    return await asyncio.open_connection(endpoint.host, endpoint.port)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_listener_in_the_guest_leads_to_this_host(
    agent: RunningAgent, run_async: RunAsync, tmp_path: Path, kind: str
) -> None:
    async def main() -> None:
        local = str(tmp_path / "local") if kind == "unix" else ""
        remote: Any = str(tmp_path / "remote") if kind == "unix" else 0
        async with service(local) as here, arcbox_agent.connect(agent.address) as client:
            before = await descriptors(client, agent)
            async with client.forward_back(remote, here.at) as forward:
                for _ in range(3):
                    reader, writer = await reach(forward.address)
                    far_reader, far_writer = await here.take()
                    writer.write(b"question")
                    writer.write_eof()
                    assert await far_reader.read() == b"question"
                    far_writer.write(b"answer")
                    far_writer.close()
                    assert await reader.read() == b"answer"
                    writer.close()
            while True:
                try:
                    _, writer = await reach(forward.address)
                except OSError:
                    break
                writer.close()
                await asyncio.sleep(0.02)
            while (tmp_path / "remote").exists():
                await asyncio.sleep(0.02)
            await no_forwards(client, agent, before)

    run_async(main())


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_what_comes_before_the_other_end_is_there_is_kept(
    agent: RunningAgent, run_async: RunAsync, tmp_path: Path, kind: str
) -> None:
    async def main() -> None:
        local: Any = str(tmp_path / "local") if kind == "unix" else 0
        remote: Any = str(tmp_path / "remote") if kind == "unix" else 0
        path = str(tmp_path / "service") if kind == "unix" else ""
        async with service(path) as there, arcbox_agent.connect(agent.address) as client:
            async with client.forward(local, there.at) as into, client.forward_back(remote, there.at) as back:
                for forward in (into, back):
                    sizes = [1, 100_000, 1_000_000] * 5
                    sending = asyncio.gather(*(speak(forward.address, size) for size in sizes))
                    taken = [await there.take() for _ in sizes]
                    received = await asyncio.gather(*(reader.read() for reader, _ in taken))
                    assert sorted(map(len, received)) == sorted(sizes)
                    for _, writer in taken:
                        writer.close()
                    await sending

    run_async(main())


async def speak(endpoint: Endpoint, size: int) -> None:
    """Write at once, and end."""
    reader, writer = await reach(endpoint)
    writer.write(bytes(size))
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()


def test_a_server_that_speaks_first_is_heard(agent: RunningAgent, run_async: RunAsync) -> None:
    async def banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"banner")
        writer.write_eof()
        with suppress(ConnectionResetError):  # the last one's forward may be over first
            await reader.read()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(banner, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with arcbox_agent.connect(agent.address) as client:
            async with client.forward(0, port) as into, client.forward_back(0, port) as back:
                for forward in [into, back] * 20:
                    reader, writer = await reach(forward.address)
                    assert await reader.read() == b"banner"
                    writer.close()
        server.close()

    run_async(main())


def test_who_cannot_be_forwarded_is_reset_and_the_reason_told(
    agent: RunningAgent, run_async: RunAsync, tmp_path: Path
) -> None:
    async def main() -> None:
        errors: list[Exception] = []
        async with arcbox_agent.connect(agent.address) as client:
            async with client.forward(0, str(tmp_path / "none"), on_error=errors.append) as forward:
                reader, writer = await reach(forward.address)
                with pytest.raises(ConnectionResetError):
                    await reader.read()
                writer.close()
            async with client.forward_back(0, str(tmp_path / "none"), on_error=errors.append) as back:
                reader, writer = await reach(back.address)
                with pytest.raises(ConnectionResetError):
                    await reader.read()
                writer.close()
        assert [type(error) for error in errors] == [AgentFailedError, FileNotFoundError]

    run_async(main())


@pytest.mark.parametrize("value", ["a", "a:b", "1.2.3.4:70000", "::1:80", -1, "a:999999"])
def test_what_is_no_address_is_refused(value: Any) -> None:
    with pytest.raises(AddressError):
        Endpoint.of(value)


def test_what_names_an_address() -> None:
    assert Endpoint.of(80) == Endpoint.of("80") == Endpoint.of(":80") == Endpoint("127.0.0.1", 80, "")
    assert Endpoint.of("[::1]:80") == Endpoint.of(("::1", 80)) == Endpoint("::1", 80, "")
    assert str(Endpoint("::1", 80, "")) == "[::1]:80"
    assert Endpoint.of("/run/a:1") == Endpoint("", 0, "/run/a:1")


def test_without_asyncio_a_connection_is_a_socket(agent: RunningAgent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, sync.connect(agent.address) as client:
        port = server.getsockname()[1]
        with client.open_connection("127.0.0.1", port) as ours:
            theirs, _ = server.accept()
            with theirs:
                ours.sendall(b"question")
                ours.shutdown(socket.SHUT_WR)
                received = b""
                while data := theirs.recv(100):
                    received += data
                assert received == b"question"
                theirs.sendall(b"answer")
                theirs.close()
                assert ours.recv(100) == b"answer"
                assert ours.recv(100) == b""
        with client.forward(0, port) as forward:
            with socket.create_connection((forward.address.host, forward.address.port)) as ours:
                theirs, _ = server.accept()
                theirs.sendall(b"banner")
                theirs.close()
                assert ours.recv(100) == b"banner"
        with pytest.raises(AgentFailedError, match="ENOENT"):
            client.open_connection(path="/no/such/socket")


def test_an_agent_that_is_killed_is_told_at_every_end(agent: RunningAgent, run_async: RunAsync) -> None:
    async def main() -> None:
        async with service() as there, arcbox_agent.connect(agent.address) as client:
            errors: list[Exception] = []
            into = await client.forward(0, there.at, on_error=errors.append)
            back = await client.forward_back(0, there.at, on_error=errors.append)
            reader, writer = await client.open_connection(**where(there))
            local_reader, local_writer = await reach(into.address)
            taken = [await there.take() for _ in range(2)]
            local_writer.write(b"a")
            while not into.connections:
                await asyncio.sleep(0.01)
            agent.kill()
            with pytest.raises(ConnectionLostError):
                await reader.read()
            with pytest.raises(ConnectionResetError):
                await local_reader.read()
            with pytest.raises(ConnectionLostError):
                await back.wait()
            # The listener of this host goes on, and works again with the next agent.
            agent.restart()
            again_reader, again_writer = await reach(into.address)
            _, far_writer = await there.take()
            far_writer.write(b"b")
            assert await again_reader.readexactly(1) == b"b"
            for each in (writer, local_writer, again_writer, far_writer, *(far for _, far in taken)):
                each.close()
            await into.aclose()
            await back.aclose()

    run_async(main())


def test_a_thousand_connections_at_a_time(agent: RunningAgent, run_async: RunAsync) -> None:
    count = 1000

    over: list[int] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionResetError):
            writer.write(await reader.readexactly(4))
            await reader.read()
        writer.close()
        with suppress(ConnectionResetError):
            await writer.wait_closed()
        over.append(1)

    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0, backlog=count)
        async with arcbox_agent.connect(agent.address) as client:
            async with client.forward(0, server.sockets[0].getsockname()[1]) as forward:
                streams = [await reach(forward.address) for _ in range(count)]
                for number, (_, writer) in enumerate(streams):
                    writer.write(number.to_bytes(4, "big"))
                for number, (reader, _) in enumerate(streams):
                    assert await reader.readexactly(4) == number.to_bytes(4, "big")
                assert forward.connections == count
                assert (await client.ping()).message == "pong"
                for _, writer in streams:
                    writer.close()
                while len(over) < count or forward.connections:
                    await asyncio.sleep(0.05)
        server.close()

    run_async(main())

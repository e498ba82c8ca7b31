"""32 connections and 100,000 mixed requests, beside a client that never reads and one that sends garbage."""

from __future__ import annotations

import asyncio
import random
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcbox_agent import wire
from tools.stress import pipeline
from tools.stress.agent import AgentProcess
from tools.stress.mix import mixed_requests

CONNECTIONS = 32
REQUESTS = 100_000
#: Requests on the way per connection: far more than one, far fewer than the agent's bound.
WINDOW = 64
SEED = 3
#: Threads are made when they are needed and stay; each pool has its bound.
MOST_THREADS = 32
#: What a process may keep of a load that is over: the allocator does not give all back.
MEMORY_KEPT = 8 << 20


@pytest.fixture
def agent() -> Iterator[AgentProcess]:
    with tempfile.TemporaryDirectory(prefix="arcbox-") as directory:
        agent = AgentProcess(Path(directory), settings={"containers_at_exit": "stop"})
        agent.start()
        try:
            agent.wait_until_it_answers()
            yield agent
            agent.stop()
        finally:
            if agent.running:
                agent.kill()


def test_a_mixed_load_loses_and_reorders_nothing_and_leaves_nothing_behind(agent: AgentProcess) -> None:
    # A first small load: what an agent imports and allocates once is no leak.
    asyncio.run(_load(agent, connections=2, requests=400))
    before = agent.holdings_at_rest()

    faults, answered = asyncio.run(_load(agent, connections=CONNECTIONS, requests=REQUESTS, bad_clients=True))
    assert faults == []
    assert answered >= REQUESTS

    after = agent.holdings_at_rest(like=before)
    assert after.files == before.files
    assert after.threads <= MOST_THREADS
    assert after.children == before.children == ()
    assert after.memory <= before.memory + MEMORY_KEPT
    assert _leftovers(agent) == []
    assert "Traceback" not in agent.log()


async def _load(
    agent: AgentProcess, *, connections: int, requests: int, bad_clients: bool = False
) -> tuple[list[str], int]:
    """The faults seen, and how many requests were answered."""
    path = str(agent.socket_path)
    pipelines = [
        await pipeline.connect(path, f"c{number}", version=2 if number % 2 else 1, window=WINDOW)
        for number in range(connections)
    ]
    bad = [asyncio.create_task(_never_reads(path)), asyncio.create_task(_sends_garbage(path))] if bad_clients else []
    share = -(-requests // connections)
    try:
        async with asyncio.timeout(300), asyncio.TaskGroup() as group:
            for number, one in enumerate(pipelines):
                group.create_task(mixed_requests(one, random.Random(SEED * 1000 + number), share, socket.gethostname()))
    finally:
        for task in bad:
            task.cancel()
        results = await asyncio.gather(*bad, return_exceptions=True)
        for one in pipelines:
            one.close()
    assert all(isinstance(result, asyncio.CancelledError) for result in results), results
    return [fault for one in pipelines for fault in one.faults][:20], sum(one.answered for one in pipelines)


# ------------------------------------------------------------------ bad clients


async def _never_reads(path: str) -> None:
    """Sends pings for as long as they are taken, and reads no reply, ever."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.setblocking(False)
        await loop.sock_connect(connection, path)
        while True:
            await loop.sock_sendall(connection, wire.encode_message(wire.PingRequest(message="x" * 1000)) * 50)


async def _sends_garbage(path: str) -> None:
    """Connects, sends bytes that are no frames or half of one, and does it again."""
    loop = asyncio.get_running_loop()
    choice = random.Random(SEED)
    while True:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.setblocking(False)
            await loop.sock_connect(connection, path)
            kind = choice.randrange(4)
            if kind == 0:
                garbage = choice.randbytes(choice.randrange(1, 2000))
            elif kind == 1:  # a length of 4 GiB
                garbage = b"\xff\xff\xff\xff" + choice.randbytes(100)
            elif kind == 2:  # a whole frame around a broken message, and half of one
                garbage = wire.encode_frame(0x0010, choice.randbytes(50)) + b"\x00\x00\x10"
            else:  # a type that nobody knows, and a reply as a request
                garbage = wire.encode_frame(0x7777, b"") + wire.encode_frame(0x1001, b"")
            try:
                await loop.sock_sendall(connection, garbage)
                if choice.random() < 0.5:
                    connection.shutdown(socket.SHUT_WR)
                async with asyncio.timeout(0.05):
                    while await loop.sock_recv(connection, 65536):
                        pass
            except (OSError, TimeoutError):
                pass  # closed on us, or waiting for more: both are right


# ------------------------------------------------------------- what is left behind


def _leftovers(agent: AgentProcess) -> list[str]:
    """Files of containers that are gone."""
    return [
        str(path.relative_to(agent.directory))
        for parent in (agent.run_dir / "containers", agent.state_dir / "containers", agent.state_dir / "logs")
        for path in parent.glob("*")
    ]

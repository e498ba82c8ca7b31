"""32 connections and 100,000 mixed requests, beside a client that never reads and one that sends garbage."""

from __future__ import annotations

import asyncio
import random
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent import wire
from tools.stress import pipeline
from tools.stress.agent import PATIENCE, AgentProcess, Holdings
from tools.stress.pipeline import Check, Pipeline

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
    before = _settled(agent)

    faults, answered = asyncio.run(_load(agent, connections=CONNECTIONS, requests=REQUESTS, bad_clients=True))
    assert faults == []
    assert answered >= REQUESTS

    after = _settled(agent, like=before)
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
                group.create_task(_mixed_requests(one, random.Random(SEED * 1000 + number), share))
    finally:
        for task in bad:
            task.cancel()
        results = await asyncio.gather(*bad, return_exceptions=True)
        for one in pipelines:
            one.close()
    assert all(isinstance(result, asyncio.CancelledError) for result in results), results
    return [fault for one in pipelines for fault in one.faults][:20], sum(one.answered for one in pipelines)


async def _mixed_requests(client: Pipeline, choice: random.Random, count: int) -> None:
    sent = 0
    while sent < count:
        dice = choice.random()
        if dice < 0.955:
            sent += await _ping(client, choice)
        elif dice < 0.97:
            sent += await _info(client)
        elif dice < 0.985:
            sent += await _list(client, f"{client.name}-", {})
        elif dice < 0.9965:
            sent += await _exec(client, choice)
        elif dice < 0.9975:
            sent += await _unknown_container(client)
        else:
            sent += await _container_life(client, sent, choice)
    await client.all_answered()


# ------------------------------------------------- requests, each with its check


async def _ping(client: Pipeline, choice: random.Random) -> int:
    text = f"{client.name} {choice.getrandbits(64):x}" * choice.choice((1, 1, 1, 1, 50))
    await client.request(
        wire.PingRequest(message=text), wire.PingResponse, _is("message", f"pong: {text}")
    )
    return 1


async def _info(client: Pipeline) -> int:
    await client.request(
        wire.GetSystemInfoRequest(), wire.SystemInfo, _is("hostname", socket.gethostname())
    )
    return 1


async def _list(client: Pipeline, own: str, states: dict[str, str]) -> int:
    """Of the containers of this connection there must be exactly `states`."""

    def check(reply: Any) -> str | None:
        seen = {c.id: c.state for c in reply.containers if c.id.startswith(own)}
        return None if seen == states else f"lists {seen} instead of {states}"

    await client.request(wire.ListContainersRequest(all=True), wire.ListContainersResponse, check)
    return 1


async def _exec(client: Pipeline, choice: random.Random) -> int:
    text, code = f"{choice.getrandbits(64):x}", choice.randrange(256)
    out, err = text.encode() + b"\n", text[::-1].encode() + b"\n"

    def check(reply: Any) -> str | None:
        seen = (reply.data, reply.stderr, reply.exit_code, reply.done)
        return None if seen == (out, err, code, True) else f"exec gave {seen}, not {(out, err, code, True)}"

    script = f"echo {text}; echo {text[::-1]} >&2; exit {code}"
    await client.request(wire.ExecRequest(cmd=["/bin/sh", "-c", script], detail=True), wire.ExecOutput, check)
    return 1


async def _unknown_container(client: Pipeline) -> int:
    await client.request(wire.ExecRequest(container_id="nowhere", cmd=["true"]), None, _is("code", 404))
    return 1


async def _container_life(client: Pipeline, number: int, choice: random.Random) -> int:
    """Create to remove, all of it on the way at once: each step relies on the order."""
    id, text, code = f"{client.name}-{number}", f"{choice.getrandbits(64):x}", choice.randrange(256)
    cmd = ["/bin/sh", "-c", f"echo {text}; exit {code}"]
    await client.request(
        wire.CreateContainerRequest(id=id, name=f"name-{id}", cmd=cmd),
        wire.CreateContainerResponse,
        _is("id", id),
    )
    await client.request(wire.StartContainerRequest(id=id), wire.Empty)
    await client.request(
        wire.WaitContainerRequest(id=id), wire.WaitContainerResponse, _is("status_code", code)
    )
    await _list(client, f"{client.name}-", {id: "stopped"})
    await client.request(
        wire.LogsRequest(container_id=id), wire.LogEntry, _is("data", text.encode())
    )
    await client.request(wire.RemoveContainerRequest(id=id), wire.Empty)
    await _list(client, f"{client.name}-", {})
    return 7


def _is(field: str, value: object) -> Check:
    def check(reply: Any) -> str | None:
        seen = getattr(reply, field)
        return None if seen == value else f"{field} is {seen!r} instead of {value!r}"

    return check


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


def _settled(agent: AgentProcess, like: Holdings | None = None) -> Holdings:
    """What the agent holds, when it has come to rest."""
    deadline = time.monotonic() + PATIENCE / 4
    while True:
        now = agent.holdings()
        at_rest = like is None or (now.files == like.files and now.children == like.children)
        if at_rest or time.monotonic() > deadline:
            return now
        time.sleep(0.1)


def _leftovers(agent: AgentProcess) -> list[str]:
    """Files of containers that are gone."""
    return [
        str(path.relative_to(agent.directory))
        for parent in (agent.run_dir / "containers", agent.state_dir / "containers", agent.state_dir / "logs")
        for path in parent.glob("*")
    ]

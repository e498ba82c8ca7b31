"""Many calls at a time: bounds, fairness between short and long ones, and closing."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable

import pytest

import arcbox_agent
from arcbox_agent.errors import CallTimeoutError, ConnectionLostError
from tests.conftest import RunAsync

from .servers import EMPTY, PATIENCE, PING, Server, answer_pings, closed_by_client, frame, pong, read_request, server


class Agent:
    """Answers pings; everything else only when `open` is set; counts what runs at a time."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.lock = threading.Lock()
        self.long = 0
        self.pings = 0
        self.most_pings = 0

    def __call__(self, connection: socket.socket) -> None:
        try:
            while True:
                request = read_request(connection)
                if request.type == PING:
                    with self.lock:
                        self.pings += 1
                        self.most_pings = max(self.pings, self.most_pings)
                    connection.sendall(pong(request))
                    with self.lock:
                        self.pings -= 1
                    continue
                with self.lock:
                    self.long += 1
                self.open.wait()
                with self.lock:
                    self.long -= 1
                connection.sendall(frame(EMPTY, b"", request.trace))
        except (EOFError, ConnectionError):
            pass


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_a_hundred_calls_run_while_follows_are_open(run_async: RunAsync) -> None:
    behaviour = Agent()

    async def follow(client: arcbox_agent.Client) -> object:
        return [entry async for entry in client.logs("web", follow=True)]

    async def main(agent: Server) -> None:
        async with arcbox_agent.connect(agent.address, max_connections=4, max_streams=10) as client:
            follows = [asyncio.create_task(follow(client)) for _ in range(10)]
            await until(lambda: behaviour.long == 10)
            replies = await asyncio.gather(*(client.ping() for _ in range(100)))
            assert [reply.message for reply in replies] == ["pong"] * 100
            assert not any(task.done() for task in follows)
            assert agent.accepted <= 14
            behaviour.open.set()
            assert await asyncio.gather(*follows) == [[]] * 10

    with server(behaviour) as agent:
        run_async(main(agent))
    assert behaviour.most_pings <= 4


def test_an_agent_is_not_asked_anew_while_a_connection_to_it_lives(run_async: RunAsync) -> None:
    following = threading.Event()

    def follows(connection: socket.socket) -> None:
        connection.sendall(pong(read_request(connection)))
        assert read_request(connection).type == 0x0021
        following.set()
        assert closed_by_client(connection)

    def starts(connection: socket.socket) -> None:
        request = read_request(connection)
        assert request.type == 0x0011
        connection.sendall(frame(EMPTY, b"", request.trace))
        assert closed_by_client(connection)

    async def main(address: str) -> None:
        async with arcbox_agent.connect(address) as client:
            async with client.logs("web", follow=True) as entries:
                followed = asyncio.create_task(entries.batch())
                assert await asyncio.to_thread(following.wait, PATIENCE)
                await client.start_container("web")
            assert await followed == []

    with server(follows, starts) as agent:
        run_async(main(agent.address))


def test_calls_one_after_the_other_share_one_connection(run_async: RunAsync) -> None:
    async def main(agent: Server) -> None:
        async with arcbox_agent.connect(agent.address) as client:
            for _ in range(50):
                await client.ping()
        assert agent.accepted == 1

    with server(answer_pings) as agent:
        run_async(main(agent))


def test_more_streams_than_allowed_wait_for_their_turn(run_async: RunAsync) -> None:
    behaviour = Agent()

    async def follow(client: arcbox_agent.Client) -> object:
        return [entry async for entry in client.logs("web", follow=True)]

    async def main(agent: Server) -> None:
        async with arcbox_agent.connect(agent.address, max_streams=2) as client:
            follows = [asyncio.create_task(follow(client)) for _ in range(5)]
            await until(lambda: behaviour.long == 2)
            await client.ping()
            assert behaviour.long == 2
            behaviour.open.set()
            assert await asyncio.gather(*follows) == [[]] * 5
            assert agent.accepted <= 3

    with server(behaviour) as agent:
        run_async(main(agent))


def test_a_wait_for_a_free_connection_ends_in_time(run_async: RunAsync) -> None:
    behaviour = Agent()

    async def main(address: str) -> None:
        async with arcbox_agent.connect(address, max_streams=1, timeout=0.3) as client:
            first = asyncio.create_task(anext(client.logs("web", follow=True), None))
            await until(lambda: behaviour.long == 1)
            with pytest.raises(CallTimeoutError, match=r"logs: no reply after 0.3 s"):
                await anext(client.logs("web", follow=True))
            # The slot of the one that gave up is nobody's loss.
            behaviour.open.set()
            assert await first is None
            assert [entry async for entry in client.logs("web", follow=True)] == []

    with server(behaviour) as agent:
        run_async(main(agent.address))


def test_a_wait_or_a_stop_keeps_no_short_call_waiting(run_async: RunAsync) -> None:
    behaviour = Agent()

    async def main(address: str) -> None:
        async with arcbox_agent.connect(address, max_connections=1) as client:
            calls = [
                asyncio.create_task(client.stop_container("a")),
                asyncio.create_task(client.remove_container("b", force=True)),
            ]
            await until(lambda: behaviour.long == 2)
            await client.ping()
            behaviour.open.set()
            await asyncio.gather(*calls)

    with server(behaviour) as agent:
        run_async(main(agent.address))


def test_a_client_that_is_closed_ends_its_calls_and_refuses_others(run_async: RunAsync) -> None:
    behaviour = Agent()

    async def main(address: str) -> None:
        client = await arcbox_agent.connect(address)
        call = asyncio.create_task(client.stop_container("a"))
        await until(lambda: behaviour.long == 1)
        await client.aclose()
        with pytest.raises(ConnectionLostError, match="the client was closed"):
            await call
        with pytest.raises(ConnectionLostError, match="the client was closed"):
            await client.ping()
        await client.aclose()
        behaviour.open.set()

    with server(behaviour) as agent:
        run_async(main(agent.address))


def test_a_client_may_be_closed_while_it_dials(run_async: RunAsync) -> None:
    dialled = threading.Event()

    def silent(connection: socket.socket) -> None:
        dialled.set()
        closed_by_client(connection)

    def answers_one_ping(connection: socket.socket) -> None:
        connection.sendall(pong(read_request(connection)))
        closed_by_client(connection)

    async def main(agent: Server) -> None:
        client = await arcbox_agent.connect(agent.address)
        calls = [asyncio.create_task(client.ping()) for _ in range(3)]
        await asyncio.to_thread(dialled.wait)
        await client.aclose()
        for call in calls:
            with pytest.raises(ConnectionLostError):
                await call

    with server(answers_one_ping, silent) as agent:
        run_async(main(agent))


def test_a_client_may_be_closed_while_it_asks_an_agent_anew(run_async: RunAsync) -> None:
    asked = threading.Event()

    def silent(connection: socket.socket) -> None:
        read_request(connection)
        asked.set()
        assert closed_by_client(connection)

    async def main(agent: Server) -> None:
        client = await arcbox_agent.connect(agent.address, timeout=None)
        agent.join()
        call = asyncio.create_task(client.start_container("web"))
        assert await asyncio.to_thread(asked.wait, PATIENCE)
        await client.aclose()
        with pytest.raises(ConnectionLostError, match="the client was closed"):
            await call

    with server(lambda c: c.sendall(pong(read_request(c))), silent) as agent:
        run_async(main(agent))


def test_a_call_goes_over_the_connection_that_was_used_last(run_async: RunAsync) -> None:
    asked = threading.Semaphore(0)
    pinged: list[int] = []
    may_answer = {1: threading.Event(), 2: threading.Event()}

    def serve(connection: socket.socket) -> None:
        number = agent.accepted
        while True:
            try:
                request = read_request(connection)
            except (EOFError, ConnectionError):
                return
            if request.type == PING:
                pinged.append(number)
                connection.sendall(pong(request))
                continue
            asked.release()
            assert may_answer[number].wait(PATIENCE)
            connection.sendall(frame(EMPTY, b"", request.trace))

    async def main(address: str) -> None:
        async with arcbox_agent.connect(address) as client:
            first = asyncio.create_task(client.start_container("web"))
            assert await asyncio.to_thread(asked.acquire, timeout=PATIENCE)
            # The first connection is busy, so this call opens the second.
            second = asyncio.create_task(client.start_container("web"))
            assert await asyncio.to_thread(asked.acquire, timeout=PATIENCE)
            for number, call in enumerate((first, second), 1):
                may_answer[number].set()
                await call
            pinged.clear()
            for _ in range(3):
                await client.ping()
            assert pinged == [2, 2, 2]

    with server(serve) as agent:
        run_async(main(agent.address))


def test_calls_that_are_cancelled_at_random_leave_no_slot_taken(run_async: RunAsync) -> None:
    connections: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        connections.append(connection)
        answer_pings(connection)
        connections.remove(connection)

    async def main(agent: Server) -> None:
        async with arcbox_agent.connect(agent.address, max_connections=2) as client:
            for step in range(30):
                calls = [asyncio.create_task(client.ping()) for _ in range(6)]
                for _ in range(step % 7):
                    await asyncio.sleep(0)
                for call in calls[step % 3 :]:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            # Both slots are free: two calls at a time, and as many after them.
            await asyncio.wait_for(asyncio.gather(*(client.ping() for _ in range(8))), PATIENCE)
            # The agent notices the closed connections in its own time.
            await asyncio.wait_for(until(lambda: len(connections) <= 2), PATIENCE)

    with server(serve) as agent:
        run_async(main(agent))


def test_a_pool_without_a_connection_is_refused(run_async: RunAsync) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="at least one connection"):
            await arcbox_agent.connect("unix:///a", max_streams=0)

    run_async(main())

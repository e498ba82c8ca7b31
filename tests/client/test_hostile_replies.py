"""What a guest answers costs its host no more than the bounds of the client, whatever it says."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import arcbox_agent
from arcbox_agent import wire
from arcbox_agent.errors import DecodeError, OutputLimitError, ReplyLimitError, TooManyItemsError
from tests.conftest import RunAsync

from .servers import PING, Replies, Request, frame, pong, read_request, server

LIST = wire.ListContainersResponse.TYPE


def hostile(replies: Replies) -> Callable[[socket.socket], None]:
    """Pings as our agent answers them; all else as `replies` has it, until the client closes."""

    def serve(connection: socket.socket) -> None:
        try:
            while True:
                request = read_request(connection)
                if request.type == PING:
                    connection.sendall(pong(request))
                else:
                    for reply in replies(request):
                        connection.sendall(reply)
        except (EOFError, ConnectionError):
            pass

    return serve


def listed(run_async: RunAsync, replies: Replies) -> list[wire.ContainerInfo]:
    async def main(address: str) -> list[wire.ContainerInfo]:
        async with arcbox_agent.connect(address) as client:
            return await client.list_containers(all=True)

    with server(hostile(replies)) as agent:
        return run_async(main(agent.address))


def test_a_list_of_very_many_containers_is_refused_by_their_number(run_async: RunAsync) -> None:
    def replies(request: Request) -> Iterator[bytes]:
        yield frame(LIST, b"\x0a\x00" * 8_000_000, request.trace)

    with pytest.raises(TooManyItemsError, match=r"^ListContainersResponse\.containers: more than 65536 items"):
        listed(run_async, replies)


def test_a_list_without_end_is_given_up(run_async: RunAsync) -> None:
    pages = itertools.count(1)

    def replies(request: Request) -> Iterator[bytes]:
        row = wire.ContainerInfo(id="x", command=["y" * 1_000_000])
        page = wire.ListContainersResponse(containers=[row] * 4, next=str(next(pages)))
        yield frame(LIST, page.encode(), request.trace)

    with pytest.raises(ReplyLimitError, match="the list of containers is longer than 67108864 bytes: ask with a fil"):
        listed(run_async, replies)
    assert next(pages) < 20


@pytest.mark.parametrize(
    "page",
    [
        wire.ListContainersResponse(next="1"),
        wire.ListContainersResponse(containers=[wire.ContainerInfo(id="x")], next="1"),
    ],
    ids=["an empty page", "the same page again"],
)
def test_pages_that_lead_nowhere_are_a_broken_reply(run_async: RunAsync, page: wire.ListContainersResponse) -> None:
    with pytest.raises(DecodeError, match=r"^ListContainersResponse\.next: "):
        listed(run_async, lambda request: [frame(LIST, page.encode(), request.trace)])


@pytest.mark.parametrize("piece", [b"", b"x"], ids=["empty", "of a byte"])
def test_output_in_very_many_pieces_takes_the_memory_of_its_bytes(tmp_path: Path, piece: bytes) -> None:
    one = wire.ExecOutput(stream="stdout", data=piece)
    many = 1_000_000

    def replies(request: Request) -> Iterator[bytes]:
        data = frame(wire.ExecOutput.TYPE, one.encode(), request.trace)
        for _ in range(many // 1000):
            yield data * 1000
        yield frame(wire.ExecOutput.TYPE, wire.ExecOutput(done=True).encode(), request.trace)

    program = (
        "import resource, sys\n"
        "from arcbox_agent import sync\n"
        "with sync.connect(sys.argv[1]) as client:\n"
        " client.ping()\n"
        " before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        " result = client.exec(['x'])\n"
        " print(len(result.stdout), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    with server(hostile(replies)) as agent:
        child = subprocess.run(
            [sys.executable, "-c", program, agent.address], capture_output=True, text=True, check=True
        )
    size, grown = map(int, child.stdout.split())
    assert size == many * len(piece)
    assert grown < 16 << 10


def test_what_comes_with_the_end_of_a_command_counts_too(run_async: RunAsync) -> None:
    def replies(request: Request) -> Iterator[bytes]:
        last = wire.ExecOutput(stream="stdout", data=b"x" * 600, stderr=b"y" * 600, done=True)
        yield frame(wire.ExecOutput.TYPE, last.encode(), request.trace)

    async def main(address: str) -> None:
        async with arcbox_agent.connect(address) as client:
            await client.exec(["x"], output_limit=1000)

    with server(hostile(replies)) as agent, pytest.raises(OutputLimitError):
        run_async(main(agent.address))


@pytest.mark.parametrize("over", [0, 1])
def test_a_list_of_as_many_texts_as_it_may_have_is_taken_and_one_more_is_refused(
    run_async: RunAsync, over: int
) -> None:
    texts = [f"{number:4000}" for number in range(4096 + over)]

    def replies(request: Request) -> Iterator[bytes]:
        yield wire.encode_message(wire.AgentInfo(features=texts), request.trace.decode())

    async def main(address: str) -> list[str]:
        async with arcbox_agent.connect(address) as client:
            return (await client.agent_info()).features

    with server(hostile(replies)) as agent:
        if over:
            with pytest.raises(TooManyItemsError, match=r"^AgentInfo\.features: more than 4096 items"):
                run_async(main(agent.address))
        else:
            assert run_async(main(agent.address)) == texts

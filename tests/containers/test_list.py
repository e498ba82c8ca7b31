"""A list of containers, however many they are and however long their commands."""

from __future__ import annotations

from typing import Any

import pytest

from arcbox_agent import sync
from arcbox_agent.agent.containers.listing import cut
from arcbox_agent.wire import ContainerInfo, Error, ListContainersRequest, ListContainersResponse
from tests.agent.peer import Peer
from tests.conftest import StartAgent

WORD = "y" * 100_000


def ask(peer: Peer, request: ListContainersRequest) -> ListContainersResponse:
    reply = peer.ask(request)
    assert isinstance(reply, ListContainersResponse), reply
    return reply


def test_forty_long_commands_are_listed_whole_to_who_takes_pages_and_cut_to_who_does_not(
    client: sync.Client, agent: Any
) -> None:
    commands = [["sh", "-c", f"true {n}", *[WORD] * 5] for n in range(40)]
    for n, command in enumerate(commands):
        client.create_container(id=f"m{n}", cmd=command)
    listed = client.list_containers(all=True)
    assert [each.id for each in listed] == [f"m{n}" for n in range(40)]
    assert [each.command for each in listed] == commands
    with Peer(agent.socket_path) as peer:
        whole = ask(peer, ListContainersRequest(all=True, detail=True))
        assert whole.next == ""
        assert [each.id for each in whole.containers] == [f"m{n}" for n in range(40)]
        for row, command in zip(whole.containers, commands, strict=True):
            assert row.command[:3] == command[:3]
            assert row.command[-1].endswith("…")
        # As much of each as there is room for.
        assert 3 << 20 < len(whole.encode()) < 4 << 20
        # alpha.1's rows have none of it, and are as they ever were.
        plain = ask(peer, ListContainersRequest(all=True))
        assert [(each.id, each.state, each.command) for each in plain.containers] == [
            (f"m{n}", "created", []) for n in range(40)
        ]


def test_pages_follow_each_other_though_their_last_container_is_removed(client: sync.Client, agent: Any) -> None:
    ids = [client.create_container(id=f"c{n}", cmd=["true"]).id for n in range(10)]
    found = []
    with Peer(agent.socket_path) as peer:
        request = ListContainersRequest(all=True, detail=True, limit=4)
        sizes = []
        while True:
            page = ask(peer, request)
            found += [each.id for each in page.containers]
            sizes.append(len(page.containers))
            if not page.next:
                break
            request.after = page.next
            client.remove_container(found[-1])
        assert (found, sizes) == (ids, [4, 4, 2])
        for wrong in ("c3", "x:c3", "-1:c3", "9" * 30 + ":c3"):
            reply = peer.ask(ListContainersRequest(all=True, limit=4, after=wrong))
            assert reply == Error(code=400, message="after: not the `next` of a page")


def test_a_page_ends_where_it_is_long_enough(client: sync.Client, agent: Any) -> None:
    for n in range(12):
        client.create_container(id=f"m{n}", cmd=["echo", *[WORD] * 3])
    with Peer(agent.socket_path) as peer:
        page = ask(peer, ListContainersRequest(all=True, detail=True, limit=100))
        assert [each.id for each in page.containers] == ["m0", "m1", "m2"]
        page = ask(peer, ListContainersRequest(all=True, detail=True, limit=100, text_limit=1000))
        assert [each.id for each in page.containers] == [f"m{n}" for n in range(12)]
        assert page.next == ""
        for row in page.containers:
            assert row.command[0] == "echo"
            assert row.command[1].startswith("yyy")
            assert row.command[1].endswith("y…")
            assert len(row.encode()) < 1200


@pytest.mark.parametrize("paged", [True, False])
def test_every_container_fits_the_smallest_frame(start_agent: StartAgent, paged: bool) -> None:
    agent = start_agent(max_frame_size="512KiB", max_queued_total="512KiB")
    with sync.connect(agent.address, wait=10) as client:
        for n in range(5):
            client.create_container(id=f"m{n}", cmd=["echo", *[WORD] * 4])
        if paged:
            listed = client.list_containers(all=True)
        else:
            with Peer(agent.socket_path) as peer:
                listed = ask(peer, ListContainersRequest(all=True, detail=True)).containers
        assert [each.id for each in listed] == [f"m{n}" for n in range(5)]
        for row in listed:
            assert len(row.encode()) > (300_000 if paged else 40_000)
            assert row.command[:1] == ["echo"]


def test_hundreds_of_containers_come_in_the_order_of_their_creation(client: sync.Client) -> None:
    ids = [client.create_container(cmd=["true"]).id for _ in range(300)]
    assert [each.id for each in client.list_containers(all=True)] == ids


@pytest.mark.parametrize("most", [1, 64, 300, 5000])
def test_what_is_cut_is_a_beginning_with_a_mark(most: int) -> None:
    def row() -> ContainerInfo:
        return ContainerInfo(
            name="n" * 20, image="é" * 2000, user="u", error="e" * 3000, command=["a" * 500] * 100, warnings=["w"] * 99
        )

    shorter = row()
    cost = cut(shorter, most)
    assert shorter.name == "n" * 20
    for field in ("image", "user", "error"):
        shown, text = getattr(shorter, field), getattr(row(), field)
        assert shown == text or (shown.endswith("…") and text.startswith(shown[:-1]))
    assert shorter.command[-1].endswith("…")
    assert set(shorter.command[:-1]) <= {"a" * 500}
    assert shorter.warnings == ["…"]
    assert len(shorter.encode()) <= cost < most + 400

"""Cgroups of containers: any id, any depth, any number, and those that are frozen."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent import sync
from arcbox_agent.agent.processes.cgroups import Cgroup, find_parent
from arcbox_agent.agent.processes.scopes import cgroup_name
from arcbox_agent.errors import AgentFailedError, ConflictError
from tools.pace import patience

from .support import alive, eventually


def parent_of(agent: Any) -> str:
    parent = find_parent(cgroup_name(str(agent.state_dir)))
    assert parent is not None, "these tests need cgroup2, writable"
    return parent


@pytest.fixture
def top() -> Iterator[Cgroup]:
    parent = find_parent(f"arcbox-tests-{os.getpid()}")
    assert parent is not None, "these tests need cgroup2, writable"
    cgroup = Cgroup(f"{parent}/top")
    cgroup.create()
    yield cgroup
    cgroup.remove()
    os.rmdir(parent)


def nest(path: str, depth: int) -> None:
    """Cgroups one in the other; no path is as long as that of the innermost."""
    here = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_an_id_that_is_the_name_of_a_file_in_every_cgroup_is_one_as_any_other(client: sync.Client, agent: Any) -> None:
    client.exec(["true"])  # there is a cgroup of the guest's commands
    parent = parent_of(agent)
    names = [name for name in os.listdir(parent) if name[0].isalnum()]
    assert {"cgroup.procs", "cgroup.kill", "cgroup.events"} <= {*names}
    for name in (*names, "memory.max", "tasks", "notify_on_release", "exec-1", "commands"):
        client.create_container(id=name, cmd=["sleep", "1000"])
        client.start_container(name)
        assert client.exec(["true"], container=name).exit_code == 0
        client.remove_container(name, force=True)
    assert [name for name in os.listdir(parent) if os.path.isdir(f"{parent}/{name}")] == [".commands"]


def test_a_container_whose_cgroup_an_earlier_agent_named_is_found_and_ended(start_agent: Callable[..., Any]) -> None:
    agent = start_agent(containers_at_exit="leave")
    parent = parent_of(agent)
    with sync.connect(agent.address, wait=10) as client:
        for id in ("old", "over"):
            client.create_container(id=id, cmd=["sh", "-c", "sleep 1001 & exec sleep 1000"])
            client.start_container(id)
        eventually(lambda: len(Cgroup(f"{parent}/@old").pids()) == 2)
        pids = Cgroup(f"{parent}/@old").pids()
        client.stop_container("over", timeout=0)
    agent.kill()
    for name in ("old", "over"):
        os.mkdir(f"{parent}/{name}")
    for pid in pids:
        Path(parent, "old", "cgroup.procs").write_text(str(pid))
    os.rmdir(f"{parent}/@old")
    agent.restart()
    with sync.connect(agent.address, wait=10) as client:
        assert not os.path.exists(f"{parent}/over")  # it does not run
        assert client.exec(["sh", "-c", "cat /proc/self/cgroup"], container="old").stdout.count(b"/old/.exec-") == 1
        client.stop_container("old", timeout=0)
        assert not any(map(alive, pids))
        assert not os.path.exists(f"{parent}/old")
        client.start_container("old")
        assert os.path.isdir(f"{parent}/@old")
        client.remove_container("old", force=True)
        client.remove_container("over")


@pytest.mark.parametrize(("depth", "beside"), [(40, 0), (3000, 0), (1, 2000)])
def test_cgroups_that_a_container_made_are_looked_through_and_removed(top: Cgroup, depth: int, beside: int) -> None:
    nest(top.path, depth)
    for number in range(beside):
        os.mkdir(f"{top.path}/d/{number}")
    before = time.monotonic()
    assert top.pids() == set()
    assert top.send_signal(0) == 0
    assert top.remove()
    assert not os.path.exists(top.path)
    assert time.monotonic() - before < patience(60)


def test_a_removed_container_leaves_no_cgroup_however_deep_it_nested_them(client: sync.Client, agent: Any) -> None:
    parent = parent_of(agent)
    nesting = "for i in $(seq 100); do mkdir d && cd d || exit 1; done; sleep 1000 & echo $! > cgroup.procs"
    script = f"cd {parent}/@x && {nesting}"
    client.create_container(id="x", cmd=["sh", "-c", script])
    client.start_container("x")
    assert client.wait_container("x").status_code == 0
    assert not os.path.exists(f"{parent}/@x")
    client.remove_container("x")


def test_nothing_is_started_in_a_frozen_cgroup_and_the_error_says_so(client: sync.Client, agent: Any) -> None:
    parent = parent_of(agent)
    for id in ("x", "y"):
        client.create_container(id=id, cmd=["sleep", "1000"])
    client.start_container("x")
    for frozen in (f"{parent}/@x", parent):
        Path(frozen, "cgroup.freeze").write_text("1")
        try:
            with pytest.raises(ConflictError, match="container x is frozen: write 0 to cgroup.freeze"):
                client.exec(["true"], container="x")
            if frozen == parent:
                with pytest.raises(ConflictError, match="guest's commands is frozen"):
                    client.exec(["true"])
                with pytest.raises(AgentFailedError, match="failed to start: its cgroup is frozen"):
                    client.start_container("y")
            else:
                assert client.exec(["true"]).exit_code == 0
        finally:
            Path(frozen, "cgroup.freeze").write_text("0")
        assert client.exec(["true"], container="x").exit_code == 0
    client.start_container("y")
    Path(parent, "@x", "cgroup.freeze").write_text("1")
    client.stop_container("x", timeout=0)  # what is frozen can be killed
    client.remove_container("y", force=True)

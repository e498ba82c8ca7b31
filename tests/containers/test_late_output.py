"""Output that comes after the end of what wrote it: by way of a helper, or from what goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from arcbox_agent import sync, wire
from arcbox_agent.agent.processes.helpers import HELPERS, NOBODY, OTHERS, file_id, holders
from tests.containers.support import eventually
from tests.containers.test_exec import raw

#: What a helper does with what it is given, and what of it must arrive.
HELPED = {
    "slow to start": ("exec > >(sleep 0.4; cat); echo hello", b"hello\n"),
    "slow a line": (
        'exec > >(while read l; do sleep 0.05; echo "$l"; done); seq 1 30',
        b"".join(b"%d\n" % number for number in range(1, 31)),
    ),
    "of much": ("exec > >(sleep 0.2; cat); head -c 3000000 /dev/zero", bytes(3000000)),
    "of two in a row": ("exec > >(sleep 0.3; cat | (sleep 0.3; cat)); echo hello", b"hello\n"),
}


@pytest.mark.parametrize("what", HELPED)
def test_a_command_ends_with_what_its_helper_passes_on(client: sync.Client, what: str) -> None:
    script, expected = HELPED[what]
    result = client.exec(["bash", "-c", f"{script}; exit 3"])
    assert result.stdout == expected
    assert (result.exit_code, result.output_cut) == (3, False)


def test_standard_error_has_helpers_too(client: sync.Client) -> None:
    result = client.exec(["bash", "-c", "exec 2> >(sleep 0.4; cat >&2); echo hello >&2"])
    assert (result.stderr, result.output_cut) == (b"hello\n", False)


@pytest.mark.parametrize("what", ["slow to start", "slow a line", "of two in a row"])
def test_a_container_ends_with_what_its_helper_passes_on(client: sync.Client, what: str) -> None:
    script, expected = HELPED[what]
    id = client.create_container(cmd=["bash", "-c", f"{script}; exit 3"]).id
    client.start_container(id)
    end = client.wait_container(id)
    assert b"".join(entry.data + b"\n" for entry in client.logs(id)) == expected
    assert (end.status_code, end.output_cut) == (3, False)


def test_a_command_does_not_wait_for_what_goes_on_and_says_that_it_holds_the_output(client: sync.Client) -> None:
    before = time.monotonic()
    result = client.exec(["sh", "-c", "sleep 1000 & echo $!"])
    took = time.monotonic() - before
    os.kill(int(result.stdout), signal.SIGKILL)
    assert result.output_cut
    assert took < 1.5  # `late_output` is 2 s
    assert not client.exec(["sh", "-c", "sleep 1000 >/dev/null 2>&1 & kill -9 $!"]).output_cut


def test_a_peer_that_asks_for_no_detail_gets_none(agent: Any) -> None:
    request = wire.ExecRequest(cmd=["sh", "-c", "sleep 1 & true"])
    assert not raw(agent, request).output_cut
    request.detail = True
    assert raw(agent, request).output_cut


def test_a_helper_that_does_not_end_is_waited_for_as_long_as_is_set(start_agent: Callable[..., Any]) -> None:
    agent = start_agent(late_output="0.5")
    with sync.connect(agent.address) as client:
        before = time.monotonic()
        result = client.exec(["bash", "-c", "exec > >(echo $BASHPID; exec sleep 1000); true"])
        silent = time.monotonic() - before
        os.kill(int(result.stdout), signal.SIGKILL)
        assert result.output_cut
        assert 0.5 <= silent < 2.0
        # One that writes without end is left after five times as long.
        before = time.monotonic()
        result = client.exec(["bash", "-c", "exec > >(while echo $BASHPID; do sleep 0.05; done); true"])
        busy = time.monotonic() - before
        assert result.output_cut
        assert 2.5 <= busy < 5.0


def test_a_container_whose_helper_is_killed_says_so(start_agent: Callable[..., Any]) -> None:
    agent = start_agent(late_output="0.5")
    with sync.connect(agent.address) as client:
        id = client.create_container(cmd=["bash", "-c", "exec > >(exec sleep 1000); echo hello; exit 3"]).id
        client.start_container(id)
        end = client.wait_container(id)
        assert (end.status_code, end.output_cut) == (3, True)
        agent.kill()
        agent.restart()
        end = client.wait_container(id)
        assert (end.status_code, end.output_cut) == (3, True)  # it is on record
    assert "raise late_output" in agent.log()


def test_a_stop_does_not_wait_for_helpers(client: sync.Client) -> None:
    script = "exec > >(exec sleep 1000); exec sleep 1000"
    id = client.create_container(cmd=["bash", "-c", script]).id
    client.start_container(id)
    eventually(lambda: client.exec(["sleep", "0"], container=id).exit_code == 0)
    before = time.monotonic()
    client.stop_container(id, timeout=0)
    assert time.monotonic() - before < 1.5  # `late_output` is 2 s
    assert client.list_containers(all=True, filter=id)[0].state == "stopped"


def test_a_helper_is_what_has_the_output_open_and_reads_from_a_pipe() -> None:
    reading, writing = os.pipe()
    feed, fed = os.pipe()

    def holder(stdin: int, stdout: int) -> int:
        actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1)]
        return os.posix_spawn("/bin/sleep", ["sleep", "1000"], {}, file_actions=actions)

    null = os.open("/dev/null", os.O_RDWR)
    pids = [holder(feed, null), holder(null, writing), holder(feed, writing)]
    stranger, daemon, helper = pids
    output = [file_id(reading)]
    try:
        assert holders([stranger], output) == NOBODY
        assert holders([daemon], output) == OTHERS
        assert holders([stranger, daemon, helper], output) == HELPERS
        assert holders([helper, daemon], output) == HELPERS
        assert holders([helper], output, [file_id(fed)]) == OTHERS
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for fd in (reading, writing, feed, fed, null):
            os.close(fd)
    assert holders(pids, output) == NOBODY

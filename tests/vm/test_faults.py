"""A guest in trouble: PID 1 fails, its disk is full.  The agent is there afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from arcbox_agent.client import Client
from arcbox_agent.errors import RequestError
from tests.containers.support import eventually
from tests.vm.conftest import with_client
from tests.vm.machine import Machine
from tests.vm.packages import REPOSITORY

#: The agent as PID 1, with a disk of two MiB for its state, and a way to make it fail: any
#: exception that nobody catches ends the loop like this one.
_PID_1 = f"""
import os, signal, subprocess, sys

def fail(*_):
    sys.exit("a fault for the test")

signal.signal(signal.SIGUSR1, fail)
sys.path.insert(0, {str(REPOSITORY / "src")!r})
if not os.path.exists("/small/state"):
    os.makedirs("/small")
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "size=2m", "small", "/small"], check=True)
from arcbox_agent.agent.daemon import main
sys.exit(main(["--state-dir", "/small/state"]))
"""


@pytest.fixture(scope="module")
def troubled() -> Iterator[Machine]:
    machine = Machine([sys.executable, "/pid1.py"], files={"/pid1.py": (_PID_1, 0o644)})
    yield machine
    machine.close()


def test_pid_1_starts_again_after_a_fault_and_its_containers_never_notice(troubled: Machine) -> None:
    script = "n=0; while [ ! -e /tmp/end ]; do n=$((n+1)); echo $n; sleep 0.05; done; echo last $n; exit 9"

    async def before(client: Client) -> tuple[str, int]:
        created = await client.create_container(cmd=["/bin/sh", "-c", script])
        await client.start_container(created.id)
        (container,) = await client.list_containers()
        await client.exec_detached(["/bin/sh", "-c", "kill -USR1 1"])
        return created.id, container.pid

    id, pid = with_client(troubled, before)
    troubled.wait_for_console("init: PID 1 never ends: starting again")

    async def after(client: Client) -> tuple[int, int, list[bytes]]:
        (container,) = await client.list_containers()
        await client.exec(["/bin/touch", "/tmp/end"], check=True)
        ended = await client.wait_container(id)
        lines = [entry.data async for entry in client.logs(id)]
        await client.remove_container(id)
        return container.pid, ended.status_code, lines

    same_pid, code, lines = with_client(troubled, after)
    assert same_pid == pid
    # It is the keeper's child, so its exit code is not lost.
    assert code == 9
    count = int(lines[-1].split()[1])
    assert lines == [b"%d" % number for number in range(1, count + 1)] + [b"last %d" % count]
    assert "a fault for the test" in troubled.console()


def test_the_exit_code_of_a_container_that_ends_while_pid_1_starts_again_is_not_lost(troubled: Machine) -> None:
    async def before(client: Client) -> str:
        script = "read x; kill -USR1 1; sleep 0.7; exit 9"
        created = await client.create_container(cmd=["/bin/sh", "-c", script], open_stdin=True)
        await client.start_container(created.id)
        # Only the zombie tells it: a kernel before 6.15 keeps no status of one that is reaped.
        go = f"sleep 0.5; echo >/run/arcbox-agent/containers/{created.id}/stdin"
        await client.exec_detached(["/bin/sh", "-c", go])
        return created.id

    said = "init: PID 1 never ends: starting again"
    faults = troubled.console().count(said)
    id = with_client(troubled, before)
    eventually(lambda: troubled.console().count(said) > faults)

    async def after(client: Client) -> tuple[int, str]:
        ended = await client.wait_container(id)
        await client.remove_container(id)
        return ended.status_code, ended.error

    assert with_client(troubled, after) == (9, "")


def test_a_full_disk_refuses_what_must_be_written_and_nothing_else(troubled: Machine) -> None:
    async def work(client: Client) -> None:
        running = await client.create_container(cmd=["/bin/sleep", "1000"])
        await client.start_container(running.id)
        await client.exec(["/bin/sh", "-c", "cat /dev/zero > /small/fill || true"])
        with pytest.raises(RequestError, match="(?i)no space left"):
            for _ in range(10):
                await client.create_container(cmd=["/bin/true"])
        assert (await client.ping("full")).message == "pong: full"
        assert [each.id for each in await client.list_containers()] == [running.id]
        result = await client.exec(["/bin/echo", "commands too"])
        assert result.stdout == b"commands too\n"
        await client.exec(["/bin/rm", "/small/fill"], check=True)
        again = await client.create_container(cmd=["/bin/true"])
        await client.start_container(again.id)
        assert (await client.wait_container(again.id)).status_code == 0
        await client.remove_container(running.id, force=True)

    with_client(troubled, work)


def test_a_program_in_the_guest_is_refused_unless_its_cid_is_allowed(troubled: Machine) -> None:
    # Closed without a word: with what it sends on the way, that may be a reset, or a broken pipe.
    connecting = """
import socket
with socket.socket(socket.AF_VSOCK) as stream:
    stream.settimeout(30)
    stream.connect((1, 1024))
    try:
        stream.sendall(bytes.fromhex("0000000a000000010a0470696e67"))
        print(stream.recv(100))
    except (ConnectionResetError, BrokenPipeError):
        print(b"")
"""

    async def work(client: Client) -> tuple[int, bytes, bytes]:
        result = await client.exec([sys.executable, "-c", connecting])
        return result.exit_code, result.stdout, result.stderr

    assert with_client(troubled, work) == (0, b"b''\n", b"")
    refusal = 'connection refused: peer is not allowed peer="cid 1" listener=vsock:1024 setting=allow_cid'
    eventually(lambda: refusal in troubled.console())

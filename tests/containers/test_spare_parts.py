"""What the spawns of commands use again instead of opening or mapping it anew, and its waits."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent import sync, wire
from arcbox_agent._entries import state_of
from arcbox_agent._spawn import read_at
from arcbox_agent.agent.processes.children import Processes
from arcbox_agent.agent.processes.lanes import Lanes
from arcbox_agent.agent.processes.pipes import null
from arcbox_agent.agent.processes.ready import Ready
from arcbox_agent.agent.processes.spec import SpawnSpec

from .support import eventually, run


def test_a_descriptor_wakes_once_until_it_is_waited_for_again() -> None:
    async def main() -> None:
        ready = Ready(asyncio.get_running_loop())
        reader, writer = os.pipe()
        woken: list[str] = []
        ready.once(reader, lambda: woken.append("first"))
        os.write(writer, b"x")
        await asyncio.sleep(0.05)
        assert woken == ["first"]  # though it was not read
        ready.once(reader, lambda: woken.append("second"))
        await asyncio.sleep(0.05)
        assert woken == ["first", "second"]
        ready.once(reader, lambda: woken.append("third"))
        ready.forget(reader)
        await asyncio.sleep(0.05)
        assert woken == ["first", "second"]
        ready.close()
        ready.forget(reader)
        ready.close()
        os.close(reader)
        os.close(writer)

    run(main())


def test_what_was_forgotten_in_the_same_turn_is_not_woken() -> None:
    async def main() -> None:
        ready = Ready(asyncio.get_running_loop())
        ends = [os.pipe() for _ in range(2)]
        woken: list[int] = []
        failures: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

        def wake(number: int) -> None:
            woken.append(number)
            ready.forget(ends[1 - number][0])

        for number, (reader, writer) in enumerate(ends):
            os.write(writer, b"x")
            ready.once(reader, lambda number=number: wake(number))  # type: ignore[misc]
        await asyncio.sleep(0.05)
        assert (len(woken), failures) == (1, [])
        ready.close()
        for fd in (fd for pair in ends for fd in pair):
            os.close(fd)

    run(main())


def test_a_spawn_closes_what_it_owns_and_leaves_what_it_was_lent() -> None:
    async def main() -> None:
        processes = Processes(asyncio.get_running_loop(), Lanes())
        reader, writer = os.pipe2(os.O_CLOEXEC)
        spec = SpawnSpec(["/bin/sh", "-c", "echo said"], stdio=(null(), writer, null()))
        spec.lent.add(null())
        await (await processes.spawn(spec)).wait()
        assert os.read(reader, 100) == b"said\n"
        assert os.read(reader, 100) == b""  # nobody has the other end any more
        assert os.readlink(f"/proc/self/fd/{null()}") == "/dev/null"
        os.close(reader)
        await processes.close()

    run(main())


def test_spawns_use_their_stacks_again() -> None:
    def mappings() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    async def main() -> None:
        processes = Processes(asyncio.get_running_loop(), Lanes())

        async def spawn(program: str) -> None:
            spec = SpawnSpec([program], stdio=(null(), null(), null()))
            spec.lent.add(null())
            await (await processes.spawn(spec)).wait()

        await spawn("/bin/true")
        before = mappings()
        for _ in range(40):
            await spawn("/bin/true")
        assert mappings() < before + 20
        await processes.close()

    run(main())


def test_commands_in_the_guest_use_one_descriptor_each_of_dev_null_and_of_their_cgroup(agent: Any) -> None:
    def held() -> list[str]:
        directory = Path(f"/proc/{agent.process.pid}/fd")
        targets = [os.readlink(fd) for fd in directory.iterdir()]
        return sorted(each for each in targets if each == "/dev/null" or "/.exec-" in each)

    with sync.connect(agent.address) as client:
        client.exec(["true"])
        before = held()
        assert sum("/.exec-" in each for each in before) <= 1
        for _ in range(5):
            client.exec(["true"])
        eventually(lambda: held() == before)


def test_a_command_goes_on_writing_into_a_wide_pipe_while_its_client_does_not_read(agent: Any, tmp_path: Path) -> None:
    done = tmp_path / "done"
    script = f"head -c 4096 /dev/zero; sleep 0.3; head -c 900000 /dev/zero; touch {done}"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(str(agent.address).removeprefix("unix://"))
        request = wire.ExecRequest(cmd=["sh", "-c", script], stream=True)
        connection.sendall(wire.encode_message(request))
        eventually(done.exists)


def test_a_file_of_the_kernel_is_read_below_a_directory_and_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "events").write_bytes(b"populated 0\n" * 1000)
    directory = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    assert read_at(directory, b"events") == (b"populated 0\n" * 1000)[:4096]
    assert read_at(-1, str(tmp_path / "events")) == read_at(directory, "events")
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_at(directory, b"nothing")
    with pytest.raises(IsADirectoryError):
        read_at(-1, tmp_path.as_posix())
    os.close(directory)


def test_the_state_of_files_changes_with_each_of_them(tmp_path: Path) -> None:
    one, two = bytes(tmp_path / "one"), bytes(tmp_path / "two")
    seen = [state_of(one, two)]

    def changed() -> bool:
        seen.append(state_of(one, two))
        return seen[-1] != seen[-2]

    Path(os.fsdecode(two)).write_text("a")
    assert changed()
    Path(os.fsdecode(one)).write_text("a")
    assert changed()
    assert not changed()
    Path(os.fsdecode(one)).write_text("bc")
    assert changed()
    os.replace(two, one)
    assert changed()

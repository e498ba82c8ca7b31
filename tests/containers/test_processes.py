"""One owner per child: its status is taken once, by its pidfd, and nothing is left of a failure."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import os
import resource
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from arcbox_agent._spawn import SpawnError, spawn
from arcbox_agent.agent.processes.children import Process, Processes
from arcbox_agent.agent.processes.lanes import Lanes
from arcbox_agent.agent.processes.spec import SpawnSpec
from arcbox_agent.agent.processes.stat_line import start_time_of
from arcbox_agent.agent.processes.status import ExitStatus

from .support import Counts, children, null, open_descriptors, run


def spec(*argv: str, **more: object) -> SpawnSpec:
    fd = null()
    return SpawnSpec(argv, stdio=(fd, fd, fd), **more)  # type: ignore[arg-type]


def test_a_process_ends_with_its_exit_code() -> None:
    async def main() -> None:
        processes = Processes(asyncio.get_running_loop(), Lanes())
        process = await processes.spawn(spec("/bin/sh", "-c", "exit 42"))
        assert await process.wait() == ExitStatus(42)
        assert process.pidfd == -1
        assert len(processes) == 0
        await processes.close()

    run(main())


def test_a_process_ends_by_a_signal() -> None:
    async def main() -> None:
        processes = Processes(asyncio.get_running_loop(), Lanes())
        process = await processes.spawn(spec("/bin/sleep", "60"))
        assert process.start_time == start_time_of(process.pid)
        assert process.send_signal(signal.SIGTERM)
        status = await process.wait()
        assert status == ExitStatus(0, signal.SIGTERM)
        assert status.shell_code == 143
        assert not process.send_signal(signal.SIGTERM)
        await processes.close()

    run(main())


def test_many_may_wait_and_one_that_gives_up_disturbs_no_other() -> None:
    async def main() -> None:
        processes = Processes(asyncio.get_running_loop(), Lanes())
        process = await processes.spawn(spec("/bin/sleep", "60"))
        waiters = [asyncio.create_task(process.wait()) for _ in range(5)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        process.send_signal(signal.SIGKILL)
        results = await asyncio.gather(*waiters, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1:] == [ExitStatus(0, 9)] * 4
        await processes.close()

    run(main())


@pytest.mark.parametrize(
    ("more", "number", "step"),
    [
        ({"argv": ("/no/such/program",)}, errno.ENOENT, "exec"),
        ({"argv": ("/etc/passwd",)}, errno.EACCES, "exec"),
        ({"argv": ("/bin/true",), "cwd": "/no/such"}, errno.ENOENT, "working directory"),
        ({"argv": ("/bin/true",), "root": "/no/such"}, errno.ENOENT, "root directory"),
        (
            {"argv": ("/bin/true",), "mounts": [("bind", "/no/such", "/mnt", "", False, False)], "new_namespace": True},
            errno.ENOENT,
            "mount source",
        ),
        (
            {"argv": ("/bin/true",), "mounts": [("bind", "/", "/no/such", "", False, False)], "new_namespace": True},
            errno.ENOENT,
            "mount target",
        ),
    ],
)
def test_a_failed_spawn_says_why_and_leaves_nothing(more: dict[str, object], number: int, step: str) -> None:
    async def main() -> None:
        processes = Processes(asyncio.get_running_loop(), Lanes())
        await (await processes.spawn(spec("/bin/true"))).wait()  # the thread's own descriptors are open now
        before = open_descriptors(), children()
        argv = more.pop("argv")
        with pytest.raises(SpawnError) as caught:
            await processes.spawn(spec(*argv, **more))  # type: ignore[misc]
        assert (caught.value.errno, caught.value.step) == (number, step)
        assert (open_descriptors(), children()) == before
        await processes.close()

    run(main())


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_a_plan_has_three_standard_streams(count: int) -> None:
    before = open_descriptors()
    with open("/dev/null", "r+b") as null, pytest.raises(ValueError, match=f"standard streams, not {count}$"):
        spawn(programs=["/bin/true"], argv=["true"], env=[], stdio=(null.fileno(),) * count)
    assert open_descriptors() == before


def test_a_thousand_spawns_leave_no_descriptor_and_no_zombie() -> None:
    async def main() -> None:
        processes = Processes(asyncio.get_running_loop(), Lanes())
        await asyncio.gather(*[(await processes.spawn(spec("/bin/true"))).wait() for _ in range(20)])
        gc.collect()  # an earlier test's loop may still hold its descriptors
        before = open_descriptors(), children()

        async def one(n: int) -> None:
            process = await processes.spawn(spec("/bin/sh", "-c", f"exit {n % 256}"))
            assert await process.wait() == ExitStatus(n % 256)

        for start in range(0, 1000, 100):
            await asyncio.gather(*(one(n) for n in range(start, start + 100)))
        assert (open_descriptors(), children()) == before
        await processes.close()

    run(main())


def test_a_spawn_whose_caller_gives_up_leaves_no_process() -> None:
    async def main() -> None:
        processes = Processes(asyncio.get_running_loop(), Lanes())
        before = open_descriptors(), children()
        for turns in range(1, 10):
            task = asyncio.create_task(processes.spawn(spec("/bin/sleep", "60")))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            result = (await asyncio.gather(task, return_exceptions=True))[0]
            if isinstance(result, Process):  # it was quicker
                result.send_signal(signal.SIGKILL)
                await result.wait()
        async with asyncio.timeout(20):
            while (open_descriptors(), children()) != before or len(processes):
                await asyncio.sleep(0.01)
        await processes.close()

    run(main())


def test_the_program_sees_three_descriptors_default_signals_and_nothing_of_the_agent() -> None:
    async def main() -> bytes:
        processes = Processes(asyncio.get_running_loop(), Lanes())
        extra = os.open("/etc/passwd", os.O_RDONLY)
        os.set_inheritable(extra, True)
        old = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        os.environ["AGENT_SECRET"] = "leaks"
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            script = "import os,sys; print(sorted(os.listdir('/proc/self/fd'))[:3], len(os.listdir('/proc/self/fd')));"
            script += "print(dict(os.environ)); print(os.getsid(0) == os.getpid(), oct(os.umask(0)));"
            script += "print([l.split()[1] for l in open('/proc/self/status') if l[:6] in ('SigBlk', 'SigIgn')])"
            process = await processes.spawn(
                SpawnSpec(
                    [os.path.realpath("/proc/self/exe"), "-I", "-S", "-c", script],
                    stdio=(null(), writer, null()),
                    env=["A=1"],
                )
            )
            await process.wait()
            return os.read(reader, 65536)
        finally:
            signal.signal(signal.SIGUSR1, old)
            del os.environ["AGENT_SECRET"]
            os.close(extra)
            os.close(reader)
            await processes.close()

    assert run(main()).decode().splitlines() == [
        "['0', '1', '2'] 4",  # the fourth is the listing itself
        "{'A': '1', 'LC_CTYPE': 'C.UTF-8'}",  # LC_CTYPE: Python's own, of an environment without a locale
        "True 0o22",
        "['0000000000000000', '0000000001001000']",  # SIGPIPE and SIGXFSZ: Python's own too
    ]


def test_a_running_process_can_be_adopted_and_its_exit_is_told() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        first = Processes(loop, Lanes())
        process = await first.spawn(spec("/bin/sh", "-c", "read x </dev/tty; sleep 0.2; exit 7"))
        pid, start_time = process.pid, process.start_time
        await first.close()
        second = Processes(loop, Lanes())
        assert second.adopt(pid, start_time + 1) is None
        adopted = second.adopt(pid, start_time)
        assert adopted is not None
        assert await adopted.wait() == ExitStatus(7)
        assert second.adopt(pid, start_time) is None
        await second.close()

    run(main())


def test_a_process_of_another_parent_can_be_adopted() -> None:
    """The grandchild's parent takes its status; the kernel tells it to us too."""

    async def main() -> None:
        processes = Processes(asyncio.get_running_loop(), Lanes())
        reader, writer = os.pipe2(os.O_CLOEXEC)
        parent = await processes.spawn(
            SpawnSpec(
                ["/bin/sh", "-c", "sh -c 'sleep 0.3; exit 9' & echo $!; wait $!; sleep 60"],
                stdio=(null(), writer, null()),
                env=["PATH=/bin:/usr/bin"],
            )
        )
        await asyncio.sleep(0.1)
        pid = int(os.read(reader, 100))
        os.close(reader)
        start_time = start_time_of(pid)
        assert start_time is not None
        adopted = processes.adopt(pid, start_time)
        assert adopted is not None
        assert await adopted.wait() == ExitStatus(9)
        parent.send_signal(signal.SIGKILL)
        await parent.wait()
        await processes.close()

    run(main())


def test_orphans_are_reaped_and_the_status_of_an_owned_child_is_not() -> None:
    """The agent as subreaper stands for PID 1: what loses its parent becomes its child."""

    libc = ctypes.CDLL(None)
    assert libc.prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER

    async def main() -> None:
        loop = asyncio.get_running_loop()
        metrics = Counts()
        processes = Processes(loop, Lanes(), metrics)
        processes.orphans.watch()

        async def one(n: int) -> None:
            process = await processes.spawn(spec("/bin/sh", "-c", f"(/bin/sh -c 'exit 3' &); exit {n % 200}"))
            assert await process.wait() == ExitStatus(n % 200)

        for start in range(0, 300, 50):
            await asyncio.gather(*(one(n) for n in range(start, start + 50)))
        async with asyncio.timeout(20):
            while metrics["orphans_reaped"] < 300 or children():
                await asyncio.sleep(0.01)
        await processes.close()

    try:
        run(main())
    finally:
        libc.prctl(36, 0, 0, 0, 0)


def test_a_spawn_with_other_ids_leaves_the_agent_as_it_was() -> None:
    async def main() -> bytes:
        processes = Processes(asyncio.get_running_loop(), Lanes())
        reader, writer = os.pipe2(os.O_CLOEXEC)
        process = await processes.spawn(
            SpawnSpec(["/usr/bin/id"], stdio=(null(), writer, null()), ids=(4242, 4343, (4444, 4545)))
        )
        await process.wait()
        out = os.read(reader, 4096)
        os.close(reader)
        await processes.close()
        return out

    before = os.getresuid(), os.getresgid(), os.getgroups(), threading.active_count()
    assert run(main()) == b"uid=4242 gid=4343 groups=4343,4444,4545\n"
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before[:3]
    assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 1  # PR_GET_DUMPABLE


#: Nobody else's, as what is done in its name goes to all of its processes.
STRANGER = 48_611
#: Keeps a child busy for a while between its change of user and its program.
SEARCHING = ["/no/such/program"] * 60_000


async def stopped_before_its_program(uid: int) -> int:
    """A child of that user, as soon as there is one, stopped as whatever runs as the same user can; its pid."""
    while True:
        for pid in children():
            with open(f"/proc/{pid}/status") as status:
                if f"Uid:\t{uid}\t{uid}" in status.read():
                    os.kill(pid, signal.SIGSTOP)
                    return pid
        await asyncio.sleep(0)


def test_no_user_can_write_into_the_agent_by_a_child_that_has_no_program_yet() -> None:
    async def main() -> None:
        processes = Processes(asyncio.get_running_loop(), Lanes())
        searching = spec("/bin/true", programs=SEARCHING, ids=(STRANGER, STRANGER, ()))
        spawning = asyncio.create_task(processes.spawn(searching))
        child = await stopped_before_its_program(STRANGER)
        # Which ends meanwhile, and leaves the agent as it was but for the other child.
        await (await processes.spawn(spec("/bin/true", ids=(STRANGER + 1, STRANGER + 1, ())))).wait()
        opening = ["/bin/sh", "-c", f"exec 3<>/proc/{child}/mem"]
        opened = subprocess.run(opening, user=STRANGER, group=STRANGER, extra_groups=(), capture_output=True, text=True)
        assert opened.stderr.endswith("Permission denied\n")
        os.kill(child, signal.SIGKILL)
        await (await spawning).wait()
        assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 1  # PR_GET_DUMPABLE
        await processes.close()

    run(main())


def test_a_child_that_its_user_stops_before_it_has_its_program_holds_no_other_up() -> None:
    async def main() -> None:
        processes = Processes(asyncio.get_running_loop(), Lanes())
        searching = spec("/bin/true", programs=SEARCHING, ids=(STRANGER, STRANGER, ()))
        spawning = asyncio.create_task(processes.spawn(searching))
        await stopped_before_its_program(STRANGER)
        assert await (await spawning).wait() == ExitStatus(0, signal.SIGKILL)
        await processes.close()

    run(main())


def test_the_pid_file_holds_the_childs_own_stat_line(tmp_path: os.PathLike[str]) -> None:
    async def main() -> None:
        processes = Processes(asyncio.get_running_loop(), Lanes())
        path = os.path.join(tmp_path, "pid")
        process = await processes.spawn(
            spec("/bin/sleep", "60", pid_fd=os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC))
        )
        line = Path(path).read_bytes()
        assert int(line.split()[0]) == process.pid
        assert int(line[line.rindex(b")") + 2 :].split()[19]) == process.start_time
        process.send_signal(signal.SIGKILL)
        await process.wait()
        with pytest.raises(SpawnError):
            await processes.spawn(spec("/no/such", pid_fd=os.open(path, os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC)))
        assert Path(path).read_bytes().splitlines()[-1] == b"failed 2 18"
        await processes.close()

    run(main())


def test_wherever_the_descriptors_run_out_nothing_is_left_of_a_spawn() -> None:
    async def main() -> None:
        processes = Processes(asyncio.get_running_loop(), Lanes())
        assert await (await processes.spawn(spec("/bin/true"))).wait() == ExitStatus(0)  # the threads are there now
        before, limits = open_descriptors(), resource.getrlimit(resource.RLIMIT_NOFILE)
        refused = started = 0
        for room in range(6):
            wanted = spec("/bin/sleep", "60")
            # With every lower number taken, the limit leaves as many descriptors as are wanted.
            highest = max(int(name) for name in os.listdir("/proc/self/fd"))
            fillers = [null()]
            while fillers[-1] < highest:
                fillers.append(null())
            resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1 + room, limits[1]))
            try:
                process = await processes.spawn(wanted)
            except SpawnError as error:
                assert error.errno == errno.EMFILE
                refused += 1
            else:
                started += 1
                process.send_signal(signal.SIGKILL)
                assert await process.wait() == ExitStatus(0, 9)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                for fd in fillers:
                    os.close(fd)
            assert children() == []
            assert open_descriptors() == before
        assert refused and started
        await processes.close()

    run(main())

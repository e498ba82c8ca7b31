"""top and stats, beside what /proc says of the same processes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent import sync, wire
from arcbox_agent.agent.handlers.usage import Usage
from arcbox_agent.agent.processes import ps, usage
from arcbox_agent.agent.processes.cgroups import Cgroup
from arcbox_agent.agent.processes.descendants import ProcessSession
from arcbox_agent.agent.processes.lanes import Lanes
from arcbox_agent.errors import BadRequestError, ConflictError, NotFoundError
from tests.containers.support import eventually, run

TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def running(client: sync.Client) -> Callable[..., str]:
    def start(*cmd: str, **options: Any) -> str:
        id = client.create_container(cmd=list(cmd), **options).id
        client.start_container(id)
        return id

    return start


class Processes:
    """A scope of processes that the test names."""

    def __init__(self, *pids: int, counted: dict[str, int] | None = None) -> None:
        self._pids = set(pids)
        self._counted = counted or {}

    def pids(self) -> set[int]:
        return set(self._pids)

    def counted(self) -> dict[str, int]:
        return self._counted


def rows(top: wire.ContainerTopResponse) -> list[dict[str, str]]:
    return [dict(zip(top.titles, row.values, strict=True)) for row in top.processes]


def stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def test_top_has_every_process_of_the_container_and_none_besides(
    client: sync.Client, running: Callable[..., str]
) -> None:
    other = running("sleep", "601")
    id = running("sh", "-c", "sleep 602 & exec sleep 603")
    main = client.list_containers(filter=id)[0].pid
    command = client.exec_detached(["sleep", "604"], container=id)
    eventually(lambda: len(client.container_top(id).processes) == 3)
    top = client.container_top(id)
    assert top.titles == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    found = rows(top)
    assert sorted(row["CMD"] for row in found) == ["sleep 602", "sleep 603", "sleep 604"]
    assert {int(row["PID"]) for row in found if row["CMD"] != "sleep 602"} == {main, command}
    assert [int(row["PID"]) for row in found] == sorted(int(row["PID"]) for row in found)
    for row in found:
        assert row["PPID"] == stat(int(row["PID"]))[1]
        assert row["TTY"] == "?"
    assert [row["CMD"] for row in rows(client.container_top(other))] == ["sleep 601"]


def test_columns_agree_with_proc(client: sync.Client, running: Callable[..., str]) -> None:
    id = running("sleep", "600", user="4100:4200")
    pid = client.list_containers(filter=id)[0].pid
    eventually(lambda: stat(pid)[0] == "S")  # it sleeps: its loader has mapped all
    fields = stat(pid)
    [row] = rows(
        client.container_top(id, ps_args="-o pid,uid,gid,pgid,sid,ni,nlwp,vsz,rss=RESIDENT,stat,etimes,comm,cmd")
    )
    # The kernel counts resident pages for each CPU, and adds them up now and then.
    assert abs(int(row.pop("RESIDENT")) - int(fields[21]) * os.sysconf("SC_PAGE_SIZE") // 1024) <= 512
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert abs(int(row.pop("ELAPSED")) - (uptime - int(fields[19]) / TICKS)) <= 2
    assert row == {
        "PID": str(pid), "UID": "4100", "GID": "4200", "PGID": fields[2], "SID": fields[3], "NI": "0",
        "NLWP": fields[17], "VSZ": str(int(fields[20]) // 1024), "STAT": "Ss", "COMMAND": "sleep", "CMD": "sleep 600",
    }  # fmt: skip


def test_the_terminal_of_a_container_that_was_made_after_the_first_top_is_named(
    client: sync.Client, running: Callable[..., str]
) -> None:
    client.container_top(running("sleep", "600"))
    id = running("sleep", "600", tty=True)
    pid = client.list_containers(filter=id)[0].pid
    [row] = rows(client.container_top(id, ps_args="-o tty,stat"))
    assert f"/dev/{row['TTY']}" == os.readlink(f"/proc/{pid}/fd/0")
    assert row["STAT"] == "Ss+"


@pytest.mark.parametrize(
    ("options", "titles"),
    [
        ("", "UID PID PPID C STIME TTY TIME CMD"),
        ("-ef", "UID PID PPID C STIME TTY TIME CMD"),
        ("aux", "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND"),
        ("-e", "PID TTY TIME CMD"),
        ("-opid,args", "PID COMMAND"),
        ("-e -o pid=NUMBER -o pcpu", "NUMBER %CPU"),
    ],
)
def test_options_of_ps_choose_the_columns(options: str, titles: str) -> None:
    assert " ".join(title for title, _ in ps.columns(options)) == titles


@pytest.mark.parametrize("options", ["--forest", "-o", "-o nope", "-o pid,", "-p 1", "-", "-efo"])
def test_options_of_ps_that_are_not_known_are_refused(options: str) -> None:
    with pytest.raises(BadRequestError):
        ps.columns(options)


def test_a_process_that_has_ended_is_left_out() -> None:
    gone = os.fork()
    if not gone:
        os._exit(0)
    os.waitpid(gone, 0)
    scope = Processes(gone, os.getpid())
    assert ps.table(scope, ps.columns("-o pid")) == [[str(os.getpid())]]
    assert usage.measure(scope).tasks == len(os.listdir("/proc/self/task"))


def test_a_pid_that_left_the_scope_while_it_was_read_is_left_out() -> None:
    scope = Processes(os.getpid())

    def leave(_: object) -> str:
        scope._pids.clear()
        return "read"

    assert ps.table(scope, [("X", leave)]) == []


def test_a_table_is_bounded(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ps, "MAX_PROCESSES", 1)
    assert ps.table(Processes(os.getpid(), os.getppid()), ps.columns("-o pid")) == [
        [str(min(os.getpid(), os.getppid()))]
    ]
    assert "not all processes" in capfd.readouterr().err
    monkeypatch.setattr(ps, "MAX_COMMAND", 3)
    [[command]] = ps.table(Processes(os.getpid()), ps.columns("-o args"))
    assert len(command) == 3


def test_top_and_stats_of_a_container_that_does_not_run(client: sync.Client) -> None:
    id = client.create_container(cmd=["true"]).id
    with pytest.raises(ConflictError, match="container is not running"):
        client.container_top(id)
    assert client.container_stats(id) == wire.ContainerStatsResponse()
    for call in (client.container_top, client.container_stats):
        with pytest.raises(NotFoundError):
            call("nope")


def cpu_seconds(pid: int) -> float:
    return sum(map(int, stat(pid)[11:13])) / TICKS


def test_stats_agree_with_proc(client: sync.Client, running: Callable[..., str]) -> None:
    id = running("sh", "-c", "sleep 600 & while :; do :; done")
    pid = client.list_containers(filter=id)[0].pid
    eventually(lambda: cpu_seconds(pid) > 0.3)
    before, first = cpu_seconds(pid), client.container_stats(id)
    time.sleep(0.5)
    second, after = client.container_stats(id), cpu_seconds(pid)
    assert before - 0.05 <= first.cpu_usage / 1e9 <= second.cpu_usage / 1e9 <= after + 0.05
    assert second.cpu_usage > first.cpu_usage

    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    assert abs(second.system_cpu_usage / 1e9 - sum(ticks[:8]) / TICKS) < 5
    assert second.system_cpu_usage > first.system_cpu_usage
    assert second.online_cpus == os.cpu_count()
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert second.memory_limit == int(memory["MemTotal"].split()[0]) * 1024
    assert second.pids == 2
    assert second.network_rx_bytes == second.network_tx_bytes == 0


def test_what_the_kernel_does_not_count_is_summed_over_the_processes() -> None:
    used = usage.measure(Processes(os.getpid(), counted={"cpu_ns": 17}))
    assert used.cpu_ns == 17
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            assert abs(used.memory / 1024 - int(line.split()[1])) < 4096
    written = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    assert 0 <= int(written["write_bytes"]) - used.write_bytes < 1 << 20
    assert used.tasks == len(os.listdir("/proc/self/task"))


def test_what_the_kernel_counts_is_taken_and_nothing_summed(tmp_path: Path) -> None:
    files = {
        "cpu.stat": "usage_usec 2500000\nuser_usec 1\n",
        "memory.current": "1000000\n",
        "memory.stat": "anon 5\ninactive_file 400000\n",
        "memory.max": "8388608\n",
        "io.stat": "8:0 rbytes=100 wbytes=7 rios=3\n8:16 rbytes=20 wbytes=1 rios=3\n",
        "pids.current": "12\n",
        "cgroup.procs": f"{os.getpid()}\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    used = usage.measure(Cgroup(str(tmp_path)))
    assert (used.cpu_ns, used.memory, used.memory_limit) == (2_500_000_000, 600_000, 8_388_608)
    assert (used.read_bytes, used.write_bytes, used.tasks) == (120, 8, 12)

    (tmp_path / "memory.max").write_text("max\n")
    assert usage.measure(Cgroup(str(tmp_path))).memory_limit > 8_388_608


def test_a_session_is_counted_by_its_processes() -> None:
    scope = ProcessSession(os.getsid(0), 0)
    assert scope.counted() == {}


def test_clients_that_go_away_do_not_take_more_threads_than_the_gate_has() -> None:
    """A read of /proc can hang, and with it the thread, whatever becomes of the client."""

    async def scenario() -> None:
        import threading

        go, busy, most = threading.Event(), 0, 0
        lock = threading.Lock()

        class Hanging(Processes):
            def pids(self) -> set[int]:
                nonlocal busy, most
                with lock:
                    busy += 1
                    most = max(most, busy)
                go.wait(30)
                with lock:
                    busy -= 1
                return set()

        class Containers:
            def run_of(self, ref: str) -> Any:
                return type("Run", (), {"scope": Hanging(), "key": "x"})

        lanes = Lanes()
        try:
            handlers: Any = Usage(Containers(), lanes)  # type: ignore[arg-type]
            request = wire.ContainerTopRequest(id="x")
            tasks = [asyncio.create_task(handlers.top(request, None)) for _ in range(6)]
            await asyncio.sleep(0.1)
            for task in tasks[:4]:
                task.cancel()
            await asyncio.sleep(0.1)
            assert busy == 1
            go.set()
            assert [reply.processes for reply in await asyncio.gather(*tasks[4:])] == [[], []]
            assert most == 1
        finally:
            go.set()
            lanes.close()

    run(scenario())


def test_psutil_is_not_loaded_before_it_is_asked_for(agent: Any, client: sync.Client) -> None:
    def loaded() -> bool:
        return "_psutil_linux" in Path(f"/proc/{agent.process.pid}/maps").read_text()

    id = client.create_container(cmd=["sleep", "600"]).id
    client.start_container(id)
    assert not loaded()
    assert client.container_stats(id).pids == 1
    assert loaded()

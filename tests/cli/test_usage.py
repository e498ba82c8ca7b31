"""top and stats, with docker's columns."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from arcbox_agent import wire
from arcbox_agent.cli.tables import decimal_size, short_size
from arcbox_agent.cli.usage import cpu_percent, stats_table

if TYPE_CHECKING:
    from tests.cli.conftest import Arcboxctl

HEADER = "CONTAINER ID   NAME   CPU %   MEM USAGE / LIMIT   MEM %   NET I/O   BLOCK I/O   PIDS".split()


def test_top_shows_the_processes_in_the_columns_asked_for(ctl: Arcboxctl) -> None:
    ctl.container("web", "sleep", "600")
    header, row = ctl("top", "web").stdout.splitlines()
    assert header.split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert row.endswith("sleep 600")
    assert ctl("top", "web", "-o", "comm=NAME,args").stdout.split() == "NAME COMMAND sleep sleep 600".split()
    found = json.loads(ctl("top", "--json", "web", "-o", "args").stdout)
    assert found == {"titles": ["COMMAND"], "processes": [["sleep 600"]]}
    assert "unknown ps option '--forest'" in ctl("top", "web", "--forest", code=125).stderr


def test_stats_shows_the_running_containers_once_or_until_it_is_stopped(ctl: Arcboxctl) -> None:
    web = ctl.container("web", "sleep", "600")
    ctl("create", "--name", "idle", "x", "true")
    header, row = ctl("stats", "--no-stream").stdout.splitlines()
    assert header.split() == HEADER
    assert re.fullmatch(
        rf"{web[:12]}   web    \d+\.\d\d%   [\d.]+[KM]iB / [\d.]+GiB +\d+\.\d\d%   0B / 0B   [\d.]+k?B / [\d.]+k?B +1",
        row,
    )
    assert len(ctl("stats", "--no-stream", "-a").stdout.splitlines()) == 3

    shown = [json.loads(line) for line in ctl("stats", "--no-stream", "--json", "idle", web[:8]).stdout.splitlines()]
    assert [(each["name"], each["pids"]) for each in shown] == [("idle", 0), ("web", 1)]
    assert list(shown[1])[:4] == ["id", "name", "cpu_percent", "cpu_usage"]
    assert ctl("stats", "--no-stream", "nope", code=125).stderr == "arcboxctl: container not found: nope\n"

    stream = ctl.start("stats", "--json")
    assert stream.stdout is not None
    assert [json.loads(stream.stdout.readline())["name"] for _ in range(2)] == ["web", "web"]
    ctl("rm", "-f", "web")
    stream.terminate()
    assert stream.wait(60) == 143


def stats(cpu: int, system: int, cpus: int = 4) -> wire.ContainerStatsResponse:
    return wire.ContainerStatsResponse(cpu_usage=cpu, system_cpu_usage=system, online_cpus=cpus)


def test_the_share_of_cpus_lies_between_two_samples() -> None:
    assert cpu_percent(stats(1000, 8000), stats(3000, 16000)) == 100.0
    assert cpu_percent(None, stats(3000, 16000)) == 0.0
    assert cpu_percent(wire.ContainerStatsResponse(), stats(3000, 16000)) == 0.0
    assert cpu_percent(stats(5000, 8000), stats(3000, 16000)) == 0.0  # started again
    assert cpu_percent(stats(1000, 8000), stats(1000, 8000)) == 0.0


def test_the_table_of_stats_is_dockers() -> None:
    sample = wire.ContainerStatsResponse(
        memory_usage=1_572_864, memory_limit=2 << 30, block_read_bytes=1_234_567, block_write_bytes=4096, pids=3
    )
    shown = stats_table([(wire.ContainerInfo(id="0123456789abcdef", name="web"), sample, 12.25)], truncate=True)
    assert re.split(" {2,}", shown.splitlines()[1]) == [
        "0123456789ab", "web", "12.25%", "1.5MiB / 2GiB", "0.07%", "0B / 0B", "1.23MB / 4.1kB", "3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("count", "binary", "decimal"),
    [(0, "0B", "0B"), (999, "999B", "999B"), (1000, "1000B", "1kB"), (1024, "1KiB", "1.02kB"),
     (999_999, "976.6KiB", "1MB"), (5 << 40, "5TiB", "5.5TB"), (1 << 60, "1.049e+06TiB", "1.15e+06TB")],
)  # fmt: skip
def test_sizes_are_dockers(count: int, binary: str, decimal: str) -> None:
    assert (short_size(count), decimal_size(count)) == (binary, decimal)

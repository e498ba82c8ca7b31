"""The fixture `compare`, and the table at the end of the session.

A figure without its rival in the same run says nothing on a shared machine, so
each benchmark gives two callables and `compare` runs them in turn, A B A B:

    def test_encode(compare):
        message, theirs = ours_message(), upb_message()
        assert message.encode() == theirs.SerializeToString()     # the answer, first
        compare("encode LogEntry", message.encode, theirs.SerializeToString, 3.0, rival_name="upb")

The ratio says how many times as good ours is as the rival, whichever way the
unit counts: 1.0 is the same, and the goal is the least ratio wanted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from itertools import repeat
from typing import Any, Protocol

import pytest

from benchmarks.table import Row, machine, render

ROWS = pytest.StashKey[list[Row]]()
#: A slice of work that is timed takes at least this long, or the clock and the
#: call of the timer would be part of the figure.
LEAST_SLICE = 0.01


class Benchmark(Protocol):
    """What is used here of pytest-benchmark's fixture."""

    enabled: bool
    extra_info: dict[str, Any]

    def pedantic(self, target: Callable[[], object], *, setup: Callable[[], None], rounds: int) -> object: ...


class Compare:
    """Runs ours and its rival in turn and keeps a row of the table."""

    def __init__(self, benchmark: Benchmark, rows: list[Row], report: Callable[[str], None]) -> None:
        self._benchmark = benchmark
        self._rows = rows
        self._report = report

    @property
    def quick(self) -> bool:
        """One small round only, to see that the benchmark works: make the input small."""
        return not self._benchmark.enabled

    def __call__(
        self,
        work: str,
        ours: Callable[[], Any],
        rival: Callable[[], Any],
        goal: float,
        *,
        rival_name: str,
        unit: str = "s",
        per: float = 1,
        measured: bool = False,
        higher_is_better: bool | None = None,
        rounds: int = 25,
        seconds: float = 4.0,
    ) -> Row:
        """Compare the medians of interleaved runs.

        `unit`: `s` (the default) is the time for one piece of work, `/s` and
        `B/s` are rates.  `per`: how many pieces (or bytes) one call does.
        `measured`: the callables return the value themselves, in `unit`, and
        are not timed.  `rounds`, `seconds`: at most so many rounds, and about
        so much time; never fewer than five rounds.
        """
        better = unit.endswith("/s") if higher_is_better is None else higher_is_better
        mine, theirs = self._alternate(ours, rival, unit, per, measured, rounds, seconds)
        return self._keep(
            Row.against_rival(work, mine, theirs, goal, unit=unit, rival_name=rival_name, higher_is_better=better)
        )

    def figure(
        self,
        work: str,
        ours: Callable[[], Any],
        goal: float,
        *,
        rival: Callable[[], Any] | None = None,
        rival_name: str = "",
        unit: str = "s",
        per: float = 1,
        measured: bool = True,
        higher_is_better: bool | None = None,
        rounds: int = 25,
        seconds: float = 4.0,
    ) -> Row:
        """As above, where the goal is a figure in `unit` (memory, a latency), not a ratio.

        A rival, if there is one, is run in turn and printed beside it.
        """
        better = unit.endswith("/s") if higher_is_better is None else higher_is_better
        mine, theirs = self._alternate(ours, rival, unit, per, measured, rounds, seconds)
        return self._keep(
            Row.against_figure(
                work,
                mine,
                goal,
                unit=unit,
                rival=theirs,
                rival_name=rival_name,
                higher_is_better=better,
            )
        )

    def add(self, row: Row) -> Row:
        """A row measured by other means (several figures of one run)."""
        return self._keep(row)

    def _alternate(
        self,
        ours: Callable[[], Any],
        rival: Callable[[], Any] | None,
        unit: str,
        per: float,
        measured: bool,
        rounds: int,
        seconds: float,
    ) -> tuple[list[float], list[float]]:
        mine: list[float] = []
        theirs: list[float] = []
        if not self._benchmark.enabled:
            probe = 0.0
            run_ours, run_rival = _sampler(ours, unit, per, measured, 1), None
            if rival is not None:
                run_rival = _sampler(rival, unit, per, measured, 1)
        else:
            # The first call of each warms caches, tells how many calls make a
            # slice long enough to time, and how many rounds there is time for.
            count, probe = (1, _seconds_of(ours)) if measured else _calibrate(ours)
            run_ours, run_rival = _sampler(ours, unit, per, measured, count), None
            if rival is not None:
                count, spent = (1, _seconds_of(rival)) if measured else _calibrate(rival)
                run_rival = _sampler(rival, unit, per, measured, count)
                probe += spent
        possible = max(5, min(rounds, int(seconds / probe))) if probe > 0 else rounds

        def rival_first() -> None:
            if run_rival is not None:
                theirs.append(run_rival())

        self._benchmark.pedantic(lambda: mine.append(run_ours()), setup=rival_first, rounds=possible)
        return mine, theirs

    def _keep(self, row: Row) -> Row:
        if self.quick:
            return row  # one round of a small input is no figure
        self._benchmark.extra_info.setdefault("rows", []).append(row.as_json())
        self._rows.append(row)
        self._report(" | ".join(cell for cell in row.cells() if cell))
        return row


def _seconds_of(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _calls(work: Callable[[], Any], count: int) -> float:
    """Seconds that `count` calls take."""
    clock = time.perf_counter
    if count == 1:
        begin = clock()
        work()
        return clock() - begin
    times = repeat(None, count)
    begin = clock()
    for _ in times:
        work()
    return clock() - begin


def _calibrate(work: Callable[[], Any]) -> tuple[int, float]:
    """How many calls make a slice that can be timed, and the seconds they take."""
    _seconds_of(work)
    count = 1
    while (spent := _calls(work, count)) < LEAST_SLICE:
        count = int(count * min(10.0, max(1.5, 1.2 * LEAST_SLICE / max(spent, 1e-7)))) + 1
    return count, spent


def _sampler(work: Callable[[], Any], unit: str, per: float, measured: bool, count: int) -> Callable[[], float]:
    """A callable that runs the work once and returns the value in `unit`."""
    if measured:
        return lambda: float(work())
    if unit.endswith("/s"):
        return lambda: count * per / _calls(work, count)
    return lambda: _calls(work, count) / (count * per)


@pytest.fixture
def compare(benchmark: Benchmark, request: pytest.FixtureRequest) -> Compare:
    plugins = request.config.pluginmanager
    reporter, capture = plugins.getplugin("terminalreporter"), plugins.getplugin("capturemanager")

    def report(line: str) -> None:
        # Shown at once, as the progress of a long run.
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line("  " + line)

    return Compare(benchmark, request.config.stash[ROWS], report)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


def pytest_report_header(config: pytest.Config) -> str:
    return f"machine: {machine()}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("benchmarks")
    terminalreporter.write_line(machine())
    terminalreporter.write_line("")
    for line in render(rows):
        terminalreporter.write_line(line)
    missed = sum(not row.met for row in rows)
    terminalreporter.write_line("")
    terminalreporter.write_line(f"{len(rows) - missed} of {len(rows)} goals met")
    path = config.rootpath / ".benchmarks" / "table.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "rows": [row.as_json() for row in rows]}, indent=1) + "\n")
    terminalreporter.write_line(f"every single figure: {path.relative_to(config.rootpath)}")


@pytest.fixture(scope="session", autouse=True)
def collector_off() -> Generator[None]:
    """Rounds of one side are not to pay for the garbage of the other."""
    import gc

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()

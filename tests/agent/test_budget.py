"""What a start and a stop may take: the table, its sums, and the page that shows both."""

from __future__ import annotations

import re

from arcbox_agent.agent.config import Settings, budget
from arcbox_agent.agent.config.budget import TABLE, longest_start, longest_stop
from tests.conftest import REPOSITORY

PHASES = {
    budget.BOOT: "boot of a guest's init",
    budget.START: "start",
    budget.STOP: "stop",
    budget.MACHINE: "end of the machine",
    budget.BESIDE: "in no sum",
}


def page() -> str:
    """The table and the sums as docs/operations.md has them."""
    rows = ["| name | seconds | when | what it bounds |", "| --- | --- | --- | --- |"]
    for each in TABLE.values():
        seconds = f"{each.times} x {each.seconds:g}" if each.times > 1 else f"{each.seconds:g}"
        rows.append(f"| `{each.name}` | {seconds} | {PHASES[each.phase]} | {each.bounds} |")
    settings = Settings()
    stops = Settings()
    stops.containers_at_exit = "stop"
    sums = [
        ("start", longest_start()),
        ("start as the guest's init", longest_start(init=True)),
        ("stop, containers left running", longest_stop(settings)),
        ("stop, `containers_at_exit = stop`", longest_stop(stops)),
        ("stop, and the end of the machine", longest_stop(settings, machine=True)),
    ]
    rows += ["", "| in all, with the settings' defaults | seconds at most |", "| --- | --- |"]
    rows += [f"| {what} | {seconds:g} |" for what, seconds in sums]
    return "\n".join(rows) + "\n"


def test_the_page_has_the_table_and_its_sums_as_they_are() -> None:
    assert page() in (REPOSITORY / "docs" / "operations.md").read_text(), f"put into docs/operations.md:\n{page()}"


def test_the_constants_are_those_of_the_table_and_each_is_used() -> None:
    sources = [path.read_text() for path in (REPOSITORY / "src").rglob("*.py") if path.name != "budget.py"]
    used = set(re.findall(r"\bbudget\.([A-Z_]+)\b", "\n".join(sources)))
    # Closing the keeper takes what its exchange under way takes.
    assert used == set(TABLE) - {"KEEPER_CLOSED"}
    for name in used:
        assert getattr(budget, name) == TABLE[name].seconds


def test_no_module_has_a_patience_of_its_own_at_start_or_end() -> None:
    found = [
        f"{path.name}: {line}"
        for path in (REPOSITORY / "src" / "arcbox_agent" / "agent").rglob("*.py")
        for line in path.read_text().splitlines()
        if re.match(r"_?[A-Z_]*(PATIENCE|SETTLE|LINGER|GRACE|DRAIN)\b.* = ", line)
    ]
    # They bound a line of the log, a ping, and a read of a log: neither a start nor an end.
    assert sorted(found) == [
        "clock.py: _HARDWARE_PATIENCE = 0.1",
        "follower.py: UNTIL_GRACE = 0.2",
        "log.py: _PATIENCE = 1.0",
    ]


def test_a_stop_takes_the_settings_and_every_step() -> None:
    settings = Settings()
    settings.shutdown_timeout, settings.stop_timeout = 100.0, 1000.0
    steps = sum(each.seconds * each.times for each in TABLE.values() if each.phase == budget.STOP)
    machine = sum(each.seconds * each.times for each in TABLE.values() if each.phase == budget.MACHINE)
    assert longest_stop(settings) == 100 + steps - budget.CONTAINERS_KILLED
    settings.containers_at_exit = "stop"
    assert longest_stop(settings) == 100 + 1000 + steps
    # The calls and the containers have the host's time side by side: the longer of both ends counts.
    beside = budget.CALLS_CANCELLED + budget.CONNECTIONS_ABORTED
    assert longest_stop(settings, machine=True, shutdown_timeout=7.0) == (
        7 + budget.CONTAINERS_KILLED + (steps - beside) + 1000 + machine
    )
    assert longest_start(init=True) > longest_start() > 0

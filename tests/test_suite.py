"""What `make test` runs: each test once, and a failure of either part is one of the whole."""

from __future__ import annotations

import pytest

from tools.suite import parts, verdict


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([0, 0], 0), ([1, 0], 1), ([0, 1], 1), ([5, 0], 0), ([0, 5], 0), ([5, 5], 5), ([5, 1], 1), ([2], 2), ([0, 4], 4)],
)
def test_one_exit_code_of_two(codes: list[int], expected: int) -> None:
    assert verdict(codes) == expected


def test_each_test_is_in_one_part() -> None:
    alone, beside = parts(["tests/logs"])
    assert beside[beside.index("-m") + 1] == "not (slow or vm)"
    assert alone[alone.index("-m") + 1] == "slow or vm"
    assert beside[:2] == ["-n", "2"]
    assert "-n" not in alone
    assert beside[-1] == alone[-1] == "tests/logs"
    assert parts(["-m", "vm"]) == [["--durations=15", "-m", "vm"]]

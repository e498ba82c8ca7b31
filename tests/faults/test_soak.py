"""A short soak: all faults at random, with a seed that is the same each time."""

from __future__ import annotations

import pytest

from tools import soak


@pytest.mark.slow
def test_a_short_soak_is_flat_and_loses_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    code = soak.main(["--seconds", "20", "--seed", "20261123"])
    out = capfd.readouterr()
    assert code == 0, out.out + out.err
    assert "verdict: everything written was delivered, nothing is left behind" in out.out

"""A short soak: faults at random, with a seed that is the same each time.

A full disk and a full descriptor table, beside kills of the agent, are for `make soak`: a
container that ends while its log has no room, and then a killed agent, can still lose
lines (docs/logs.md).  Each of the two alone is in test_machine.py.
"""

from __future__ import annotations

import pytest

from tools import soak


@pytest.mark.slow
def test_a_short_soak_is_flat_and_loses_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    code = soak.main(
        ["--seconds", "20", "--seed", "20261123", "--without", "full disk", "--without", "no descriptors"]
    )
    out = capfd.readouterr()
    assert code == 0, out.out + out.err
    assert "verdict: everything written was delivered, nothing is left behind" in out.out

"""The benchmarks are not for CI, but they must not rot: each runs one small round."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tools.compiled import ROOT


@pytest.mark.slow
def test_each_benchmark_runs_one_round_and_checks_its_answers() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-disable", "benchmarks"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout

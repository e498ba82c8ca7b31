"""ARCBOX_WIRE_DEBUG=1: the same modules with bounds checks and assertions pass the same tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Only what hangs takes this long.
PATIENCE = 250


def run(*command: str, **options: object) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.slow
def test_a_build_with_bounds_checks_passes_the_tests_of_the_wire_and_the_line_engine(tmp_path: Path) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE-MIT", "LICENSE-APACHE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info"))
    environment = {**os.environ, "ARCBOX_WIRE_DEBUG": "1", "PYTHONPATH": str(tmp_path / "src")}
    environment.pop("ARCBOX_PREBUILT", None)
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=tmp_path, env=environment)
    program = (
        "import sys, pytest, arcbox_agent._wire\n"
        "assert arcbox_agent._wire.__file__.startswith(sys.argv[1]), arcbox_agent._wire.__file__\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *sys.argv[2:]]))"
    )
    tests = [
        str(ROOT / "tests/wire" / f"test_{name}.py") for name in ("vectors", "messages", "frames", "streams", "alpha1")
    ]
    tests.append(str(ROOT / "tests/logs/test_engine.py"))
    run(sys.executable, "-c", program, str(tmp_path), *tests, cwd=ROOT, env=environment)

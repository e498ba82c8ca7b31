"""docs/host.md: every example runs, and prints what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.conftest import RunningAgent

PAGE = Path(__file__).resolve().parents[2] / "docs" / "host.md"
ADDRESS = "unix:///run/arcbox-agent.sock"

BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples() -> Iterator[ParameterSet]:
    """(line, program, what it prints), the last None where the page does not say."""
    text = PAGE.read_text()
    blocks = [(text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in BLOCK.finditer(text)]
    for position, (line, language, program) in enumerate(blocks):
        if language == "python":
            following = blocks[position + 1 : position + 2]
            output = following[0][2] if following and following[0][1] == "text" else None
            yield pytest.param(program, output, id=f"line {line}")


@pytest.mark.parametrize(("program", "output"), list(examples()))
def test_an_example_of_the_page_prints_what_the_page_says(
    agent: RunningAgent, program: str, output: str | None
) -> None:
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", program.replace(ADDRESS, agent.address)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stderr == ""
    assert process.returncode == 0
    assert process.stdout == ("Linux\n" if output is None else output)

"""The package's face: stubs that tell the truth, names on demand, imports that go one way."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

import arcbox_agent
from arcbox_agent import wire

#: The compiled modules of the wire.
COMPILED = ("_wire", "_classes", "_messages", "_frames", "_pings")
SOURCE = pathlib.Path(arcbox_agent.__file__).parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, PYTHONPATH=str(SOURCE.parent))
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=SOURCE.parent.parent,
        timeout=280,
        check=False,
    )


def imported_by(module: str) -> set[str]:
    done = run("-c", f"import sys, {module}; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.slow  # and make check runs it
def test_the_stubs_agree_with_the_compiled_modules() -> None:
    done = run("-m", "mypy.stubtest", *(f"arcbox_agent.{name}" for name in COMPILED))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_itself_imports_nothing() -> None:
    ours = {name for name in imported_by("arcbox_agent") if name.startswith("arcbox_agent")}
    assert ours == {"arcbox_agent"}


def test_the_wire_needs_no_event_loop_and_no_socket() -> None:
    modules = imported_by("arcbox_agent.wire")
    assert {name for name in modules if name.startswith("arcbox_agent")} == {
        "arcbox_agent",
        *(f"arcbox_agent.{name}" for name in COMPILED),
        "arcbox_agent.errors",
        "arcbox_agent.message_types",
        "arcbox_agent.wire",
    }
    for name in (
        "asyncio",
        "socket",
        "_socket",
        "logging",
        "inspect",
        "dataclasses",
        "typing",
        "ssl",
    ):
        assert name not in modules, name


def test_public_names_are_found_when_they_are_asked_for() -> None:
    assert arcbox_agent.wire is wire
    assert arcbox_agent.errors.WireError is wire.WireError
    assert set(arcbox_agent.__all__) <= set(dir(arcbox_agent))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = arcbox_agent.nothing  # type: ignore[attr-defined]


def test_every_public_name_of_the_wire_is_there() -> None:
    assert len(wire.__all__) == len(set(wire.__all__))
    for name in wire.__all__:
        assert getattr(wire, name) is not None


def test_the_version_is_that_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]
    assert arcbox_agent.__version__ == project["version"]

"""The public names as a user's editor sees them, and the lists that must agree with the schema's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import arcbox_agent
from arcbox_agent import _messages, wire
from tests.conftest import REPOSITORY

PUBLIC_NAMES = Path(__file__).with_name("public_names.py")


@pytest.mark.slow  # and make check runs both over it
@pytest.mark.parametrize("checker", [["mypy", "--strict"], ["pyright"]], ids=lambda checker: checker[0])
def test_every_public_name_has_its_type_and_a_misspelt_one_is_an_error(checker: list[str]) -> None:
    command = [sys.executable, "-m", *checker, str(PUBLIC_NAMES)]
    checked = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_wire_names_every_message_of_the_schema() -> None:
    assert set(_messages.__all__) <= set(wire.__all__)
    assert len(set(wire.__all__)) == len(wire.__all__)
    assert all(getattr(wire, name) is getattr(_messages, name) for name in _messages.__all__)


def test_every_name_that_the_package_promises_is_there_and_no_other() -> None:
    assert [name for name in arcbox_agent.__all__ if not hasattr(arcbox_agent, name)] == []
    with pytest.raises(AttributeError, match="module 'arcbox_agent' has no attribute 'conect'"):
        _ = getattr(arcbox_agent, "conect")  # noqa: B009
    assert set(arcbox_agent.__all__) <= set(dir(arcbox_agent))

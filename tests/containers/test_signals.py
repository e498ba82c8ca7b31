"""The names of signals."""

from __future__ import annotations

import signal

import pytest

from arcbox_agent.agent.containers.signals import parse_signal, signal_name


@pytest.mark.parametrize(
    ("number", "name"), [(9, "KILL"), (17, "CHLD"), (32, "32"), (34, "RTMIN"), (35, "RTMIN+1"), (64, "RTMAX")]
)
def test_the_name_of_a_signal(number: int, name: str) -> None:
    assert signal_name(number) == name


def test_the_name_of_each_signal_is_understood() -> None:
    for number in range(1, signal.SIGRTMAX + 1):
        assert parse_signal(signal_name(number)) == number

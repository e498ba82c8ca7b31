"""The agents of these tests leave no unhandled exception in their log."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.conftest import RunningAgent

#: How lines about an exception that nobody expected look: agent/log.py, agent/connection.py.
_UNEXPECTED = (" loop: ", "request failed", "the agent failed", "Traceback (most recent", "Warning:")


@pytest.fixture
def start_agent(start_agent: Callable[..., RunningAgent]) -> Iterator[Callable[..., RunningAgent]]:
    agents: list[RunningAgent] = []

    def start(**settings: object) -> RunningAgent:
        agents.append(start_agent(**settings))
        return agents[-1]

    yield start
    for agent in agents:
        unexpected = [line for line in agent.log().splitlines() if any(sign in line for sign in _UNEXPECTED)]
        assert unexpected == []

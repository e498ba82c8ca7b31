"""Every connection that a test opened is closed at its end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.agent.peer import Peer
from tests.conftest import RunningAgent
from tests.executions.support import OPEN, connect


@pytest.fixture(autouse=True)
def closed_at_the_end() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().socket.close()


@pytest.fixture
def peer(agent: RunningAgent) -> Peer:
    return connect(agent.socket_path)

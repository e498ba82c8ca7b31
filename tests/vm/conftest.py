"""Machines for the tests, and the runner of their coroutines.

`guest`      one machine with the agent as PID 1, shared by all tests that leave it as it was
`boot`       boots a machine of the test's own
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest

import arcbox_agent
from arcbox_agent.client import Client
from tests.vm.machine import Machine, agent_command

T = TypeVar("T")

#: Only what hangs takes this long.
PATIENCE = 120.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/vm/" in item.nodeid:
            item.add_marker(pytest.mark.vm)


def with_client(address: str, work: Callable[[Client], Awaitable[T]], **options: Any) -> T:
    """Connects to an agent, waiting for its guest to boot, and does `work` with it."""

    async def main() -> T:
        async with asyncio.timeout(PATIENCE):
            async with arcbox_agent.connect(address, wait=PATIENCE, **options) as client:
                return await work(client)

    return asyncio.run(main())


@pytest.fixture(scope="session")
def guest() -> Iterator[Machine]:
    # cid 1: programs in the guest itself, which some tests run there.
    machine = Machine(agent_command("--listen", "vsock:1024", "--allow-cid", "1"))
    try:
        machine.wait_until_it_listens()
        yield machine
    finally:
        machine.close()


@pytest.fixture
def boot(request: pytest.FixtureRequest) -> Iterator[Callable[..., Machine]]:
    """`boot(command, ...)`: a Machine, switched off at the test's end, kept if that failed."""
    with contextlib.ExitStack() as machines:

        def start(command: list[str] | None = None, **options: Any) -> Machine:
            return machines.enter_context(Machine(command or agent_command(), **options))

        yield start

"""Machines for the tests, and the runner of their coroutines.

`guest`      one machine with the agent as PID 1, shared by all tests that leave it as it was
`boot`       boots a machine of the test's own
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

import arcbox_agent
from arcbox_agent.client import Client
from arcbox_agent.errors import TransportError
from tests.vm.kernel import guest_kernel
from tests.vm.machine import HUNG_BOOTS, Machine, agent_command
from tests.vm.packages import REPOSITORY
from tools.pace import patience

T = TypeVar("T")

#: Only what hangs takes this long.
PATIENCE = patience(200.0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/vm/" in item.nodeid:
            item.add_marker(pytest.mark.vm)


_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_failed] = item.stash.get(_failed, False) or report.failed
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A boot that was repeated is no failure, but nobody is to miss it."""
    if HUNG_BOOTS:
        terminalreporter.section("boots that were repeated")
        for what in HUNG_BOOTS:
            terminalreporter.line(what)


def with_client(machine: Machine, work: Callable[[Client], Awaitable[T]], *, patience: float = PATIENCE) -> T:
    """Connects to a machine's agent, waiting for it to boot, and does `work` with it."""
    machine.wait_until_it_listens()

    async def main() -> T:
        async with asyncio.timeout(patience):
            async with arcbox_agent.connect(machine.address, wait=patience) as client:
                return await work(client)

    try:
        return asyncio.run(main())
    except (TransportError, TimeoutError) as error:
        raise machine.failure(str(error)) from error


def wait_for_another_agent(machine: Machine, than: int) -> int:
    """Until one with another pid answers; its pid."""

    async def main() -> int:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    async with arcbox_agent.connect(machine.address, wait=10) as client:
                        pid = (await client.agent_info()).pid
                        if pid != than:
                            return pid
                except TransportError:
                    pass  # the old one has gone and the new one is not there yet
                await asyncio.sleep(0.2)

    return asyncio.run(main())


@pytest.fixture(scope="session")
def guest() -> Iterator[Machine]:
    # cid 1: programs in the guest itself, which some tests run there.
    listeners = ["--listen", "vsock:1024", "--listen", "vsock:1025?mode=read-only"]
    machine = Machine(agent_command(*listeners, "--allow-cid", "1"))
    try:
        machine.wait_until_it_listens()
        yield machine
    finally:
        machine.close()


@pytest.fixture(scope="session")
def minimal_initramfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tools/make_initramfs.py makes, as docs/guest.md has it."""
    directory = tmp_path_factory.mktemp("initramfs")
    image = directory / "agent.cpio"
    (config := directory / "config.toml").write_text('log_level = "debug"\n')
    kernel = guest_kernel()
    subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / "make_initramfs.py"), "--output", str(image)]
        + ["--config", str(config), "--modules", str(kernel.modules_root / kernel.release)]
        + ["--busybox", "/bin/busybox"],
        check=True,
    )
    return image


@pytest.fixture
def boot(request: pytest.FixtureRequest) -> Iterator[Callable[..., Machine]]:
    """`boot(command, ...)`: a Machine, switched off at the test's end, kept if that failed."""
    machines: list[Machine] = []

    def start(command: list[str] | None = None, **options: Any) -> Machine:
        machines.append(Machine(command, **options))
        return machines[-1]

    yield start
    for machine in machines:
        if request.node.stash.get(_failed, False):
            print(machine.failure("the test failed"))
        machine.close()

"""The client's tests of a real agent again, in a guest: both talk over the loopback of AF_VSOCK.

Those of the client alone, which talk to servers of their own, need no guest; and one event
loop is enough, as it is the transport that differs.
"""

from __future__ import annotations

import re
import sys

import pytest

from arcbox_agent.client import Client
from tests.vm.conftest import with_client
from tests.vm.machine import Machine, guest_environment
from tests.vm.packages import REPOSITORY
from tools.pace import patience


@pytest.mark.timeout(patience(900))
def test_the_clients_tests_pass_over_vsock(guest: Machine) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not asyncio"]
    command += ["tests/client/test_agent.py"]
    environment = {**guest_environment(), "ARCBOX_TEST_TRANSPORT": "vsock", "CI": "true"}

    async def work(client: Client) -> tuple[int, str]:
        result = await client.exec(command, env=environment, working_dir=str(REPOSITORY))
        return result.exit_code, result.stdout.decode(errors="replace") + result.stderr.decode(errors="replace")

    code, report = with_client(guest, work, patience=800)
    assert code == 0, report
    assert re.search(r"\d{2,} passed", report), report

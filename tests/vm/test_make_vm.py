"""`make vm`: a machine for arcboxctl in another terminal."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.cli.conftest import Arcboxctl
from tests.vm.machine import BOOT_LIMIT
from tests.vm.packages import REPOSITORY


@pytest.fixture
def terminal() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        # Whoever runs the tests in the background has SIGINT ignored.
        ["env", "--default-signal=INT", sys.executable, "-u", "-m", "tests.vm.run"],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watchdog = threading.Timer(BOOT_LIMIT, process.kill)
    watchdog.start()
    yield process
    watchdog.cancel()
    process.kill()
    process.communicate()


def test_it_leaves_an_address_and_ctrl_c_switches_it_off(terminal: subprocess.Popen[str]) -> None:
    assert terminal.stdout is not None
    shown = ""
    while "Ctrl-C" not in shown:
        line = terminal.stdout.readline()
        assert line, shown
        shown += line
    address = re.search(r"export ARCBOX_HOST=(\S+)", shown)
    assert address, shown
    ctl = Arcboxctl(address[1])
    assert "Kernel Version" in ctl("info").stdout
    # The example that it shows.
    assert ctl("run", "--rm", "hello:1", "sh", "-c", "echo hello from $(uname -s)").stdout == "hello from Linux\n"
    terminal.send_signal(signal.SIGINT)
    rest, _ = terminal.communicate(timeout=60)
    assert rest.strip() == "Switching it off ..."
    assert terminal.returncode == 0

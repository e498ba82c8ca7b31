"""What the package imports at run time: nothing before it is asked, and on a host nothing of Linux."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import REPOSITORY


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={"PYTHONPATH": str(REPOSITORY / "src")}
    )


def test_the_package_alone_imports_nothing() -> None:
    script = "import sys, arcbox_agent; print(sorted(m for m in sys.modules if 'arcbox' in m or m == 'asyncio'))"
    assert run(script).stdout == "['arcbox_agent']\n"


def test_the_hosts_library_needs_neither_the_agent_nor_what_only_linux_has() -> None:
    script = """
import sys
for name in ("uvloop", "psutil", "arcbox_agent._spawn", "arcbox_agent._logs", "arcbox_agent.agent"):
    sys.modules[name] = None  # An import of it fails.
import socket, select, errno
for module, names in {socket: ["AF_VSOCK", "VMADDR_CID_ANY"], select: ["epoll", "POLLRDHUP"]}.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
sys.platform = "darwin"
import arcbox_agent, arcbox_agent.sync
arcbox_agent.connect, arcbox_agent.Client, arcbox_agent.errors, arcbox_agent.wire
print("imported")
"""
    result = run(script)
    assert (result.stdout, result.stderr) == ("imported\n", "")

"""Who imports whom, read from the sources; and that a host needs no Linux."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "arcbox_agent"

#: Part -> the parts it may import.  A part is a module or a package right below arcbox_agent.
ALLOWED = {
    "errors": set(),
    "message_types": set(),
    "wire": {"errors", "_classes", "_frames", "_messages", "_pings", "message_types"},
    "address": {"errors"},
    "logs": {"errors", "wire", "_lines", "_log_output", "_logs", "_logscan"},
    # The compiled parts that only a guest needs are the agent's alone.
    "agent": {
        "errors",
        "message_types",
        "wire",
        "address",
        "logs",
        "_log_output",
        "_logs",
        "_spawn",
        "_log_file",
        "_pump",
        "_inotify",
        "_guest",
    },
    "client": {"errors", "message_types", "wire", "address"},
    "sync": {"client"},
    "cli": {"errors", "wire", "address", "logs", "client", "sync"},
}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Modules of ours that the file at `path` imports, as names below arcbox_agent."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "arcbox_agent" and rest:
                yield rest.split(".")[0]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part == "__init__":  # Nothing at run time: its names are looked up when asked for.
        return
    assert part in ALLOWED, f"say in ALLOWED what {part} may import"
    wrong = set(imported(path)) - ALLOWED[part] - {part, "__version__"}
    assert not wrong, f"{path} imports {sorted(wrong)}"


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={"PYTHONPATH": str(PACKAGE.parent)}
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

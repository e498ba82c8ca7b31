"""Which part of the package may import which, that no modules import in a circle, and that the map is true.

An import counts wherever it stands: under TYPE_CHECKING and inside a function as well.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from arcbox_agent.agent.logs.follower import TRANSITIONS
from arcbox_agent.agent.serving.states import NEXT
from tests.conftest import REPOSITORY

SOURCES = REPOSITORY / "src"
PAGE = REPOSITORY / "docs" / "architecture.md"
PACKAGE = "arcbox_agent"

State = TypeVar("State", bound=Enum)
Event = TypeVar("Event", bound=Enum)

#: What several rooms of agent/ stand on.
_GROUND = {"errors", "agent.observe", "agent.config", "agent.metrics"}

#: Part -> the parts that it may import; each stands above whoever imports it.  A part is a module or a folder
#: right below arcbox_agent, or right below arcbox_agent.agent.
ALLOWED: dict[str, set[str]] = {
    # Everywhere.
    "__version__": set(),
    "errors": set(),
    "message_types": set(),
    "readiness": set(),
    # Compiled: messages and frames.
    "_bytes": set(),
    "_tags": set(),
    "_wire": {"errors", "_bytes", "_tags"},
    "_classes": {"errors", "_tags", "_wire"},
    "_messages": {"_classes", "_wire"},
    "_frames": {"errors", "_bytes", "_tags", "_wire", "_classes", "_messages"},
    "_pings": {"errors", "_bytes", "_tags", "_wire", "_classes", "_frames"},
    # Compiled: lines of logs.
    "_file_read": set(),
    "_lines": set(),
    "_log_output": {"_bytes", "_tags", "_lines"},
    "_log_texts": {"_lines", "_log_output"},
    "_log_reading": {"_file_read", "_lines", "_log_output", "_log_texts"},
    "_logs": {"_file_read", "_lines", "_log_output", "_log_reading", "_log_texts"},
    "_logscan": {"_file_read", "_lines"},
    # Compiled, for Linux only: of these the agent alone knows.
    "_log_history": set(),
    "_log_file": {"_lines", "_log_history"},
    "_spool": {"_lines", "_log_file"},
    "_pump": {"_lines", "_log_file", "_spool"},
    "_spawn": set(),
    "_inotify": set(),
    "_guest": set(),
    "_entries": set(),
    # What the host and the guest share.
    "wire": {"errors", "message_types", "_classes", "_messages", "_frames", "_pings"},
    "address": {"errors"},
    "logs": {"errors", "wire", "_lines", "_log_output", "_logs", "_logscan"},
    # The guest: observe, config <- processes <- {serving, containers, logs, guest} <- commands <- handlers
    # <- routes <- agent <- daemon.
    "agent.observe": {"errors"},
    "agent.config": {"errors", "address", "agent.observe"},
    "agent.metrics": set(),
    "agent.clock": {*_GROUND, "_guest"},
    "agent.processes": {*_GROUND, "_spawn", "_entries"},
    "agent.serving": {*_GROUND, "_guest", "wire", "address", "readiness", "agent.processes"},
    "agent.containers": {
        *_GROUND,
        "wire",
        "_entries",
        "_spawn",
        "_log_file",
        "_log_history",
        "_pump",
        "agent.processes",
    },
    "agent.logs": {*_GROUND, "wire", "logs", "_logs", "_log_history", "_log_output", "_inotify", "agent.processes"},
    "agent.forwards": {
        *_GROUND,
        "wire",
        "readiness",
        "_spawn",
        "agent.processes",
        "agent.serving",
        "agent.containers",
    },
    "agent.guest": {*_GROUND, "_guest", "agent.processes"},
    "agent.commands": {*_GROUND, "wire", "_spawn", "agent.processes", "agent.containers"},
    "agent.executions": {
        *_GROUND,
        "wire",
        "_spawn",
        "_guest",
        "agent.processes",
        "agent.serving",
        "agent.containers",
    },
    "agent.waits": {
        *_GROUND,
        "wire",
        "_log_history",
        "agent.processes",
        "agent.containers",
        "agent.logs",
        "agent.forwards",
        "agent.executions",
    },
    "agent.handlers": {
        *_GROUND,
        "wire",
        "agent.clock",
        "agent.processes",
        "agent.serving",
        "agent.containers",
        "agent.logs",
        "agent.forwards",
        "agent.waits",
        "agent.guest",
        "agent.commands",
        "agent.executions",
    },
    "agent.routes": {
        *_GROUND,
        "wire",
        "message_types",
        "agent.clock",
        "agent.processes",
        "agent.serving",
        "agent.containers",
        "agent.logs",
        "agent.forwards",
        "agent.guest",
        "agent.commands",
        "agent.executions",
        "agent.handlers",
    },
    "agent.agent": {
        *_GROUND,
        "__version__",
        "agent.clock",
        "agent.processes",
        "agent.serving",
        "agent.containers",
        "agent.logs",
        "agent.forwards",
        "agent.guest",
        "agent.commands",
        "agent.executions",
        "agent.routes",
    },
    "agent.daemon": {*_GROUND, "__version__", "agent.guest", "agent.agent"},
    "agent.lean": {"agent.observe"},
    "agent": set(),
    "agent.modules": set(),
    "agent.__main__": {"agent.lean", "agent.modules", "agent.daemon"},
    # The host.
    "client": {"errors", "message_types", "readiness", "wire", "address"},
    "sync": {"client"},
    "cli": {"__version__", "errors", "readiness", "wire", "address", "logs", "client", "sync"},
    # Only for type checkers: at run time the package looks its names up when they are asked for.
    "arcbox_agent": {"errors", "wire", "client", "sync"},
}


class Arrow(NamedTuple):
    """One module imports another.  Names are below arcbox_agent; the package's own is `arcbox_agent`."""

    importer: str
    imported: str
    place: str  # file:line

    def __str__(self) -> str:
        return f"{self.importer} -> {self.imported} ({self.place})"


def module_of(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or PACKAGE


def part_of(module: str) -> str:
    first, *rest = module.split(".")
    return f"agent.{rest[0]}" if first == "agent" and rest else first


def imports_of_python(text: str) -> Iterator[tuple[int, str, str | None]]:
    """Line, module, and the name that is taken from the module, if any."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            yield from ((node.lineno, node.module or "", alias.name) for alias in node.names)


def imports_of_cython(text: str) -> Iterator[tuple[int, str, str | None]]:
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r"\s*(?:from (\S+) c?import\b|c?import (\S+))", line)
        if match:
            yield number, match[1] or match[2], None


def arrows(sources: Path) -> list[Arrow]:
    """All imports among the modules of arcbox_agent, which is in the directory `sources`."""
    package = sources / PACKAGE
    paths = sorted(path for path in package.rglob("*") if path.suffix in {".py", ".pyi", ".pyx", ".pxd"})
    modules = {module_of(path, package) for path in paths}
    found = []
    for path in paths:
        reader = imports_of_python if path.suffix in {".py", ".pyi"} else imports_of_cython
        importer = module_of(path, package)
        for line, module, name in reader(path.read_text()):
            if module.split(".")[0] != PACKAGE:
                continue
            imported = module.removeprefix(PACKAGE).removeprefix(".")
            inside = f"{imported}.{name}".removeprefix(".")
            if name and (inside in modules or inside == "__version__"):
                imported = inside
            imported = imported or PACKAGE
            if imported != importer:  # A .pyi or .pxd is of the module it describes.
                found.append(Arrow(importer, imported, f"{path.relative_to(sources.parent)}:{line}"))
    return found


def wrong_arrows(found: list[Arrow], allowed: Mapping[str, set[str]]) -> list[Arrow]:
    pairs = ((each, part_of(each.importer), part_of(each.imported)) for each in found)
    return [each for each, importer, imported in pairs if imported not in {importer, *allowed.get(importer, ())}]


def circles(found: list[Arrow]) -> list[list[Arrow]]:
    """For each set of modules that all reach one another (Tarjan): the arrows of a shortest circle in it."""
    onward: dict[str, list[str]] = {}
    for each in found:
        onward.setdefault(each.importer, []).append(each.imported)
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    sets: list[set[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for other in onward.get(module, ()):
            if other not in number:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], number[other])
        if lowest[module] == number[module]:
            start = stack.index(module)
            sets.append(set(stack[start:]))
            del stack[start:]

    for module in onward:
        if module not in number:
            visit(module)
    among = [[each for each in found if {each.importer, each.imported} <= members] for members in sets]
    return [min((way_back(each, inside) for each in inside), key=len) for inside in among if inside]


def way_back(first: Arrow, among: list[Arrow]) -> list[Arrow]:
    """A shortest circle that begins with `first`."""
    ways = [[first]]
    reached = {first.imported}
    for way in ways:
        if way[-1].imported == first.importer:
            return way
        for each in among:
            if each.importer == way[-1].imported and each.imported not in reached:
                reached.add(each.imported)
                ways.append([*way, each])
    raise AssertionError(f"{first} is in no circle")


def listed(found: list[Arrow]) -> str:
    return "\n".join(map(str, found))


def test_each_part_imports_only_what_it_may() -> None:
    wrong = wrong_arrows(arrows(SOURCES), ALLOWED)
    assert not wrong, f"imports that ALLOWED does not have:\n{listed(wrong)}"


def test_no_modules_import_one_another_in_a_circle() -> None:
    found = circles(arrows(SOURCES))
    assert not found, "modules import in a circle:\n" + "\n\n".join(map(listed, found))


def test_the_table_has_each_part_and_goes_one_way() -> None:
    package = SOURCES / PACKAGE
    files = [path for path in package.rglob("*") if path.suffix in {".py", ".pyx", ".pxd"}]
    assert set(ALLOWED) - {"__version__"} == {part_of(module_of(path, package)) for path in files}
    above: set[str] = set()
    for part, may in ALLOWED.items():
        assert may <= above, f"{part} may import {may - above}, which stand below it"
        above.add(part)


def test_an_import_is_found_wherever_it_stands(tmp_path: Path) -> None:
    files = {
        "__init__.py": "__version__ = '1'\n",
        "_low.pyx": "from libc.stdint cimport uint8_t\nfrom arcbox_agent._lines cimport Line\n",
        "_lines.pxd": "",
        "agent/__init__.py": "",
        "agent/config/__init__.py": "import os\nfrom arcbox_agent import __version__\n",
        "agent/config/table.py": "if TYPE_CHECKING:\n    from arcbox_agent.agent.serving import call\n",
        "agent/serving/call.py": "def f():\n    import arcbox_agent.agent.config.table\n    import arcbox_agent\n",
    }
    for name, text in files.items():
        path = tmp_path / "src" / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = arrows(tmp_path / "src")
    assert list(map(str, found)) == [
        "_low -> _lines (src/arcbox_agent/_low.pyx:2)",
        "agent.config -> __version__ (src/arcbox_agent/agent/config/__init__.py:2)",
        "agent.config.table -> agent.serving.call (src/arcbox_agent/agent/config/table.py:2)",
        "agent.serving.call -> agent.config.table (src/arcbox_agent/agent/serving/call.py:2)",
        "agent.serving.call -> arcbox_agent (src/arcbox_agent/agent/serving/call.py:3)",
    ]
    assert wrong_arrows(found, {"_low": {"_lines"}, "agent.config": {"__version__"}}) == found[2:]
    assert circles(found) == [found[2:4]]


def state_table(table: Mapping[State, Mapping[Event, State]]) -> str:
    """State x event -> state, in Markdown; `-` is what cannot happen."""
    events = [*type(next(event for row in table.values() for event in row))]
    rows = [
        "| state | " + " | ".join(event.name for event in events) + " |",
        "| --- |" + " --- |" * len(events),
    ]
    for state, following in table.items():
        cells = (following[event].name if event in following else "-" for event in events)
        rows.append(f"| {state.name} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize("rendered", [state_table(NEXT), state_table(TRANSITIONS)], ids=["connection", "follow"])
def test_the_map_has_the_state_tables_as_they_are(rendered: str) -> None:
    assert f"\n\n{rendered}\n" in PAGE.read_text(), f"put into docs/architecture.md:\n{rendered}"


def files_of_the_project() -> list[Path]:
    return [path for top in ("src", "tests", "tools", "schema", "docs") for path in (REPOSITORY / top).rglob("*.*")]


def test_each_file_that_the_map_names_is_there() -> None:
    named = set(re.findall(r"`([\w/]+\.(?:py|pyx|pxd|h|proto|md))`", PAGE.read_text()))
    files = [f"/{path.relative_to(REPOSITORY)}" for path in files_of_the_project()]
    missing = {name for name in named if not any(file.endswith(f"/{name}") for file in files)}
    assert named and not missing


def test_each_name_that_the_map_takes_from_the_code_is_in_the_code() -> None:
    quoted = re.findall(r"`([A-Za-z_][\w.]*)(?:\([^`]*\))?`", PAGE.read_text())
    named = {name for text in quoted for name in text.split(".")}
    files = [path for path in files_of_the_project() if path.suffix in {".py", ".pyx", ".pxd", ".h", ".proto"}]
    words = {word for path in files for word in re.findall(r"\w+", path.read_text())}
    missing = named - words - {part for path in files for part in path.name.split(".")}
    assert named and not missing

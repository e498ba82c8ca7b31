"""The agent's own modules are found without Python's search, and are the same modules."""

from __future__ import annotations

import os
import py_compile
import subprocess
import sys
from pathlib import Path

#: A package of that name, with a module whose value tells which source it was made of.
PACKAGE = "arcbox_agent"


def found(root: Path) -> list[str]:
    """The value of `part`, and what its spec says, where the finder is at work."""
    script = f"""
import sys
sys.path.append({str(root)!r})
from arcbox_agent.agent.modules import OwnModules
sys.meta_path.insert(0, OwnModules)
import arcbox_agent
arcbox_agent.__path__.insert(0, {str(root / PACKAGE)!r})
from arcbox_agent import part
import inspect
print(part.VALUE, type(part.__loader__).__name__, part.__file__, part.__cached__, part.__package__)
print(inspect.getsource(part.told).strip())
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return done.stdout.splitlines()


def test_a_module_is_its_source_though_it_was_compiled_before(tmp_path: Path) -> None:
    package = tmp_path / PACKAGE
    package.mkdir()
    part = package / "part.py"
    part.write_text("VALUE = 1\ndef told(): return VALUE\n")
    cached = package / "__pycache__" / f"part.{sys.implementation.cache_tag}.pyc"

    # Not compiled yet: Python finds and compiles it.
    assert found(tmp_path)[0].split()[:2] == ["1", "SourceFileLoader"]
    assert cached.exists()
    # Compiled: it is found here, and looks like any other module.
    assert found(tmp_path) == [f"1 _Loader {part} {cached} {PACKAGE}", "def told(): return VALUE"]
    # The source is another one now, of the same size or not.
    part.write_text("VALUE = 2\ndef told(): return VALUE\n")
    os.utime(part, (1, 1))
    assert found(tmp_path)[0].split()[:2] == ["2", "SourceFileLoader"]
    os.utime(part, (1, 1))
    assert found(tmp_path)[0].split()[:2] == ["2", "_Loader"]
    part.write_text("VALUE = 33\ndef told(): return VALUE\n")
    os.utime(part, (1, 1))
    assert found(tmp_path)[0].split()[:2] == ["33", "SourceFileLoader"]
    # Compiled in another way, which no time and size belongs to.
    py_compile.compile(str(part), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    assert found(tmp_path)[0].split()[:2] == ["33", "SourceFileLoader"]
    cached.write_bytes(b"")
    assert found(tmp_path)[0].split()[:2] == ["33", "SourceFileLoader"]

"""What the tests reach of the package: lines and branches of Python, lines of Cython.

    python -m tools.covered [pytest arguments]

Compiled modules tell which of their lines run only where they are compiled for it, and are many times
slower then.  So that is done in a copy of the checkout (.cache/covered), and the tests run there.
pyproject.toml tells coverage.py the rest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import coverage
import Cython.Coverage

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / ".cache" / "covered"
RESULTS = ROOT / "build" / "coverage"

#: What no test needs.
LEFT_OUT = (".git", ".venv", ".cache", ".benchmarks", ".hypothesis", ".*_cache", "__pycache__", "build", "dist")
#: What a compilation makes.
COMPILED = (".so", ".c", ".o")


class Plugin(Cython.Coverage.Plugin):
    """Finds the lines of a .pxd file too, which the C files of several modules have."""

    def file_reporter(self, filename: str) -> Any:
        code: dict[int, str] = {}
        if filename.endswith(".pxd"):
            for c_file in Path(filename).parent.glob("*.c"):
                code |= self._read_source_lines(str(c_file), filename)[1] or {}  # type: ignore[no-untyped-call]
            c_file, name, _ = self._c_files_map[filename]
            self._c_files_map[filename] = c_file, name, code
        return super().file_reporter(filename)  # type: ignore[no-untyped-call]


def build() -> dict[str, str]:
    """The checkout as it is now, with modules that can be traced; the environment to run it in."""
    for file in list(COPY.rglob("*")):
        # What was compiled stays: it is compiled again where its source has changed.
        if (file.is_symlink() or file.is_file()) and not (file.suffix in COMPILED and "arcbox_agent" in file.parts):
            file.unlink()
    left_out = shutil.ignore_patterns(*LEFT_OUT, "*.so", "*.egg-info")
    shutil.copytree(ROOT, COPY, symlinks=True, dirs_exist_ok=True, ignore=left_out)
    environment = {
        **os.environ,
        "PYTHONPATH": str(COPY / "src"),
        "ARCBOX_COVERAGE": "1",
        "COVERAGE_FILE": str(RESULTS / "data"),
    }
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=COPY, env=environment, check=True)
    # A module names its source from here (src/arcbox_agent/...), and the processes that tests start
    # look for that on sys.path, where they have src alone.
    (COPY / "src" / "src").symlink_to(".")
    return environment


def report() -> None:
    """A table, and pages with the source."""
    setattr(Cython.Coverage, "Plugin", Plugin)  # noqa: B010  # as a plain assignment it is an error in mypy
    # Sources are looked for from here.
    os.chdir(COPY)
    sys.path.insert(0, str(COPY / "src"))
    covered = coverage.Coverage(data_file=str(RESULTS / "data"))
    covered.combine()
    covered.save()
    covered.html_report(directory=str(RESULTS / "html"))
    covered.report()


def main(arguments: list[str]) -> int:
    """Builds, tests and reports; the exit status of pytest."""
    environment = build()
    shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir(parents=True)
    command = [sys.executable, "-m", "coverage", "run", "-m", "pytest", *arguments]
    status = subprocess.run(command, cwd=COPY, env=environment, check=False).returncode
    report()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

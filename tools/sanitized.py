"""Tests of the compiled parts under AddressSanitizer and UndefinedBehaviorSanitizer.

    python -m tools.sanitized [pytest arguments]

The extensions are built with both in a copy of src/ (.cache/sanitized), so that those of the
checkout stay as they are.  The first report of either sanitizer ends the run.  gcc on Linux.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / ".cache" / "sanitized"
#: Where a sanitizer writes what it found, followed by the number of the process.
REPORT = COPY / "report"

#: Each reaches compiled code with inputs at its bounds.
TESTS = ["tests/wire", "tests/logs/test_engine.py", "tests/logs/test_capture.py", "tests/containers/test_processes.py"]
#: Not here: one builds the extensions once more in a way of its own, one runs protoc in this process,
#: whose C++ library is not built for ASan.
LEFT_OUT = ["tests/wire/test_debug_build.py", "tests/wire/test_generator.py"]


def build(compiler: str) -> None:
    """The extensions, with sanitizers, beside a copy of the Python files."""
    for file in (COPY / "src").rglob("*"):
        # What is left of an earlier run, but for extensions that may be up to date.
        if file.is_file() and file.suffix != ".so":
            file.unlink()
    shutil.copytree(
        ROOT / "src", COPY / "src", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE-APACHE", "LICENSE-MIT"):
        shutil.copy2(ROOT / name, COPY / name)
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=COPY,
        env={**os.environ, "CC": compiler, "ARCBOX_SANITIZE": "1"},
        check=True,
    )


def library(compiler: str, name: str) -> str:
    """The path of a sanitizer's shared library."""
    command = [*shlex.split(compiler), f"-print-file-name={name}"]
    path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    if not Path(path).is_absolute():
        raise SystemExit(f"{compiler} has no {name}: install gcc with its sanitizers")
    return path


def environment(compiler: str, asan: str, ubsan: str) -> dict[str, str]:
    """In which a process uses the sanitized build.  `asan`, `ubsan`: options of each."""
    return {
        **os.environ,
        # The interpreter itself is not built with ASan, so the library has to be loaded before it.
        "LD_PRELOAD": library(compiler, "libasan.so"),
        # The interpreter frees little at its exit, and a spawned child shares memory until execve.
        "ASAN_OPTIONS": f"detect_leaks=0:allocator_may_return_null=1:{asan}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:{ubsan}",
        # pymalloc would hide the bounds of objects from ASan.
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": os.pathsep.join([str(COPY / "src"), str(ROOT)]),
    }


def main(arguments: list[str]) -> int:
    """Builds and tests; the exit status of pytest."""
    compiler = os.environ.get("CC") or "gcc"
    build(compiler)
    options = f"log_path={REPORT}"
    left_out = [f"--ignore={path}" for path in LEFT_OUT]
    command = [sys.executable, "-m", "pytest", "-q", *left_out, *(arguments or TESTS)]
    for old in COPY.glob("report.*"):
        old.unlink()
    environ = environment(compiler, options, options)
    status = subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode
    # Files, because pytest takes what a test writes to stderr, and is gone with the process.
    reports = [path.read_text() for path in sorted(COPY.glob("report.*"))]
    print(*reports, sep="\n")
    return status or bool(reports)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

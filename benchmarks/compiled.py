"""Builds the C programs of rivals/ on the spot, once per source, flags and compiler."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "benchmarks" / "rivals"
CACHE = ROOT / ".cache" / "compiled"
FLAGS = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]


def compiled(name: str, sources: Path = SOURCES) -> Path:
    """The program made of `name`.c."""
    source = sources / f"{name}.c"
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    key = hashlib.sha256()
    for part in (*compiler, *FLAGS):
        key.update(part.encode() + b"\0")
    for file in (source, *sorted(sources.glob("*.h"))):
        key.update(file.read_bytes())
    program = CACHE / f"{name}-{key.hexdigest()[:16]}"
    if not program.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        # Beside it and renamed: two test runs at once never see half a program.
        unfinished = CACHE / f"{program.name}.{os.getpid()}"
        subprocess.run([*compiler, *FLAGS, "-o", unfinished, source], check=True)
        unfinished.rename(program)
    return program

"""Builds small C programs on the spot, once per source, flags and compiler.

The rivals of the benchmarks and the writers of the stress tests are such: what
is beside the thing that is judged must not be what is slow.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "compiled"
FLAGS = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]


def compiled(source: Path) -> Path:
    """The program made of this one source, and of the headers beside it."""
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    key = hashlib.sha256()
    for part in (*compiler, *FLAGS):
        key.update(part.encode() + b"\0")
    for file in (source, *sorted(source.parent.glob("*.h"))):
        key.update(file.read_bytes())
    program = CACHE / f"{source.stem}-{key.hexdigest()[:16]}"
    if not program.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        # Beside it and renamed: two test runs at once never see half a program.
        unfinished = CACHE / f"{program.name}.{os.getpid()}"
        subprocess.run([*compiler, *FLAGS, "-o", unfinished, source], check=True)
        unfinished.rename(program)
    return program

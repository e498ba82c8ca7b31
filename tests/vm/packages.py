"""Debian packages that are fetched and unpacked for guests, never installed."""

from __future__ import annotations

import fcntl
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
#: In the checkout, so that several have no business with each other.
CACHE = REPOSITORY / ".cache" / "vm"


def unpacked(
    name: str, packages: Callable[[], list[str]], finish: Callable[[Path], None] = lambda directory: None
) -> Path:
    """The directory `name` of the cache, which has the packages' files; filled the first time."""
    directory = CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                # Without the sandbox user, who could not write here.
                run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *packages()], cwd=scratch)
                filled = Path(scratch) / "unpacked"
                for archive in Path(scratch).glob("*.deb"):
                    run(["dpkg", "-x", str(archive), str(filled)])
                finish(filled)
                # Last, so that a fetch that was cut off leaves nothing that looks whole.
                filled.rename(directory)
    return directory


def package_behind(meta: str) -> str:
    """The package that a meta-package stands for at present."""
    for attempt in (1, 2):
        answer = subprocess.run(["apt-cache", "depends", meta], capture_output=True, text=True)
        for line in answer.stdout.splitlines():
            word, _, name = line.strip().partition(" ")
            if word == "Depends:" and name.startswith("linux-image-"):
                return name
        if attempt == 1:
            run(["apt-get", "-qq", "update"])  # a fresh machine has no lists yet
    raise RuntimeError(f"no package {meta}: the guest's kernel comes from Debian's packages for amd64")


def run(command: list[str], cwd: str | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    except FileNotFoundError:
        raise RuntimeError(f"no {command[0]} here: the packages are in tools/apt-packages.txt") from None
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")

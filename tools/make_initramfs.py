"""Makes a minimal initramfs whose PID 1 is the agent: Python, the agent, and little else.

    python tools/make_initramfs.py --output agent.cpio [--config config.toml]
        [--modules /lib/modules/6.1.0-56-cloud-amd64] [--busybox /bin/busybox]

The interpreter that runs this tool is the one that goes in, with its shared libraries, the
part of its standard library that an agent can use, and the arcbox_agent, uvloop and psutil
that it imports.  `--modules` adds what vsock needs, for a kernel where it is not built in;
`--busybox` adds a shell and its commands, for exec.  Several archives may follow one
another in one file: append your own to add more.
"""

from __future__ import annotations

import argparse
import importlib.util
import marshal
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.cpio import CpioArchive

#: Where the agent's own packages are in the guest.
LIBRARY = "/opt/arcbox/lib"
CONFIG = "/etc/arcbox-agent/config.toml"

#: What of the standard library no agent imports, and weighs most.
LEFT_OUT = {
    "__pycache__", "config-3", "ctypes", "curses", "dbm", "distutils", "dist-packages", "ensurepip", "idlelib",
    "lib2to3", "msilib", "multiprocessing", "pydoc_data", "site-packages", "sqlite3", "test", "tests", "tkinter",
    "turtledemo", "unittest", "venv", "wsgiref", "xml", "xmlrpc",
}  # fmt: skip
PACKAGES = ("arcbox_agent", "uvloop", "psutil")

INIT = """#!{interpreter} -I
# The agent as PID 1; it re-executes itself when it fails, and so comes by here again.
import sys

sys.path.insert(0, {library!r})

from arcbox_agent.agent.daemon import main

sys.exit(main({arguments!r}))
"""


class Image:
    """The archive, and the shared libraries it is going to need."""

    def __init__(self) -> None:
        self.archive = CpioArchive()
        self._libraries: set[Path] = set()

    def add_program(self, path: Path, where: str) -> None:
        """An executable or a shared object, with all that it is linked to."""
        self.archive.add_file(where, path.read_bytes(), 0o755)
        answer = subprocess.run(["ldd", str(path)], capture_output=True, text=True)
        for line in answer.stdout.splitlines():
            for word in line.split():
                if word.startswith("/") and word not in map(str, self._libraries):
                    library = Path(word)
                    self._libraries.add(library)
                    self.archive.add_file(word, library.resolve().read_bytes(), 0o755)

    def add_tree(self, source: Path, where: str) -> None:
        """Modules: compiled ones as they are, the others as bytecode alone."""
        for entry in sorted(source.iterdir()):
            target = f"{where}/{entry.name}"
            if entry.name in LEFT_OUT or entry.name.startswith("config-"):
                continue
            if entry.is_dir():
                self.add_tree(entry, target)
            elif entry.suffix == ".py":
                self.archive.add_file(target + "c", bytecode(entry, target))
            elif entry.suffix == ".so" and is_loadable(entry):
                self.add_program(entry, target)


def bytecode(source: Path, shown_as: str) -> bytes:
    """A .pyc without its source, which the first import would otherwise have to make."""
    text = source.read_bytes()
    code = compile(text, shown_as, "exec", dont_inherit=True)
    unchecked_hash = (1).to_bytes(4, "little")
    return importlib.util.MAGIC_NUMBER + unchecked_hash + importlib.util.source_hash(text) + marshal.dumps(code)


def is_loadable(path: Path) -> bool:
    """Not for tests, and linked to nothing that this machine lacks itself."""
    if path.name.startswith(("_test", "_ctypes", "_tkinter", "_sqlite", "xxlimited")):
        return False
    return "not found" not in subprocess.run(["ldd", str(path)], capture_output=True, text=True).stdout


def add_python(image: Image) -> str:
    """The interpreter and its standard library, where they are here; the path of the first."""
    interpreter = os.path.realpath(sys.executable)
    image.add_program(Path(interpreter), interpreter)
    library = Path(sysconfig.get_path("stdlib"))
    image.add_tree(library, str(library))
    dynload = Path(sysconfig.get_config_var("DESTSHARED"))
    if library not in dynload.parents:
        image.add_tree(dynload, str(dynload))
    return interpreter


def add_packages(image: Image) -> None:
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            sys.exit(f"make_initramfs: {name} is not installed for {sys.executable}")
        image.add_tree(Path(found.origin).parent, f"{LIBRARY}/{name}")


def add_modules(image: Image, directory: Path) -> None:
    """The kernel's modules that the agent, as PID 1, loads for its vsock."""
    from arcbox_agent.agent.guest.init import MODULES

    for name, below in MODULES:
        for path in (directory / "kernel" / below).glob(f"{name}.ko*"):
            image.archive.add_file(f"/lib/modules/{directory.name}/kernel/{below}/{path.name}", path.read_bytes())


def add_busybox(image: Image, busybox: Path) -> None:
    image.add_program(busybox, "/bin/busybox")
    applets = subprocess.run([str(busybox), "--list-full"], capture_output=True, text=True, check=True)
    for path in applets.stdout.split():
        if path not in ("bin/busybox", "linuxrc", "sbin/init"):
            image.archive.add_symlink("/" + path, "/bin/busybox")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--config", type=Path, help=f"becomes {CONFIG} of the guest")
    parser.add_argument("--modules", type=Path, help="a kernel's directory of modules")
    parser.add_argument("--busybox", type=Path, help="a static busybox")
    options = parser.parse_args()

    image = Image()
    for directory in ("dev", "etc", "proc", "root", "run", "sys", "tmp", "var/lib"):
        image.archive.add_directory(directory)
    # The kernel opens it before anything is mounted.
    image.archive.add_character_device("dev/console", 5, 1)
    image.archive.add_file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    image.archive.add_file("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
    arguments: list[str] = []
    if options.config:
        image.archive.add_file(CONFIG, options.config.read_bytes())
        arguments = ["--config", CONFIG]
    interpreter = add_python(image)
    add_packages(image)
    if options.modules:
        add_modules(image, options.modules)
    if options.busybox:
        add_busybox(image, options.busybox)
    init = INIT.format(interpreter=interpreter, library=LIBRARY, arguments=arguments)
    image.archive.add_file("init", init.encode(), 0o755)
    options.output.write_bytes(image.archive.to_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())

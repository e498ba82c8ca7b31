"""The guest's kernel: Debian's for clouds, fetched and unpacked, never installed."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
CACHE = REPOSITORY / ".cache" / "vm"

_META_PACKAGE = "linux-image-cloud-amd64"

#: What the first root needs to reach the real one, each after what it depends on.
ROOT_MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "fuse",
    "virtiofs",
    "overlay",
)
#: What AF_VSOCK needs.  Loaded by the agent where the guest lets it find them.
VSOCK_MODULES = (
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vsock_loopback",
    "vmw_vsock_virtio_transport",
)


class GuestKernel:
    """An unpacked kernel package."""

    def __init__(self, directory: Path) -> None:
        (self.image,) = (directory / "boot").glob("vmlinuz-*")
        self.release = self.image.name.removeprefix("vmlinuz-")
        self.modules_root = directory / "lib" / "modules"
        self._modules = {
            path.stem: path for path in (self.modules_root / self.release / "kernel").rglob("*.ko")
        }

    def module(self, name: str) -> Path | None:
        """A module's file; None where it is built in."""
        return self._modules.get(name)


def guest_kernel() -> GuestKernel:
    """The kernel in the cache, which is filled the first time."""
    directory = CACHE / "kernel"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            _fetch(directory)
    return GuestKernel(directory)


def _fetch(directory: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        package = _package_of(_META_PACKAGE)
        # Without the sandbox user, who could not write here.
        _run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package], cwd=scratch)
        (archive,) = Path(scratch).glob("*.deb")
        unpacked = Path(scratch) / "kernel"
        _run(["dpkg", "-x", str(archive), str(unpacked)])
        (release,) = [path.name for path in (unpacked / "lib" / "modules").iterdir()]
        # modprobe in the guest looks modules up in what this writes.
        _run(["depmod", "-b", str(unpacked), release])
        shutil.rmtree(unpacked / "usr", ignore_errors=True)
        # Last, so that a fetch that was cut off leaves nothing that looks whole.
        unpacked.rename(directory)


def _package_of(meta: str) -> str:
    """The package that a meta-package stands for at present."""
    for attempt in (1, 2):
        answer = subprocess.run(["apt-cache", "depends", meta], capture_output=True, text=True)
        for line in answer.stdout.splitlines():
            word, _, name = line.strip().partition(" ")
            if word == "Depends:" and name.startswith("linux-image-"):
                return name
        if attempt == 1:
            _run(["apt-get", "-qq", "update"])  # a fresh machine has no lists yet
    raise RuntimeError(f"no package {meta}: the guest's kernel comes from Debian's packages for amd64")


def _run(command: list[str], cwd: str | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")

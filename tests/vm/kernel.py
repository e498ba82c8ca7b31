"""The guest's kernel: Debian's for clouds, fetched and unpacked, never installed."""

from __future__ import annotations

from pathlib import Path

from tests.vm.packages import package_behind, run, unpacked

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
        self._modules = {path.stem: path for path in (self.modules_root / self.release / "kernel").rglob("*.ko")}

    def module(self, name: str) -> Path | None:
        """A module's file; None where it is built in."""
        return self._modules.get(name)


def guest_kernel() -> GuestKernel:
    """The kernel in the cache, which is filled the first time."""
    return GuestKernel(unpacked("kernel", lambda: [package_behind(_META_PACKAGE)], finish=_index_modules))


def _index_modules(directory: Path) -> None:
    (release,) = [path.name for path in (directory / "lib" / "modules").iterdir()]
    # modprobe in the guest looks modules up in what this writes.
    # By its path: a root by `su` has the PATH of an ordinary user.
    run(["/sbin/depmod", "-b", str(directory), release])

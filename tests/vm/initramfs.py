"""The first root of a guest: busybox, the modules for the real root, and /init.

The real root is the host's own, read-only over virtiofs, so the guest runs the very
Python, packages and checkout under test; above it lies a tmpfs that takes what is
written (`Root.OVERLAY`), or nothing (`Root.READ_ONLY`).
"""

from __future__ import annotations

import enum
import shlex
from pathlib import Path

from tests.vm.kernel import ROOT_MODULES, VSOCK_MODULES, GuestKernel
from tools.cpio import CpioArchive

_BUSYBOX = Path("/bin/busybox")

#: The first root's last word on the console, and how its others begin: all is up to PID 1 then.
STARTING_PID_1 = "initramfs: starting PID 1"
GIVING_UP = "initramfs: cannot go on: "


class Root(enum.Enum):
    #: The host's root, and a tmpfs over it that takes what is written.
    OVERLAY = "overlay"
    #: The host's root alone.
    READ_ONLY = "read-only"


_INIT = rf"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
fail() {{ echo "{GIVING_UP}$*"; poweroff -f; }}
mount -t proc proc /proc
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/modules/$module.ko" || fail "module $module"
done < /modules/order
mkdir -p /host /cow /newroot
mount -t virtiofs -o ro hostroot /host || fail "no root over virtiofs"
. /boot/settings
case "$ROOT" in
overlay)
    mount -t tmpfs -o mode=755 cow /cow
    mkdir /cow/upper /cow/work
    mount -t overlay -o lowerdir=/host,upperdir=/cow/upper,workdir=/cow/work overlay /newroot \
        || fail "no overlay"
    # The kernel's modules, where the guest looks for them.
    mkdir -p /newroot/lib/modules
    mount --bind "/host$MODULES" /newroot/lib/modules || fail "no modules"
    # By this a guest whose host is a container would take itself for one too.
    rm -f /newroot/.dockerenv
    cp -a /boot/files/. /newroot/
    ;;
read-only)
    mount --bind /host /newroot
    ;;
esac
umount /proc
umount /dev
cd /newroot
mount --move . /
# The kernel's own chatter ends, which showed how far it came.
dmesg -n 4
echo "{STARTING_PID_1}"
exec chroot . $COMMAND
"""


def base_archive(kernel: GuestKernel, modules: tuple[str, ...]) -> bytes:
    """What every boot of a kernel shares."""
    archive = CpioArchive()
    for directory in ("bin", "boot/files", "dev", "modules", "proc"):
        archive.add_directory(directory)
    archive.add_character_device("dev/console", 5, 1)
    archive.add_file("bin/busybox", _BUSYBOX.read_bytes(), 0o755)
    archive.add_file("init", _INIT.encode(), 0o755)
    order = []
    for name in modules:
        path = kernel.module(name)
        if path is not None:
            archive.add_file(f"modules/{name}.ko", path.read_bytes())
            order.append(name)
    archive.add_file("modules/order", "".join(f"{name}\n" for name in order).encode())
    return archive.to_bytes()


def boot_archive(kernel: GuestKernel, root: Root, command: list[str], files: dict[str, tuple[str, int]]) -> bytes:
    """The whole first root of one boot.  `files`: path in the guest to (content, mode)."""
    # A read-only root has no place for the modules, so there they are loaded beforehand.
    modules = ROOT_MODULES if root is Root.OVERLAY else ROOT_MODULES + VSOCK_MODULES
    archive = CpioArchive()
    settings = {
        "ROOT": root.value,
        "MODULES": str(kernel.modules_root),
        "COMMAND": " ".join(command),
    }
    lines = "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items())
    archive.add_file("boot/settings", lines.encode())
    for path, (content, mode) in files.items():
        archive.add_file("boot/files/" + path.lstrip("/"), content.encode(), mode)
    return base_archive(kernel, modules) + archive.to_bytes()

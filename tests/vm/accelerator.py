"""Whether this machine's KVM runs a guest, which /dev/kvm alone does not tell."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from tests.vm.kernel import GuestKernel
from tests.vm.packages import CACHE

#: A kernel that runs under KVM panics for want of a root well within this.
_PATIENCE = 8.0


def accelerator(kernel: GuestKernel) -> str:
    """`kvm`, or `tcg`, which is emulation.  Found out once a boot of this machine."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = CACHE / f"accelerator-{boot}"
    if known.exists():
        return known.read_text()
    answer = "kvm" if _kvm_boots(kernel) else "tcg"
    for stale in CACHE.glob("accelerator-*"):
        stale.unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=CACHE, delete=False) as file:
        file.write(answer)
    os.rename(file.name, known)
    return answer


def _kvm_boots(kernel: GuestKernel) -> bool:
    command = ["qemu-system-x86_64", "-M", "q35", "-accel", "kvm", "-cpu", "host", "-m", "128"]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]
    command += ["-kernel", str(kernel.image), "-append", "console=ttyS0 panic=-1"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and b"Linux version" in done.stdout

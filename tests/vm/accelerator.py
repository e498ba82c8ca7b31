"""What runs the guest's CPUs, in the order in which a boot tries it.

/dev/kvm tells little: there are machines where it is there and refuses a guest, or lets
one hang.  QEMU's emulation in several threads now and then hangs a guest that boots.  So
each boot is watched (machine.py), and what follows a boot that hung is a safer choice.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tests.vm.packages import CACHE


@dataclass(frozen=True, slots=True)
class Accelerator:
    """`silence`, `limit`: seconds without a word on the console, and in all, until PID 1 starts.

    A kernel that boots says something several times a second, and is there after two; each
    bound is many times what a machine needs that has much else to do.
    """

    name: str
    options: tuple[str, ...]
    silence: float
    limit: float


_KVM = Accelerator("kvm", ("-accel", "kvm"), silence=15.0, limit=30.0)
_TCG = Accelerator("tcg", ("-accel", "tcg,thread=multi"), silence=30.0, limit=60.0)
#: One thread for all CPUs: slow, and without what can go wrong between two.
_TCG_SINGLE = Accelerator("tcg", ("-accel", "tcg,thread=single"), silence=60.0, limit=120.0)


def accelerators() -> list[Accelerator]:
    """One for each try; after the last there is none."""
    if os.access("/dev/kvm", os.R_OK | os.W_OK) and not _kvm_failed().exists():
        return [_KVM, _TCG, _TCG_SINGLE]
    return [_TCG, _TCG, _TCG_SINGLE]


def remember_failure(accelerator: Accelerator) -> None:
    """KVM is not tried again before this machine boots anew.  Emulation always is."""
    if accelerator is _KVM:
        for stale in CACHE.glob("kvm-failed-*"):
            stale.unlink(missing_ok=True)
        _kvm_failed().touch()


def _kvm_failed() -> Path:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return CACHE / f"kvm-failed-{boot}"

"""The harness itself: it repeats what its emulator spoils, and nothing else."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm import evidence, machine
from tests.vm.accelerator import Accelerator
from tests.vm.conftest import with_client
from tests.vm.machine import Machine, MachineError
from tests.vm.qmp import Qmp

_TCG = ("-accel", "tcg,thread=multi")
#: Never starts its CPUs, as an emulator that hangs at once.
_FROZEN = Accelerator("frozen", (*_TCG, "-S"), silence=1.0, limit=2.0)
_MISSING = Accelerator("missing", ("-accel", "none-such"), silence=60.0, limit=60.0)
_GOOD = Accelerator("tcg", _TCG, silence=60.0, limit=120.0)


@pytest.fixture
def tried_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`tried_with(...)`: the accelerators of the boots to come; they are meant to hang, and soon."""
    monkeypatch.setattr(machine, "HUNG_BOOTS", [])
    monkeypatch.setattr(machine, "_SUSPICIOUS", 1.0)
    monkeypatch.setattr(evidence, "_ANSWER", 3.0)

    def replace(*accelerators: Accelerator) -> None:
        monkeypatch.setattr(machine, "accelerators", lambda: list(accelerators))

    return replace


def test_a_boot_that_hangs_is_repeated(boot: Callable[..., Machine], tried_with: Callable[..., None]) -> None:
    tried_with(_MISSING, _FROZEN, _GOOD, _GOOD)
    guest = boot()
    with Qmp(guest.qmp_path) as qemu:
        qemu.command("stop")  # before its agent listens: no kernel is there any more
    assert with_client(guest, lambda client: client.ping("there")).message == "pong: there"
    assert guest.hung_boots == [
        "-accel none-such: QEMU ended with 1 before PID 1 started",
        "-accel tcg,thread=multi -S: the guest said nothing for 1 s, before PID 1 started",
        "-accel tcg,thread=multi: nobody listens on port 1024, and the guest's kernel answers to no key",
    ]
    # What there is to see of each goes with it.
    missing, frozen, stopped = machine.HUNG_BOOTS
    assert "invalid accelerator none-such" in missing
    assert "VM status: paused (prelaunch)" in frozen and "EIP=0000fff0" in frozen
    assert "VM status: paused" in stopped and "initramfs: starting PID 1" in stopped


def test_the_last_try_that_hangs_fails_and_leaves_all_behind(tried_with: Callable[..., None]) -> None:
    tried_with(_MISSING, _FROZEN)
    with pytest.raises(MachineError, match="the guest said nothing for 1 s") as failed:
        Machine(None)
    assert "an earlier try: -accel none-such: QEMU ended with 1" in str(failed.value)
    directory = Path(failed.value.directory)
    assert (directory / "1" / "qemu.txt").exists()
    shutil.rmtree(directory)


def test_a_pid_1_that_does_not_listen_is_never_tried_again(
    boot: Callable[..., Machine], tried_with: Callable[..., None]
) -> None:
    tried_with(_GOOD, _GOOD)
    guest = boot(["/bin/sleep", "1000"])
    with pytest.raises(MachineError, match="nobody listens on port 1024 after 5 s") as failed:
        guest.wait_until_it_listens(limit=5.0)
    assert guest.hung_boots == []
    # Where it hangs is told by the guest's kernel.
    assert re.search(r"task:sleep +state:S .* pid:1 (?s:.*)nanosleep", str(failed.value))
    shutil.rmtree(guest.directory)


def test_a_guest_that_switches_itself_off_is_never_tried_again(
    boot: Callable[..., Machine], tried_with: Callable[..., None]
) -> None:
    tried_with(_GOOD, _GOOD)
    guest = boot(["/bin/true"])
    with pytest.raises(MachineError, match="(?s)ended with 0.*Attempted to kill init") as failed:
        guest.wait_until_it_listens()
    assert guest.hung_boots == []
    shutil.rmtree(failed.value.directory)

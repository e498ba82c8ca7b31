"""The machine's end: power-off and reboot.

An agent that is the guest's init does it itself, with reboot(2); any other asks the
init there is.  What cannot be done is found out before a Shutdown is accepted.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from arcbox_agent import _guest
from arcbox_agent.agent.config import budget
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.errors import AgentFailedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

log = Logger("power")

RB_AUTOBOOT = 0x01234567
RB_POWER_OFF = 0x4321FEDC
RB_DISABLE_CAD = 0

_COMMANDS = {"poweroff": RB_POWER_OFF, "reboot": RB_AUTOBOOT}

_MS_RDONLY, _MS_REMOUNT = 1, 32
#: What a file system must have for it to matter whether it was left in order.
_DEVICE_PREFIX = "/dev/"

_DIRECTORIES = ("/sbin", "/usr/sbin", "/bin", "/usr/bin")

#: PID 1's name to the program that asks it, and its arguments for each end.
_INITS: dict[str, tuple[str, dict[str, list[str]]]] = {
    "systemd": ("systemctl", {"poweroff": ["poweroff"], "reboot": ["reboot"]}),
    "openrc-init": ("openrc-shutdown", {"poweroff": ["--poweroff", "now"], "reboot": ["--reboot", "now"]}),
    # sysvinit and busybox.
    "init": ("shutdown", {"poweroff": ["-P", "now"], "reboot": ["-r", "now"]}),
    "linuxrc": ("poweroff", {"poweroff": [], "reboot": []}),
}
#: Where the program above is missing, as with busybox: each end has its own.
_PLAIN = {"poweroff": "poweroff", "reboot": "reboot"}


def way_to(action: str, is_init: bool) -> list[str]:
    """The command for `poweroff` or `reboot`; [] where the agent does it itself.

    Raises AgentFailedError where neither can be.
    """
    if os.geteuid() != 0:
        raise AgentFailedError(f"failed to {action}: the agent does not run as root")
    if is_init or os.getpid() == 1:
        return []
    with open("/proc/1/comm", encoding="utf-8", errors="replace") as file:
        init = file.read().strip()
    known = _INITS.get(init)
    if known is None:
        raise AgentFailedError(
            f"failed to {action}: PID 1 is {init!r}, which the agent does not know how to ask: "
            "run the agent as the guest's init (--init), or under systemd or OpenRC"
        )
    program, arguments = known
    if path := _find(program):
        return [path, *arguments[action]]
    if path := _find(_PLAIN[action]):
        return [path]
    raise AgentFailedError(f"failed to {action}: neither {program} nor {_PLAIN[action]} is installed")


def _find(program: str) -> str:
    for directory in _DIRECTORIES:
        path = f"{directory}/{program}"
        if os.access(path, os.X_OK):
            return path
    return ""


def perform(action: str, is_init: bool) -> NoReturn:
    """The last act of an agent that was told to end the machine: it does not come back."""
    command = way_to(action, is_init)
    if not command:
        end_of_machine(action)
    log.info("asking init", command=" ".join(command))
    _within(budget.DISKS, os.sync)
    os.execv(command[0], command)


def end_of_machine(action: str) -> NoReturn:
    """Ends every process, brings the disks in order, and asks the kernel."""
    log.info("the machine ends", action=action)
    _end_all_processes()
    _within(budget.DISKS, _bring_disks_in_order)
    while True:
        try:
            _guest.reboot(_COMMANDS[action])
        except OSError as error:
            log.error("the kernel refuses", action=action, error=error)
        # Inside a container, reboot(2) returns and the kill follows; PID 1 must not end before.
        time.sleep(1)


def _end_all_processes() -> None:
    if os.getpid() != 1:
        return  # kill(-1) would leave out the one that is PID 1, and hit what is not ours
    for number, patience in ((signal.SIGTERM, budget.PROCESSES_TERMINATED), (signal.SIGKILL, budget.PROCESSES_KILLED)):
        try:
            os.kill(-1, number)
        except ProcessLookupError:
            return  # nobody is left
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if not _take_dead_children():
                return
            time.sleep(0.01)


def _take_dead_children() -> bool:
    """Whether any child is left.  Everybody else's exit codes have been taken: the loop is over."""
    while True:
        try:
            if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG) is None:
                return True
        except ChildProcessError:
            return False


def _bring_disks_in_order() -> None:
    os.sync()
    _make_read_only()


def _within(seconds: float, work: Callable[[], None]) -> None:
    """Does `work`, and goes on without it where it hangs."""
    worker = threading.Thread(target=work, daemon=True)
    try:
        worker.start()
    except RuntimeError:  # no thread left
        return work()
    worker.join(seconds)
    if worker.is_alive():
        log.error("a disk does not answer: the machine ends without it", seconds=seconds)


def _make_read_only() -> None:
    """What is on a disk is written out and marked clean, which sync alone does not do."""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
            mounts = [line.split(" ")[:4] for line in file]
    except OSError as error:  # no descriptor left; the machine ends all the same
        log.warning("cannot remount read-only", error=error)
        return
    # The last one first: it may be mounted on one before it.
    for source, target, _, options in reversed(mounts):
        if source.startswith(_DEVICE_PREFIX) and "rw" in options.split(","):
            try:
                _guest.mount("", _unescape(target), "", _MS_REMOUNT | _MS_RDONLY, "")
            except OSError as error:
                log.warning("cannot remount read-only", target=target, error=error)


def _unescape(target: str) -> str:
    """A path as /proc/self/mounts writes it: blanks and backslashes in octal."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        target = target.replace(code, character)
    return target

"""The end of the machine: power-off and reboot.

An agent that is the guest's init calls reboot(2).  Any other agent runs the command of the
guest's init.  `way_to` finds out before a Shutdown is accepted whether that is possible.
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
#: The source of a mount that is on a disk begins with this.
_DEVICE_PREFIX = "/dev/"

_DIRECTORIES = ("/sbin", "/usr/sbin", "/bin", "/usr/bin")

#: Name of PID 1 -> the program that asks it, and the program's arguments for each action.
_INITS: dict[str, tuple[str, dict[str, list[str]]]] = {
    "systemd": ("systemctl", {"poweroff": ["poweroff"], "reboot": ["reboot"]}),
    "openrc-init": ("openrc-shutdown", {"poweroff": ["--poweroff", "now"], "reboot": ["--reboot", "now"]}),
    # sysvinit and busybox.
    "init": ("shutdown", {"poweroff": ["-P", "now"], "reboot": ["-r", "now"]}),
    "linuxrc": ("poweroff", {"poweroff": [], "reboot": []}),
}
#: Action -> the program to run where the one above is missing, as with busybox.
_PLAIN = {"poweroff": "poweroff", "reboot": "reboot"}


def way_to(action: str, is_init: bool) -> list[str]:
    """The command for `poweroff` or `reboot`; []: the agent does it itself.

    AgentFailedError: neither is possible.
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
    """Power off or reboot the machine.  It does not return."""
    command = way_to(action, is_init)
    if not command:
        end_of_machine(action)
    log.info("asking init", command=" ".join(command))
    _within(budget.DISKS, os.sync)
    os.execv(command[0], command)


def end_of_machine(action: str) -> NoReturn:
    """End all processes, write out and remount the disks, and call reboot(2)."""
    log.info("the machine ends", action=action)
    _end_all_processes()
    _within(budget.DISKS, _bring_disks_in_order)
    while True:
        try:
            _guest.reboot(_COMMANDS[action])
        except OSError as error:
            log.error("the kernel refuses", action=action, error=error)
        # In a PID namespace reboot(2) returns before the kernel kills PID 1, which must not end earlier.
        time.sleep(1)


def _end_all_processes() -> None:
    if os.getpid() != 1:
        return  # kill(-1) would spare PID 1, and hit processes that are not the agent's
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
    """Reap all dead children.  Returns whether any child is left.

    The event loop has ended, so nobody else waits for an exit code.
    """
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
    """Run `work` in a thread, and return after `seconds` even if it hangs."""
    worker = threading.Thread(target=work, daemon=True)
    try:
        worker.start()
    except RuntimeError:  # no thread left
        return work()
    worker.join(seconds)
    if worker.is_alive():
        log.error("a disk does not answer: the machine ends without it", seconds=seconds)


def _make_read_only() -> None:
    """Remount each disk read-only, which marks its file system clean; sync alone does not."""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
            mounts = [line.split(" ")[:4] for line in file]
    except OSError as error:  # no descriptor left; the machine ends all the same
        log.warning("cannot remount read-only", error=error)
        return
    # In reverse order: a later mount may lie in an earlier one.
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

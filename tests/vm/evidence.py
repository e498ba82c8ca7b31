"""What a guest that says nothing more is doing, as far as QEMU and the kernels tell."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from tests.vm.qmp import Qmp, QmpError

#: Between two looks at the same thing: what has not moved by then stands still.
_INTERVAL = 1.0
#: For the guest's kernel to take a key and print a line.
_ANSWER = 15.0
#: For a list of all its tasks, on a serial console.
_LIST = 20.0


def of_qemu(pid: int, qmp: Path) -> tuple[str, str]:
    """QEMU's threads and where each CPU is, twice; and all that there is to know."""
    before, first = _cpu_times(pid), _ask(qmp, ["info status", "info registers -a"])
    time.sleep(_INTERVAL)
    after, second = _cpu_times(pid), _ask(qmp, ["info registers -a"])
    threads = [
        f"thread {name}: {state}, {spent - before[id][1]:.2f} s of CPU in {_INTERVAL:g} s"
        for id, (name, spent, state) in sorted(after.items())
        if id in before
    ]
    # Where each CPU is, whether it may be interrupted, and whether it waits for that.
    places = [
        line for line in (first + "\n" + second).splitlines() if line.startswith(("VM status", "EIP", "RIP", "qmp"))
    ]
    whole = "\n".join([*threads, first, f"--- {_INTERVAL:g} s later", second])
    return "\n".join(threads + places), whole


def _cpu_times(pid: int) -> dict[str, tuple[str, float, str]]:
    """Thread to its name, seconds of CPU and state."""
    times = {}
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            name, fields = (task / "comm").read_text().strip(), (task / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        times[task.name] = (name, (int(fields[11]) + int(fields[12])) / 100, fields[0])
    return times


def _ask(path: Path, lines: list[str]) -> str:
    answers = []
    try:
        with Qmp(path) as qemu:
            for line in lines:
                answers.append(f"{line}:\n{qemu.human(line).strip()}")
    except QmpError as error:
        answers.append(f"qmp: {error}")
    return "\n".join(answers).replace("\r\n", "\n")


# ------------------------------------------------------------- the guest's kernel


def kernel_answers(qmp: Path, console: Callable[[], str]) -> bool:
    """Whether the guest's kernel still takes a key: no program of the guest's can keep it from that."""
    seen = len(console())
    try:
        with Qmp(qmp) as qemu:
            deadline = time.monotonic() + _ANSWER
            while time.monotonic() < deadline:
                qemu.press("alt", "sysrq", "h")
                time.sleep(_INTERVAL)
                if "sysrq: HELP" in console()[seen:]:
                    return True
    except QmpError:
        pass  # nor does QEMU
    return False


def tasks_of_guest(qmp: Path, console: Callable[[], str]) -> str:
    """The guest's tasks and where in the kernel each of them waits; they end up on the console, too."""
    seen = len(console())
    try:
        with Qmp(qmp) as qemu:
            qemu.press("alt", "sysrq", "9")  # everything is to be on the console
            qemu.press("alt", "sysrq", "t")
    except QmpError as error:
        return str(error)
    deadline = time.monotonic() + _LIST
    length = -1
    while len(console()) != length and time.monotonic() < deadline:
        length = len(console())
        time.sleep(_INTERVAL)
    return console()[seen:]


def of_pid_1(tasks: str) -> str:
    """What `tasks_of_guest` says of PID 1 and its threads."""
    entries = re.split(r"(?m)^(?=.*task:)", tasks)
    return "".join(entry for entry in entries if re.search(r"task:.* pid:1 ", entry)).rstrip()

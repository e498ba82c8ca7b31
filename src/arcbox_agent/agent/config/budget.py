"""Every time-out of a start and of an end, in one table, with what the two can take in all.

A module reads its bounds from here (`budget.KILLED`) and has none of its own.  The page
docs/operations.md shows the table and the sums; a test compares them.

The steps of a start and of a stop follow one another, so the longest time is the sum of
their bounds.  What is bounded by its own time-out and runs beside those steps (the end of
one container, of one command, of one connection) adds nothing to them.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.config.table import Settings

#: The phases.  The steps of the first four follow one another.
BOOT = "boot"  # before the agent of a guest's init starts
START = "start"
STOP = "stop"
MACHINE = "machine"  # after the stop, where the machine ends with it
BESIDE = "beside"  # the end of one thing while the agent serves: no step of a start or a stop


class TimeOut:
    """One line: at most `times` waits of `seconds` each within its phase."""

    __slots__ = ("bounds", "name", "phase", "seconds", "times")

    def __init__(self, name: str, phase: str, seconds: float, times: int, bounds: str) -> None:
        self.name, self.phase, self.seconds, self.times, self.bounds = name, phase, seconds, times, bounds


#: By name, in the order in which they may pass.
TABLE: dict[str, TimeOut] = {}


def _time_out(name: str, phase: str, seconds: float, bounds: str, times: int = 1) -> float:
    TABLE[name] = TimeOut(name, phase, seconds, times, bounds)
    return seconds


# ------------------------------------------------------------------- the boot

MODPROBE = _time_out("MODPROBE", BOOT, 30.0, "Loading one module by modprobe; then it is killed.", times=5)
MODPROBE_KILLED = _time_out("MODPROBE_KILLED", BOOT, 2.0, "The end of a modprobe that was killed.", times=5)
VSOCK = _time_out("VSOCK", BOOT, 10.0, "The vsock device, once its drivers are loaded.")

# ------------------------------------------------------------------ the start

DIRECTORY_LOCK = _time_out(
    "DIRECTORY_LOCK",
    START,
    3.0,
    "The lock of state_dir, and that of run_dir: a child of a killed agent may hold it until its exec.",
    times=2,
)
KEEPER_REPLY = _time_out(
    "KEEPER_REPLY", START, 5.0, "One exchange with the keeper; one that does not answer counts as none.", times=2
)
KEEPER_FETCH = _time_out(
    "KEEPER_FETCH",
    START,
    5.0,
    "What the keeper holds for containers, then for executions, while no descriptor is left to receive it.",
    times=2,
)
DESCRIPTORS = _time_out("DESCRIPTORS", START, 10.0, "Adopting a container while no descriptor is left.")
FORMER_SPAWN = _time_out(
    "FORMER_SPAWN",
    START,
    3.0,
    "Spawns of a killed agent, of containers, then of executions, that have not come to their program; then killed.",
    times=2,
)
LEFTOVERS_KILLED = _time_out(
    "LEFTOVERS_KILLED",
    START,
    1.0,
    "The end of what was killed in the cgroup of a container that is gone, and of an execution that never began.",
    times=2,
)

# ------------------------------------------------------------------- the stop
#
# Before these, the calls that run have `shutdown_timeout`, which is a setting.

CALLS_CANCELLED = _time_out("CALLS_CANCELLED", STOP, 2.0, "Replies and clean-up of the calls that were cancelled.")
CONNECTIONS_ABORTED = _time_out("CONNECTIONS_ABORTED", STOP, 2.0, "The end of the connections that were aborted.")
COMMANDS_ENDED = _time_out(
    "COMMANDS_ENDED",
    STOP,
    2.0,
    "Starts and ends of commands under way; starts of executions; where they are stopped, their end.",
    times=3,
)
CONTAINERS_SETTLED = _time_out(
    "CONTAINERS_SETTLED", STOP, 3.0, "A start, a removal or a record of a container that is under way."
)
CONTAINERS_KILLED = _time_out(
    "CONTAINERS_KILLED",
    STOP,
    10.0,
    "Where containers are stopped: their end after SIGKILL, which comes after `stop_timeout`.",
)
CONTAINERS_ENDED = _time_out("CONTAINERS_ENDED", STOP, 3.0, "The records of containers that have just ended.")
_time_out(
    "KEEPER_CLOSED", STOP, KEEPER_REPLY, "The exchange with the keeper that is under way: its way there and back.", 2
)
CAPTURE_ENDED = _time_out(
    "CAPTURE_ENDED", STOP, 5.0, "The last write of the thread that captures output, and of that of the spools.", times=2
)
THREADS_ENDED = _time_out("THREADS_ENDED", STOP, 2.0, "What other threads still do; one that hangs is left behind.")

# ------------------------------------------------------ the end of the machine

PROCESSES_TERMINATED = _time_out("PROCESSES_TERMINATED", MACHINE, 2.0, "All other processes, after SIGTERM.")
PROCESSES_KILLED = _time_out("PROCESSES_KILLED", MACHINE, 1.0, "All other processes, after SIGKILL.")
DISKS = _time_out("DISKS", MACHINE, 30.0, "Writing out and remounting the disks; one that hangs is left as it is.")

# ------------------------------------------------------------ beside the steps

CONNECTION_CLOSED = _time_out(
    "CONNECTION_CLOSED", BESIDE, 5.0, "The peer of a closing connection to read what is last."
)
SPAWNED = _time_out(
    "SPAWNED", BESIDE, 10.0, "A start or a command to come to its program; then it is killed, and its client told."
)
FORMER_START = _time_out(
    "FORMER_START", BESIDE, 5.0, "What is left of a start that hung and was killed, when the next one comes."
)
HANGING_START = _time_out("HANGING_START", BESIDE, 1.0, "A start under way, when a Stop or a Remove by force comes.")
CGROUPS_LOOKED_THROUGH = _time_out(
    "CGROUPS_LOOKED_THROUGH", BESIDE, 5.0, "One walk through the cgroups that a container has made below its own."
)
CGROUPS_REMOVED = _time_out("CGROUPS_REMOVED", BESIDE, 10.0, "The removal of a cgroup and all that is below it.")
LOOK = _time_out("LOOK", BESIDE, 5.0, "What /proc says of the processes of a container, for top and stats.")
COMMAND_QUIET = _time_out(
    "COMMAND_QUIET", BESIDE, 0.1, "Output of a command that ended: silence of those that still have its pipes open."
)
COMMAND_CHATTER = _time_out("COMMAND_CHATTER", BESIDE, 1.0, "Output of a command that ended: all of it, silent or not.")
COMMAND_KILLED = _time_out(
    "COMMAND_KILLED", BESIDE, 5.0, "Killing what a command started, while no descriptor is left."
)
OUTPUT_DRAINED = _time_out("OUTPUT_DRAINED", BESIDE, 2.0, "The rest of a container's output after its last process.")
ADOPTED_STATUS = _time_out(
    "ADOPTED_STATUS", BESIDE, 2.0, "The exit status of an adopted process, while its parent has yet to take it."
)
CONSOLE = _time_out(
    "CONSOLE",
    BESIDE,
    5.0,
    "PID 1 after a failure: the console to take the log, which is 11 KB a second on a serial one.",
)

# ----------------------------------------------------------------- the sums


def _sum(*phases: str) -> float:
    return sum(each.seconds * each.times for each in TABLE.values() if each.phase in phases)


def longest_start(init: bool = False) -> float:
    """Seconds from the process's start to the first accept, at most, where all that can hang does.

    `init`: the agent is the guest's init, and brings up vsock first.  Not counted: reading what
    is on disk, and containers to adopt beyond the first 64, which are adopted at one time.
    """
    return _sum(BOOT, START) if init else _sum(START)


def longest_stop(settings: Settings, machine: bool = False, shutdown_timeout: float | None = None) -> float:
    """Seconds from the first signal to the agent's end, at most, where all that can hang does.

    `machine`: the guest ends with it.  Its containers are stopped beside the calls, with the
    same time, and what is left of them once more after the calls.  `shutdown_timeout`: the
    host's own, instead of the setting.
    """
    calls = settings.shutdown_timeout if shutdown_timeout is None else shutdown_timeout
    fixed = _sum(STOP)
    if machine:
        beside = CALLS_CANCELLED + CONNECTIONS_ABORTED
        first = calls + max(beside, CONTAINERS_KILLED)
        return first + (fixed - beside) + settings.stop_timeout + _sum(MACHINE)
    if settings.containers_at_exit == "stop":
        return calls + fixed + settings.stop_timeout
    return calls + fixed - CONTAINERS_KILLED

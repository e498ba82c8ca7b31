"""The guest's clock, set by the host's: after a restore from a snapshot it is wrong.

A ping may carry the host's time, in whole seconds or in nanoseconds.  A difference that
whole seconds and a slow connection explain is left to whatever keeps the guest's clock; a larger
one is a step, forwards or backwards, or is brought in bit by bit where that is asked.  A
guest whose clock had to be set may have been restored, perhaps for the second time from one
snapshot, and then its random numbers are those of its twin: so the kernel's pool is to be
reseeded as well, before the ping is answered.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time

from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.observe.rate import OncePerMinute
from arcbox_agent.errors import BadRequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.metrics import Metrics

log = Logger("clock")

#: Seconds.  A host that sends whole seconds s cuts the rest off: its clock was in [s, s + 1).  A guest's clock that
#: is behind that is wrong, but for the noise of two clocks; one ahead of it may be so by half a second under way.
BEHIND, AHEAD = 0.1, 1.5

#: Nanoseconds.  The same for a host that sends nanoseconds, unless it names a difference of its own.
LEAST_NS = 100_000_000

#: Nanoseconds: a difference that is larger is not brought in bit by bit, which takes 2000 times as long.
MOST_SLEWED_NS = 500_000_000

#: Nanoseconds.  The hypervisor's clock is taken for the host's where the two differ by less.
SAME_HOST_NS = 1_000_000_000

#: The years 2000 and 2200: beyond lies a broken host, and what the kernel cannot hold.
EARLIEST, LATEST = 946_684_800, 7_258_118_400


#: A host sends its time with every ping.
_refused_log = OncePerMinute()


def follow_host(timestamp: int, metrics: Metrics) -> bool:
    """Sets a clock that the host's whole Unix seconds prove wrong, to within half a second; whether it did.

    Raises BadRequestError for a time that no host can mean.
    """
    if not EARLIEST <= timestamp < LATEST:
        raise BadRequestError(f"timestamp_secs {timestamp} is no time that a clock can be set to")
    now = time.time()
    if timestamp - BEHIND <= now <= timestamp + AHEAD:
        return False
    # The middle of what the host's time can be: wherever in the second it is, no other target errs by less.
    target = timestamp + 0.5
    behind = target - now
    try:
        time.clock_settime(time.CLOCK_REALTIME, target)
    except OSError as error:
        # The ping is answered all the same: it asked how the agent is.
        _refused_log.log(log.warning, "cannot set the clock", "also_refused", behind=f"{behind:.3f}", error=error)
        metrics.add("clock_refused")
        return False
    metrics.add("clock_set")
    log.warning("clock set by the host", behind=f"{behind:.3f}")
    return True


class Outcome:
    """How far behind the host's clock the guest's was, in ns, and what was done: see PingResponse.clock."""

    __slots__ = ("behind_ns", "done")

    def __init__(self, behind_ns: int, done: str) -> None:
        self.behind_ns = behind_ns
        self.done = done

    @property
    def stepped(self) -> bool:
        return self.done in ("step", "ptp")


def compare(timestamp_ns: int, monotonic_ns: int) -> int:
    """How many ns the clock is behind one that was at `timestamp_ns` when ours was at `monotonic_ns`, or now with 0.

    The monotonic clock makes it the same however long the request was under way.  Raises
    BadRequestError for times that no host can mean.
    """
    now, real = _both_clocks()
    if not 0 <= monotonic_ns <= now:
        raise BadRequestError(f"monotonic_ns {monotonic_ns} was never told by this agent: its clock is at {now}")
    if not EARLIEST * 1_000_000_000 <= timestamp_ns < LATEST * 1_000_000_000:
        raise BadRequestError(f"timestamp_ns {timestamp_ns} is no time that a clock can be set to")
    return timestamp_ns + (now - monotonic_ns if monotonic_ns else 0) - real


def _both_clocks() -> tuple[int, int]:
    """The monotonic clock and the real one at one moment, in ns."""
    best, found = 0, (0, 0)
    for _ in range(5):
        before = time.monotonic_ns()
        real = time.time_ns()
        took = time.monotonic_ns() - before
        if not best or took < best:
            best, found = took or 1, (before + took // 2, real)
    return found


def follow_host_exactly(behind_ns: int, least_ns: int, slew: bool, metrics: Metrics) -> Outcome:
    """Sets a clock that is `behind_ns` behind the host's, from `least_ns` on (0: LEAST_NS), by step or slew."""
    if abs(behind_ns) < (least_ns or LEAST_NS):
        return Outcome(behind_ns, "left")
    done = "step"
    try:
        if slew and abs(behind_ns) < MOST_SLEWED_NS:
            from arcbox_agent import _guest  # which an agent that is no init has no other use for

            _guest.slew_clock(behind_ns // 1000)
            done = "slew"
        else:
            by_hypervisor = hypervisor_time()
            by_hypervisor -= time.time_ns()
            if abs(by_hypervisor - behind_ns) < SAME_HOST_NS:
                behind_ns, done = by_hypervisor, "ptp"
            # Read and set without anything between them: what passes there is lost.
            time.clock_settime_ns(time.CLOCK_REALTIME, time.time_ns() + behind_ns)
    except OSError as error:
        behind = f"{behind_ns / 1e9:.6f}"
        _refused_log.log(log.warning, "cannot set the clock", "also_refused", behind=behind, error=error)
        metrics.add("clock_refused")
        return Outcome(behind_ns, "refused")
    metrics.add("clock_set")
    log.warning("clock set by the host", behind=f"{behind_ns / 1e9:.6f}", how=done)
    return Outcome(behind_ns, done)


#: What the driver ptp_kvm calls its clock, which is the host's CLOCK_REALTIME.
_HYPERVISOR = "KVM virtual PTP"


def hypervisor_time(classes: str = "/sys/class/ptp", devices: str = "/dev") -> int:
    """The host's Unix time in ns by the hypervisor's own clock; 0 where the guest has none."""
    try:
        for name in os.listdir(classes):
            with open(f"{classes}/{name}/clock_name", encoding="ascii", errors="replace") as file:
                if file.read().strip() != _HYPERVISOR:
                    continue
            fd = os.open(f"{devices}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return time.clock_gettime_ns(~fd << 3 | 3)  # the clock behind a descriptor: clock_gettime(2)
            finally:
                os.close(fd)
    except OSError:
        pass  # no driver, or one that is being unloaded
    return 0


_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_POOL_HEADER = struct.Struct("ii")  # bits of entropy, bytes
_FROM_HARDWARE = 64
#: What the kernel and its driver fetch ahead: it was saved with the guest, and each guest
#: restored from one snapshot reads the same first.
_FETCHED_AHEAD = 256
#: Seconds that a ping may wait for the device, once in a restore.
_HARDWARE_PATIENCE = 0.1


def reseed_random(host_time: int) -> None:
    """Stirs the kernel's random pool, and makes it draw its next numbers from there.

    Not for the event loop: it waits for the hypervisor's device, up to 0.1 s.
    """
    drawn = _hardware_random()
    hardware = drawn[_FETCHED_AHEAD:]
    # The times differ between two restores of one snapshot, but anyone can guess them: they
    # count for nothing.  What the hypervisor's device gives counts in full.
    seed = drawn + struct.pack("qqq", host_time, time.monotonic_ns(), time.time_ns())
    try:
        fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        log.warning("cannot reseed the random pool", error=error)
        return
    try:
        fcntl.ioctl(fd, _RNDADDENTROPY, _POOL_HEADER.pack(8 * len(hardware), len(seed)) + seed)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    except OSError as error:
        log.warning("cannot reseed the random pool", error=error)
    else:
        log.info("random pool reseeded", hardware_bytes=len(hardware), passed_over=len(drawn) - len(hardware))
    finally:
        os.close(fd)


def _hardware_random() -> bytes:
    """From the hypervisor's device (virtio-rng), or the CPU's; b"" where there is none."""
    try:
        fd = os.open("/dev/hwrng", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    drawn = b""
    deadline = time.monotonic() + _HARDWARE_PATIENCE
    try:
        while len(drawn) < _FETCHED_AHEAD + _FROM_HARDWARE and time.monotonic() < deadline:
            try:
                drawn += os.read(fd, _FETCHED_AHEAD + _FROM_HARDWARE - len(drawn))
            except BlockingIOError:
                time.sleep(0.001)  # the device is asked, and answers within that
    except OSError:
        pass  # a device that fails, or none behind the file
    finally:
        os.close(fd)
    return drawn

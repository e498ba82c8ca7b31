"""The guest's clock, set by the host's: after a restore from a snapshot it is wrong.

A ping may carry the host's time, in whole seconds.  A difference that rounding and a
slow connection explain is left to whatever keeps the guest's clock; a larger one is
a step, forwards or backwards.  A guest whose clock had to be set may have been
restored, perhaps for the second time from one snapshot, and then its random numbers
are those of its twin: so the kernel's pool is to be reseeded as well, before the ping
is answered.
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

#: Seconds.  Twice what rounding to a whole second and a busy guest can make of no difference.
STEP = 2.0

#: The years 2000 and 2200: beyond lies a broken host, and what the kernel cannot hold.
EARLIEST, LATEST = 946_684_800, 7_258_118_400


#: A host sends its time with every ping.
_refused_log = OncePerMinute()


def follow_host(timestamp: int, metrics: Metrics) -> bool:
    """Sets the clock to the host's Unix seconds where the two differ widely; whether it did.

    Raises BadRequestError for a time that no host can mean.
    """
    if not EARLIEST <= timestamp < LATEST:
        raise BadRequestError(f"timestamp_secs {timestamp} is no time that a clock can be set to")
    behind = timestamp - time.time()
    if abs(behind) < STEP:
        return False
    try:
        time.clock_settime(time.CLOCK_REALTIME, timestamp)
    except OSError as error:
        # The ping is answered all the same: it asked how the agent is.
        _refused_log.log(log.warning, "cannot set the clock", "also_refused", behind=f"{behind:.3f}", error=error)
        metrics.add("clock_refused")
        return False
    metrics.add("clock_set")
    log.warning("clock set by the host", behind=f"{behind:.3f}")
    return True


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

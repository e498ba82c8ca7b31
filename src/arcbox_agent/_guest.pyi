"""Calls that an agent needs and the standard library lacks.  They raise OSError."""

def mount(source: str, target: str, type: str, flags: int, data: str) -> None:
    """mount(2); `flags` are its MS_ flags."""

def reboot(command: int) -> None:
    """reboot(2); `command` is one of its RB_ commands.  For RB_POWER_OFF it does not return."""

def slew_clock(microseconds: int) -> None:
    """adjtime(3): speeds the clock up or slows it down until it is so much ahead; less than a second."""

def load_module(fd: int, flags: int) -> None:
    """finit_module(2), without parameters: loads the module in an open file."""

def give_back_memory() -> None:
    """Returns to the system what the heap has free: malloc_trim(3); a few milliseconds at most."""

def punch(fd: int, offset: int, size: int) -> None:
    """fallocate(2), FALLOC_FL_PUNCH_HOLE: gives back the disk of these bytes, which read as zeros then."""

"""The agent as the guest's init: what a guest needs before anything can run in it.

    supervise    PID 1 itself: runs the agent, reports its failures and starts it again
    prepare      mounts, hostname, loopback, vsock: each only where it is missing

Every step is tried and none is required.  A guest whose /dev/shm cannot be mounted still
has an agent, which logs the failure and is the only way to look into such a guest.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import time

from arcbox_agent import _guest
from arcbox_agent.agent.config import budget
from arcbox_agent.agent.guest import power
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.processes import small_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from arcbox_agent.agent.config.table import Settings

log = Logger("init")

# ------------------------------------------------------------------------ PID 1

#: The environment variable that tells the next execution of PID 1 how often it has failed in a row.
_FAILURES = "ARCBOX_INIT_FAILURES"

#: Seconds before it starts again: the first figure, doubled with each failure, up to the second figure.
_BACK_OFF = (0.5, 30.0)
#: After a run of so many seconds a failure counts as the first.
_GOOD_RUN = 60.0


def supervise(run: Callable[[], int]) -> NoReturn:
    """Be PID 1, which must never end: the kernel would panic.

    `run` is the agent.  It does not return from a power-off or a reboot.  If it returns or
    raises, execv starts it again.  The process keeps its children, so it can still take their
    exit codes.
    """
    before = os.environ.pop(_FAILURES, "")
    # The kernel passes variables of its command line on, so the value may be anything.
    failures = int(before) if before.isascii() and before.isdigit() and len(before) < 9 else 0
    started = time.monotonic()
    try:
        reason = f"it ended with {run()}"
    except BaseException as error:  # SystemExit and KeyboardInterrupt would end PID 1 too
        reason = _report(error)
    # Not SIG_IGN: with that the kernel would drop the exit codes of containers.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    failures = 0 if time.monotonic() - started > _GOOD_RUN else failures + 1
    shortest, longest = _BACK_OFF
    pause = min(shortest * 2 ** min(failures, 16), longest)
    _wait_for_console()
    log.error("PID 1 never ends: starting again", reason=reason, seconds=pause)
    action = _pause(pause)
    if action != "exit":
        power.end_of_machine(action)
    os.environ[_FAILURES] = str(failures)
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError as error:
        # The file system with the interpreter is gone, so nothing can be started any more.
        log.error("cannot start again: rebooting", error=error)
        power.end_of_machine("reboot")


def _wait_for_console() -> None:
    """Wait until stderr has room: the log never blocks, and drops lines that stderr has no room for."""
    try:
        select.select([], [2], [], budget.CONSOLE)
    except OSError:
        pass  # no console at all


def _report(error: BaseException) -> str:
    """Log the failure on the console and return it as text.  Nothing is raised: PID 1 must go on."""
    try:
        _wait_for_console()
        log.exception("the agent failed", error)
        return repr(error)
    except BaseException as worse:
        return f"{type(error).__name__}, which cannot be told: {type(worse).__name__}"


def _pause(seconds: float) -> str:
    """Wait.  Returns `poweroff` or `reboot` if a signal asks for it meanwhile, else `exit`."""
    asked = {signal.SIGTERM: "poweroff", signal.SIGINT: "reboot"}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, asked)
    try:
        # The kernel drops a signal to PID 1 that has no handler.
        for number in asked:
            signal.signal(number, lambda *_: None)
        received = signal.sigtimedwait(asked, seconds)
    finally:
        # A blocked signal would stay blocked after execv.
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return asked[signal.Signals(received.si_signo)] if received is not None else "exit"


def watch_reboot_keys() -> None:
    """Have the kernel send SIGINT to PID 1 on Ctrl-Alt-Del, which hypervisors send too."""
    try:
        _guest.reboot(power.RB_DISABLE_CAD)
    except OSError as error:
        log.debug("Ctrl-Alt-Del stays as it is", error=error)


# ------------------------------------------------------------------ preparation


def prepare(settings: Settings) -> None:
    """Mount, name and bring up what is missing.  It blocks, so it runs before the event loop."""
    os.umask(0o022)
    _mount_what_is_missing()
    _open_console()
    _name_host()
    _raise_loopback()
    if any(address.startswith("vsock:") for address in settings.listen):
        _bring_up_vsock()


_NOSUID, _NODEV, _NOEXEC = 2, 4, 8

#: Source, target, type, flags, options.  A target comes after the one that it lies in.
_MOUNTS = (
    ("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC, ""),
    ("sysfs", "/sys", "sysfs", _NOSUID | _NODEV | _NOEXEC, ""),
    ("dev", "/dev", "devtmpfs", _NOSUID, "mode=755"),
    ("devpts", "/dev/pts", "devpts", _NOSUID | _NOEXEC, "mode=620,ptmxmode=666"),
    ("shm", "/dev/shm", "tmpfs", _NOSUID | _NODEV, "mode=1777"),
    ("run", "/run", "tmpfs", _NOSUID | _NODEV, "mode=755"),
    ("tmp", "/tmp", "tmpfs", _NOSUID | _NODEV, "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", _NOSUID | _NODEV | _NOEXEC, ""),
)


def _mount_what_is_missing() -> None:
    for source, target, kind, flags, options in _MOUNTS:
        try:
            if target in _mount_points() or (target == "/tmp" and _has_files(target)):
                continue
            if not os.path.isdir(target):
                os.mkdir(target)
            _guest.mount(source, target, kind, flags, options)
        except OSError as error:
            log.warning("cannot mount", target=target, type=kind, error=error)
        else:
            log.info("mounted", target=target, type=kind)


def _mount_points() -> set[str]:
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            return {line.split(" ", 5)[4] for line in file}
    except FileNotFoundError:
        return set()  # /proc itself is what is missing


def _has_files(path: str) -> bool:
    """Whether a mount on `path` would hide files."""
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    except FileNotFoundError:
        return False


def _open_console() -> None:
    """Open the standard descriptors if the kernel could not: the initial root may have no /dev/console."""
    try:
        os.fstat(2)
        return
    except OSError:
        pass
    try:
        fd = os.open("/dev/console", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return  # no console at all
    for standard in (0, 1, 2):
        if fd != standard:
            os.dup2(fd, standard)
    if fd > 2:
        os.close(fd)


def _name_host() -> None:
    if socket.gethostname() not in ("", "(none)"):
        return  # the kernel's command line or an earlier program set it
    try:
        words = small_file.read("/etc/hostname", 1024).decode("utf-8", "replace").split()
    except OSError:
        words = []
    name = words[0][:64] if words else "localhost"
    try:
        socket.sethostname(name)
    except OSError as error:
        log.warning("cannot set the hostname", name=name, error=error)


_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_IFREQ = struct.Struct("16sh22x")  # name, flags


def _raise_loopback() -> None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            got = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0))
            flags = _IFREQ.unpack(got)[1]
            if not flags & _IFF_UP:
                fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))
    except OSError as error:
        log.warning("cannot bring up the loopback interface", error=error)


# ------------------------------------------------------------------------ vsock

#: Kernel modules and their directories below the one of all modules.  A module comes after those it
#: needs.  virtio-rng brings the hypervisor's random numbers, which a restored guest needs (clock.py).
MODULES = (
    ("virtio_ring", "drivers/virtio"),
    ("virtio", "drivers/virtio"),
    ("virtio_pci_modern_dev", "drivers/virtio"),
    ("virtio_pci_legacy_dev", "drivers/virtio"),
    ("virtio_pci", "drivers/virtio"),
    ("virtio_mmio", "drivers/virtio"),
    ("vsock", "net/vmw_vsock"),
    ("vmw_vsock_virtio_transport_common", "net/vmw_vsock"),
    ("vsock_loopback", "net/vmw_vsock"),
    ("vmw_vsock_virtio_transport", "net/vmw_vsock"),
    ("virtio-rng", "drivers/char/hw_random"),
)
_MODPROBE = ("/sbin/modprobe", "/usr/sbin/modprobe", "/bin/modprobe", "/usr/bin/modprobe")

_MODULE_INIT_COMPRESSED_FILE = 4
_GET_LOCAL_CID = 0x7B9  # IOCTL_VM_SOCKETS_GET_LOCAL_CID
_NO_CID = 0xFFFFFFFF


def _bring_up_vsock() -> None:
    """Load the drivers of vsock unless they are built in, and wait for the device."""
    if _local_cid() == _NO_CID:
        if not _modprobe():
            _load_by_hand()
        deadline = time.monotonic() + budget.VSOCK
        while _local_cid() == _NO_CID and time.monotonic() < deadline:
            time.sleep(0.01)
    cid = _local_cid()
    if cid == _NO_CID:
        log.warning("no vsock device: has the hypervisor one for this guest, and the kernel its driver?")
    else:
        log.info("vsock is there", cid=cid)


def _local_cid() -> int:
    """The guest's own cid; _NO_CID: there is no transport to the host."""
    try:
        fd = os.open("/dev/vsock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return _NO_CID
    try:
        answer = fcntl.ioctl(fd, _GET_LOCAL_CID, bytes(4))
        return int.from_bytes(answer, sys.byteorder)
    except OSError:
        return _NO_CID
    finally:
        os.close(fd)


def _modprobe() -> bool:
    """Load the drivers with modprobe.  False: modprobe or its index is missing, as in a minimal root."""
    if not os.path.exists(f"/lib/modules/{os.uname().release}/modules.dep"):
        return False
    for program in _MODPROBE:
        if os.access(program, os.X_OK):
            break
    else:
        return False
    names = ["virtio_pci", "virtio_mmio", "vsock_loopback", "vmw_vsock_virtio_transport", "virtio_rng"]
    # One by one, as not every modprobe takes several names.  A module that is built in is no error.
    for name in names:
        pid = os.posix_spawn(program, [program, "-q", name], {"PATH": "/sbin:/usr/sbin:/bin:/usr/bin"})
        _wait_for(pid, budget.MODPROBE)
    return True


def _wait_for(pid: int, seconds: float) -> None:
    """Wait for a child and kill it after `seconds`.  For use before the event loop and its Processes exist."""
    pidfd = os.pidfd_open(pid)
    try:
        ready, _, _ = select.select([pidfd], [], [], seconds)
        if not ready:
            log.warning("modprobe hangs: killed", seconds=seconds)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            # One that hangs in a driver does not end.  It is reaped later, with the orphans.
            ready, _, _ = select.select([pidfd], [], [], budget.MODPROBE_KILLED)
        if ready:
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    finally:
        os.close(pidfd)


def _load_by_hand() -> None:
    """Load the drivers without modprobe, in a minimal initramfs for instance."""
    directory = f"/lib/modules/{os.uname().release}/kernel"
    for name, below in MODULES:
        for ending, flags in ((".ko", 0), *((".ko" + z, _MODULE_INIT_COMPRESSED_FILE) for z in (".xz", ".gz", ".zst"))):
            try:
                fd = os.open(f"{directory}/{below}/{name}{ending}", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # packed another way, or built in
            try:
                _guest.load_module(fd, flags)
            except OSError as error:
                if error.errno != errno.EEXIST:
                    log.warning("cannot load a module", name=name, error=error)
            finally:
                os.close(fd)
            break

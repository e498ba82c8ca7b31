"""A virtual machine: QEMU, the file server of its root, and its vsock."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.vm import evidence
from tests.vm.accelerator import Accelerator, accelerators, remember_failure
from tests.vm.initramfs import GIVING_UP, STARTING_PID_1, Root, boot_archive
from tests.vm.kernel import guest_kernel
from tests.vm.packages import REPOSITORY
from tests.vm.qmp import Qmp, QmpError
from tools.pace import patience

_VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")

#: Seconds.  A boot takes five; on a machine with much else to do it can take a minute.
BOOT_LIMIT = patience(180.0)
_STEP = 0.02
#: PID 1 that does not listen after so long: is the guest's kernel alive?
_SUSPICIOUS = 30.0

#: Spares the emulated CPU what no test needs.  Not `quiet`: what the kernel says costs next
#: to nothing, and shows how far a boot came.
_KERNEL_ARGUMENTS = (
    "console=ttyS0 panic=-1 nokaslr mitigations=off tsc=reliable lpj=4000000 audit=0 "
    "apparmor=0 no_timer_check random.trust_cpu=on sysrq_always_enabled"
)
#: The kernel's word for it, where the first root is not ours.
_RUN_INIT = "Run /init as init process"

_SHARE_ROOT = """
shared=$1; shift
mount --rbind / "$shared"
for name in proc sys dev run; do
    if mountpoint -q "$shared/$name"; then umount -R -l "$shared/$name"; fi
done
exec "$@"
"""

_cids = itertools.count(3)

#: Of all machines of this process: the boots that were repeated, and why.
HUNG_BOOTS: list[str] = []


class MachineError(Exception):
    """A guest did not do what it should.  `directory`: what it left behind."""

    def __init__(self, what: str, directory: Path) -> None:
        super().__init__(what)
        self.directory = directory


class HungBootError(MachineError):
    """A guest hung, or its emulator ended, where no program of the guest's can be the reason."""


def guest_environment() -> dict[str, str]:
    """What programs of the checkout under test need in the guest."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(REPOSITORY / "src"),
    }


def agent_command(*arguments: str) -> list[str]:
    """The agent of this checkout, as a command line for the guest."""
    environment = [f"{name}={value}" for name, value in guest_environment().items()]
    return ["/usr/bin/env", "-i", *environment, sys.executable, "-m", "arcbox_agent.agent", *arguments]


class Machine:
    """One guest.  `command` is its PID 1, words without spaces in them; None: the agent.

    `initramfs`: the guest's only root, with a PID 1 of its own.
    `files`: path in the guest to (content, mode), written over its root.
    `kernel_vsock`: None: the host's own vhost-vsock where there is one.
    `snapshot`: goes on where `save` left off, with the same initramfs and memory.

    It is there once its PID 1 starts.  A boot that hangs before is the emulator's fault and is
    tried anew, a bounded number of times (accelerator.py).  So is one that hangs later on,
    until the guest listens for the first time, if its very kernel answers to nothing.  What
    PID 1 does or does not is never a reason to try again.
    """

    def __init__(
        self,
        command: list[str] | None,
        *,
        root: Root = Root.OVERLAY,
        files: dict[str, tuple[str, int]] | None = None,
        memory: int = 512,
        initramfs: Path | None = None,
        kernel_arguments: str = "",
        kernel_vsock: bool | None = None,
        snapshot: Path | None = None,
    ) -> None:
        # Short: a unix socket's path has room for 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="arcbox-vm-"))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._keep = False
        kernel_has_vsock = os.path.exists("/dev/vhost-vsock")
        self.kernel_vsock = kernel_has_vsock if kernel_vsock is None else kernel_vsock
        # Where the kernel does it, a cid is the whole host's.
        self.cid = 1000 + (os.getpid() * 32 + next(_cids)) % 0x7FFF0000 if self.kernel_vsock else 3
        self._memory = memory
        self._kernel_arguments = kernel_arguments
        self._own_root = initramfs is None
        self._snapshot = snapshot
        self._tries = accelerators()
        #: What was tried in vain before, each with the reason.
        self.hung_boots: list[str] = []
        self._has_listened = False
        self._lost: dict[int, MachineError] = {}
        try:
            if initramfs is None:
                initramfs = self.directory / "initramfs"
                initramfs.write_bytes(boot_archive(guest_kernel(), root, command or agent_command(), files or {}))
            self._initramfs = initramfs
            self._boot()
        except BaseException:
            self.close()
            raise

    # ---- starting

    def _boot(self) -> None:
        """Until PID 1 starts."""
        while True:
            self.accelerator = self._tries.pop(0)
            # What belongs to one try: the next one finds an empty place, and leaves this one.
            self.boot_directory = self.directory / str(len(self.hung_boots))
            self.boot_directory.mkdir()
            try:
                self._start(self.accelerator)
                if self._snapshot is not None:
                    self._wait_for_restore(self.accelerator)
                    self._plug_vsock()
                else:
                    self._wait_for_pid_1(self.accelerator)
                return
            except HungBootError as error:
                self._give_up_boot(error)

    def _give_up_boot(self, error: HungBootError) -> None:
        """Ends a boot that hung.  Raises its error where it was the last try."""
        self._stop()
        remember_failure(self.accelerator)
        if not self._tries:
            self.keep()
            raise error
        what = f"{' '.join(self.accelerator.options)}: {error}"
        self.hung_boots.append(what.splitlines()[0])
        HUNG_BOOTS.append(what)
        print(f"{what}\nThat was try {len(self.hung_boots)}: booting anew.", flush=True)

    @property
    def console_path(self) -> Path:
        return self.boot_directory / "console"

    @property
    def vsock_path(self) -> Path:
        """The unix socket for the host's programs, where the kernel has no vsock."""
        return self.boot_directory / "vsock.sock"

    @property
    def qmp_path(self) -> Path:
        return self.boot_directory / "qmp.sock"

    def _start(self, accelerator: Accelerator) -> None:
        sockets = []
        # A first root that is handed in is the only one.
        shared_root = []
        if self._own_root:
            files_socket = self._share_root()
            sockets.append(files_socket)
            shared_root = ["-chardev", f"socket,id=files,path={files_socket}"]
            shared_root += ["-device", "vhost-user-fs-pci,chardev=files,tag=hostroot"]
        if self.kernel_vsock:
            chardev = []
            self._vsock_device: dict[str, str | int] = {"driver": "vhost-vsock-pci", "guest-cid": self.cid}
        else:
            vhost_socket = self.boot_directory / "vhost.sock"
            self._run(
                "vsock",
                [sys.executable, "-m", "tests.vm.vsock_backend", "--vhost-user", str(vhost_socket)]
                + ["--unix", str(self.vsock_path), "--cid", str(self.cid)],
            )
            sockets.append(vhost_socket)
            chardev = ["-chardev", f"socket,id=vsock,path={vhost_socket}"]
            self._vsock_device = {"driver": "vhost-user-vsock-pci", "chardev": "vsock"}
        # In a port of its own, so that it can be unplugged: no snapshot holds it.
        self._vsock_device |= {"id": "vsock", "bus": "port1"}
        vsock = ["-device", "pcie-root-port,id=port1,chassis=1", *chardev]
        if self._snapshot is not None:
            vsock += ["-incoming", f"exec:cat {self._snapshot}"]
        else:
            vsock += ["-device", json.dumps(self._vsock_device)]
        for path in sockets:
            self._wait(path.exists, 20.0, f"no socket {path.name} after 20 s")
        size = self._memory
        self._run(
            "qemu",
            ["qemu-system-x86_64", "-name", "guest,debug-threads=on"]
            + ["-M", "q35", "-smp", "2", "-m", str(size), "-cpu", "max", *accelerator.options]
            + ["-object", f"memory-backend-memfd,id=mem,size={size}M,share=on", "-numa", "node,memdev=mem"]
            + ["-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random"]
            + shared_root
            + vsock
            + ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
            + ["-serial", f"file:{self.console_path}"]
            + ["-qmp", f"unix:{self.qmp_path},server=on,wait=off"]
            + ["-kernel", str(guest_kernel().image), "-initrd", str(self._initramfs)]
            + ["-append", f"{_KERNEL_ARGUMENTS} {self._kernel_arguments}"],
        )

    def _wait_for_pid_1(self, accelerator: Accelerator) -> None:
        """Raises HungBootError where the guest does not come so far."""
        sign = STARTING_PID_1 if self._own_root else _RUN_INIT
        began = spoke = time.monotonic()
        said = 0
        while sign not in (console := self.console()):
            now = time.monotonic()
            if len(console) > said:
                said, spoke = len(console), now
            if GIVING_UP in console:
                # No hang: it would come to the same another time.
                raise self.failure("the guest has no root")
            if not self.running:
                raise self._hung(f"QEMU ended with {self._processes['qemu'].returncode} before PID 1 started")
            if now - spoke > accelerator.silence:
                raise self._hung(f"the guest said nothing for {accelerator.silence:g} s, before PID 1 started")
            if now - began > accelerator.limit:
                raise self._hung(f"PID 1 did not start within {accelerator.limit:g} s")
            time.sleep(_STEP)

    def _wait_for_restore(self, accelerator: Accelerator) -> None:
        deadline = time.monotonic() + accelerator.limit
        while time.monotonic() < deadline and self.running:
            # Its socket is not there at once.
            with contextlib.suppress(QmpError), Qmp(self.qmp_path) as qemu:
                if qemu.command("query-status")["running"]:
                    return
            time.sleep(_STEP)
        raise self._hung("the guest was not restored")

    def _share_root(self) -> Path:
        """The host's root as it is on disk, over virtiofs; the socket it is served on."""
        path = self.boot_directory / "files.sock"
        shared = self.boot_directory / "root"
        shared.mkdir()
        self._run(
            "virtiofsd",
            # In a mount namespace of its own, without the host's /proc, /dev and the like,
            # which are for the guest to mount.
            ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _SHARE_ROOT, "sh", str(shared)]
            + [_first(_VIRTIOFSD), f"--socket-path={path}", "-o", f"source={shared}"]
            + ["-o", "cache=always", "-o", "sandbox=chroot", "-f"],
        )
        return path

    def _run(self, name: str, command: list[str]) -> None:
        # The kernel ends it when this process ends, however that comes about.
        guarded = ["setpriv", "--pdeathsig", "KILL", *command]
        with open(self.boot_directory / f"{name}.log", "wb") as log:
            self._processes[name] = subprocess.Popen(
                guarded,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
                # Out of the way of a terminal's Ctrl-C, which is for the one who started us.
                start_new_session=True,
            )

    # ---- from the host

    @property
    def address(self) -> str:
        """Of the agent, for `arcbox_agent.connect` and arcboxctl."""
        return self.address_of(1024)

    def address_of(self, port: int) -> str:
        if self.kernel_vsock:
            return f"vsock://{self.cid}:{port}"
        return f"firecracker://{self.vsock_path}:{port}"

    def dial(self, port: int = 1024, timeout: float = 30.0) -> socket.socket:
        """A plain stream to a port of the guest; ConnectionRefusedError where nobody listens."""
        if self.kernel_vsock:
            stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            stream.settimeout(timeout)
            stream.connect((self.cid, port))
            return stream
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(timeout)
        try:
            stream.connect(str(self.vsock_path))
            stream.sendall(b"CONNECT %d\n" % port)
            answer = b""
            while not answer.endswith(b"\n"):
                byte = stream.recv(1)
                if not byte:
                    raise ConnectionRefusedError(f"port {port} of the guest")
                answer += byte
        except BaseException:
            stream.close()
            raise
        return stream

    def wait_until_it_listens(self, port: int = 1024, limit: float = BOOT_LIMIT) -> None:
        # One that many tests share fails each of them, but is waited for only once.
        if port in self._lost:
            raise self._lost[port]
        try:
            self._wait_until_it_listens(port, limit)
        except MachineError as error:
            self._lost[port] = error
            raise

    def _wait_until_it_listens(self, port: int, limit: float) -> None:
        def listens() -> bool:
            with contextlib.suppress(OSError):
                self.dial(port).close()
                return True
            return False

        what = f"nobody listens on port {port}"
        deadline = time.monotonic() + limit
        while not self._has_listened and time.monotonic() < deadline:
            if self._comes_true(listens, _SUSPICIOUS, what):
                self._has_listened = True
            elif not evidence.kernel_answers(self.qmp_path, self.console):
                self._give_up_boot(self._hung(f"{what}, and the guest's kernel answers to no key"))
                self._boot()
                deadline = time.monotonic() + limit
        self._wait(listens, max(deadline - time.monotonic(), 0.0), f"{what} after {limit:g} s")

    def console(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self.console_path.read_text(errors="replace").replace("\r\n", "\n")
        return ""

    def wait_for_console(self, text: str, limit: float = BOOT_LIMIT) -> None:
        self._wait(lambda: text in self.console(), limit, f"{text!r} is not on the console after {limit:g} s")

    # ---- snapshots

    def unplug_vsock(self) -> None:
        with Qmp(self.qmp_path) as qemu:
            qemu.command("device_del", id="vsock")
            devices = partial(qemu.command, "qom-list", path="/machine/peripheral")
            # The guest's kernel has to let go of it first.
            self._wait(lambda: "vsock" not in [one["name"] for one in devices()], 60.0, "vsock is still there")

    def _plug_vsock(self) -> None:
        with Qmp(self.qmp_path) as qemu:
            qemu.command("device_add", **self._vsock_device)

    def save(self, snapshot: Path) -> None:
        """The whole guest as it is now, in a file; it stands still then."""
        with Qmp(self.qmp_path) as qemu:
            qemu.command("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
            qemu.command("migrate", uri=f"exec:cat > {snapshot}")
            status = partial(qemu.command, "query-migrate")
            self._wait(lambda: status()["status"] in ("completed", "failed"), 120.0, "no snapshot after 120 s")
            if status()["status"] == "failed":
                raise self.failure(f"no snapshot: {status()}")

    # ---- its end

    @property
    def running(self) -> bool:
        # What QEMU connects to starts first, and may have failed.
        return "qemu" in self._processes and self._processes["qemu"].poll() is None

    def wait_until_off(self, limit: float = BOOT_LIMIT) -> str:
        """Until the guest has switched itself off; what the console says."""
        deadline = time.monotonic() + limit
        while self.running:
            if time.monotonic() > deadline:
                raise self.failure("it does not switch off")
            time.sleep(_STEP)
        return self.console()

    def kill(self, name: str) -> None:
        """SIGKILL for one of its processes: `qemu`, `vsock`, `virtiofsd`."""
        self._processes[name].kill()
        self._processes[name].wait()

    def keep(self) -> None:
        """Leaves the console and the logs behind."""
        self._keep = True

    def close(self) -> None:
        self._stop()
        if not self._keep:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _stop(self) -> None:
        for process in reversed(self._processes.values()):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        self._processes.clear()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.keep()
        self.close()

    # ---- waiting, and what is said when it was in vain

    def _wait(self, condition: Callable[[], bool], limit: float, what: str) -> None:
        if not self._comes_true(condition, limit, what):
            raise self.failure(what)

    def _comes_true(self, condition: Callable[[], bool], limit: float, what: str) -> bool:
        """Within `limit`?  Raises where it cannot any more, as a process has ended."""
        deadline = time.monotonic() + limit
        while not condition():
            # QEMU first: the others end when it does.
            for name, process in reversed(self._processes.items()):
                if process.poll() is not None:
                    raise self.failure(f"{what}: {name} ended with {process.returncode}")
            if time.monotonic() > deadline:
                return False
            time.sleep(_STEP)
        return True

    def failure(self, what: str) -> MachineError:
        """What a test raises; it leaves the console and all else behind."""
        said = _end_of("console", self.console())
        self.keep()
        parts = [self._gather_evidence(what), said]
        if self._processes and self.running:
            tasks = evidence.tasks_of_guest(self.qmp_path, self.console)
            (self.boot_directory / "tasks.txt").write_text(tasks)
            parts.append("--- PID 1, by the guest's kernel (all are in tasks.txt):\n" + evidence.of_pid_1(tasks))
        return MachineError("\n".join(parts), self.directory)

    def _hung(self, what: str) -> HungBootError:
        # What the kernel would say of its tasks: it does not say anything more.
        return HungBootError(f"{self._gather_evidence(what)}\n{_end_of('console', self.console())}", self.directory)

    def _gather_evidence(self, what: str) -> str:
        parts = [what, f"(all of it is in {self.boot_directory})"]
        parts += [f"(an earlier try: {hung})" for hung in self.hung_boots]
        if self._processes and self.running:
            summary, whole = evidence.of_qemu(self._processes["qemu"].pid, self.qmp_path)
            (self.boot_directory / "qemu.txt").write_text(whole)
            parts.append(f"--- QEMU (more is in qemu.txt):\n{summary}")
        parts += [
            _end_of(path.name, path.read_text(errors="replace")) for path in sorted(self.boot_directory.glob("*.log"))
        ]
        return "\n".join(filter(None, parts))


def _end_of(name: str, text: str) -> str:
    lines = text.strip().splitlines()
    # A panic from its first line on: its call trace may be longer than the rest.
    panics = (number for number, line in enumerate(lines) if "Kernel panic" in line)
    first = min(max(len(lines) - 40, 0), next(panics, len(lines)))
    return "\n".join([f"--- {name}, its end:", *lines[first:]]) if lines else f"--- {name} is empty"


def _first(candidates: tuple[str, ...]) -> str:
    for path in candidates:
        if os.path.exists(path):
            return path
    raise FileNotFoundError(f"virtiofsd is missing: install qemu-system-x86, which brings {candidates[0]}")

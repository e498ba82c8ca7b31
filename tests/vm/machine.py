"""A virtual machine: QEMU, the file server of its root, and its vsock."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.vm.accelerator import accelerator
from tests.vm.initramfs import Root, boot_archive
from tests.vm.kernel import guest_kernel
from tests.vm.packages import REPOSITORY

_VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")

#: Seconds.  A boot takes five; on a machine with much else to do it can take a minute.
BOOT_LIMIT = 180.0
_STEP = 0.02

#: Spares the emulated CPU what no test needs.
_KERNEL_ARGUMENTS = (
    "console=ttyS0 panic=-1 quiet nokaslr mitigations=off tsc=reliable lpj=4000000 audit=0 "
    "apparmor=0 no_timer_check random.trust_cpu=on"
)

_SHARE_ROOT = """
shared=$1; shift
mount --rbind / "$shared"
for name in proc sys dev run; do
    if mountpoint -q "$shared/$name"; then umount -R -l "$shared/$name"; fi
done
exec "$@"
"""

_cids = itertools.count(3)


class MachineError(Exception):
    """A guest did not do what it should.  The message ends with its console."""


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
    ) -> None:
        # Short: a unix socket's path has room for 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="arcbox-vm-"))
        self.console_path = self.directory / "console"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._keep = False
        kernel_has_vsock = os.path.exists("/dev/vhost-vsock")
        self.kernel_vsock = kernel_has_vsock if kernel_vsock is None else kernel_vsock
        # Where the kernel does it, a cid is the whole host's.
        self.cid = 1000 + (os.getpid() * 32 + next(_cids)) % 0x7FFF0000 if self.kernel_vsock else 3
        self.vsock_path = self.directory / "vsock.sock"
        try:
            self._start(command, root, files or {}, memory, initramfs, kernel_arguments)
        except BaseException:
            self.close()
            raise

    # ---- starting

    def _start(
        self,
        command: list[str] | None,
        root: Root,
        files: dict[str, tuple[str, int]],
        memory: int,
        initramfs: Path | None,
        kernel_arguments: str,
    ) -> None:
        kernel = guest_kernel()
        kind = accelerator(kernel)
        sockets = []
        # A first root that is handed in is the only one.
        shared_root = []
        if initramfs is None:
            initramfs = self.directory / "initramfs"
            initramfs.write_bytes(boot_archive(kernel, root, command or agent_command(), files))
            files_socket = self._share_root()
            sockets.append(files_socket)
            shared_root = ["-chardev", f"socket,id=files,path={files_socket}"]
            shared_root += ["-device", "vhost-user-fs-pci,chardev=files,tag=hostroot"]
        if self.kernel_vsock:
            vsock = ["-device", f"vhost-vsock-pci,guest-cid={self.cid}"]
        else:
            vhost_socket = self.directory / "vhost.sock"
            self._run(
                "vsock",
                [sys.executable, "-m", "tests.vm.vsock_backend", "--vhost-user", str(vhost_socket)]
                + ["--unix", str(self.vsock_path), "--cid", str(self.cid)],
            )
            sockets.append(vhost_socket)
            vsock = ["-chardev", f"socket,id=vsock,path={vhost_socket}"]
            vsock += ["-device", "vhost-user-vsock-pci,chardev=vsock"]
        for path in sockets:
            self._wait(path.exists, 20, f"no socket {path.name}")
        self._run(
            "qemu",
            ["qemu-system-x86_64", "-M", "q35", "-smp", "2", "-m", str(memory), "-cpu", "max"]
            + ["-accel", "kvm" if kind == "kvm" else "tcg,thread=multi"]
            + ["-object", f"memory-backend-memfd,id=mem,size={memory}M,share=on", "-numa", "node,memdev=mem"]
            + shared_root
            + vsock
            + ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
            + ["-serial", f"file:{self.console_path}"]
            + ["-qmp", f"unix:{self.directory / 'qmp.sock'},server=on,wait=off"]
            + ["-kernel", str(kernel.image), "-initrd", str(initramfs)]
            + ["-append", f"{_KERNEL_ARGUMENTS} {kernel_arguments}"],
        )

    def _share_root(self) -> Path:
        """The host's root as it is on disk, over virtiofs; the socket it is served on."""
        path = self.directory / "files.sock"
        shared = self.directory / "root"
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
        with open(self.directory / f"{name}.log", "wb") as log:
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
        def listens() -> bool:
            with contextlib.suppress(OSError):
                self.dial(port).close()
                return True
            return False

        self._wait(listens, limit, f"nobody listens on port {port}")

    def console(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self.console_path.read_text(errors="replace").replace("\r\n", "\n")
        return ""

    def wait_for_console(self, text: str, limit: float = BOOT_LIMIT) -> None:
        self._wait(lambda: text in self.console(), limit, f"{text!r} is not on the console")

    # ---- its end

    @property
    def running(self) -> bool:
        return self._processes["qemu"].poll() is None

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
        for process in reversed(self._processes.values()):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        if not self._keep:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.keep()
        self.close()

    # ---- waiting

    def failure(self, what: str) -> MachineError:
        self.keep()
        parts = [what, f"(all of it is in {self.directory})"]
        for path in sorted(self.directory.glob("*.log")) + [self.console_path]:
            text = path.read_text(errors="replace").strip() if path.exists() else ""
            if text:
                parts.append(f"--- {path.name}, its end:\n" + "\n".join(text.splitlines()[-40:]))
        return MachineError("\n".join(parts))

    def _wait(self, condition: Callable[[], bool], limit: float, what: str) -> None:
        deadline = time.monotonic() + limit
        while not condition():
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise self.failure(f"{what}: {name} ended with {process.returncode}")
            if time.monotonic() > deadline:
                raise self.failure(f"{what} after {limit:g} s")
            time.sleep(_STEP)


def _first(candidates: tuple[str, ...]) -> str:
    for path in candidates:
        if os.path.exists(path):
            return path
    raise MachineError(f"virtiofsd is missing: install qemu-system-x86, which brings {candidates[0]}")

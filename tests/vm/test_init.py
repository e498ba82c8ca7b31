"""The agent as PID 1, from boot to power-off."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from arcbox_agent.client import Client
from arcbox_agent.wire import PingResponse, ShutdownResponse, SystemInfo
from tests.vm.conftest import with_client
from tests.vm.initramfs import Root
from tests.vm.kernel import REPOSITORY, guest_kernel
from tests.vm.machine import Machine


def test_pid_1_mounts_what_is_missing_and_waits_for_vsock(guest: Machine) -> None:
    mounted = re.findall(r"init: mounted target=(\S+) type=(\S+)", guest.console())
    # /tmp is the host's, under a layer that takes what is written: something is in it.
    assert mounted == [
        ("/proc", "proc"),
        ("/sys", "sysfs"),
        ("/dev", "devtmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/run", "tmpfs"),
        ("/sys/fs/cgroup", "cgroup2"),
    ]
    assert f"init: vsock is there cid={guest.cid}" in guest.console()


@pytest.mark.parametrize(
    ("reboot", "farewell"), [(False, "reboot: Power down"), (True, "reboot: Restarting system")]
)
def test_shutdown_is_answered_and_then_done(boot: Callable[..., Machine], reboot: bool, farewell: str) -> None:
    machine = boot()

    async def work(client: Client) -> tuple[PingResponse, ShutdownResponse]:
        return await client.ping("vm"), await client.shutdown(timeout=5, reboot=reboot)

    pong, answer = with_client(machine, work)
    assert pong.message == "pong: vm"
    assert answer.accepted
    assert farewell in machine.wait_until_off()


def test_a_read_only_root_keeps_its_state_in_run_and_says_so(boot: Callable[..., Machine]) -> None:
    machine = boot(root=Root.READ_ONLY)

    async def work(client: Client) -> str:
        return (await client.agent_info()).state_dir

    assert with_client(machine, work) == "/run/arcbox-agent/state"
    assert "state is kept in memory" in machine.console()


def test_a_minimal_initramfs_needs_nothing_but_the_agent(boot: Callable[..., Machine], tmp_path: Path) -> None:
    image = tmp_path / "agent.cpio"
    (config := tmp_path / "config.toml").write_text('log_level = "debug"\n')
    kernel = guest_kernel()
    subprocess.run(
        [sys.executable, REPOSITORY / "tools" / "make_initramfs.py", "--output", image, "--config", config]
        + ["--modules", kernel.modules_root / kernel.release, "--busybox", "/bin/busybox"],
        check=True,
    )
    machine = boot(initramfs=image)

    async def work(client: Client) -> tuple[SystemInfo, ShutdownResponse]:
        return await client.system_info(), await client.shutdown()

    info, _ = with_client(machine, work)
    assert info.kernel_version == kernel.release
    assert info.os_name == "Linux"  # no os-release, as there is no distribution
    assert "reboot: Power down" in machine.wait_until_off()

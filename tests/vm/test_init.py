"""The agent as PID 1, from boot to power-off."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from arcbox_agent.client import Client
from arcbox_agent.wire import SystemInfo
from tests.cli.conftest import Arcboxctl
from tests.vm.conftest import with_client
from tests.vm.initramfs import Root
from tests.vm.kernel import guest_kernel
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


def test_pid_1_names_the_host_and_raises_the_loopback_interface(guest: Machine) -> None:
    async def work(client: Client) -> tuple[str, str]:
        script = "cat /etc/hostname; cat /sys/class/net/lo/flags"
        result = await client.exec(["/bin/sh", "-ec", script], check=True)
        return (await client.system_info()).hostname, result.stdout.decode()

    hostname, seen = with_client(guest, work)
    named, flags = seen.split()
    assert hostname == named
    assert int(flags, 16) & 1  # IFF_UP


@pytest.mark.parametrize(
    ("end", "farewell"),
    [
        ("shutdown", "reboot: Power down"),
        ("TERM", "reboot: Power down"),
        # What the kernel makes of Ctrl-Alt-Del for PID 1.
        ("INT", "reboot: Restarting system"),
    ],
)
def test_the_end_stops_containers_in_order_and_then_the_machine(
    boot: Callable[..., Machine], end: str, farewell: str
) -> None:
    machine = boot()
    script = """
        trap 'sleep 1; echo container $0 took its leave > /dev/console; exit 0' TERM
        echo ready $0 > /dev/console
        while true; do sleep 0.1; done
    """

    async def work(client: Client) -> None:
        for name in ("one", "two"):
            created = await client.create_container(cmd=["/bin/sh", "-c", script, name])
            await client.start_container(created.id)
            while f"ready {name}" not in machine.console():
                await asyncio.sleep(0.05)
        if end != "shutdown":
            await client.exec_detached(["/bin/sh", "-c", f"kill -{end} 1"])

    with_client(machine, work)
    if end == "shutdown":
        # It is answered before anything ends.
        done = Arcboxctl(machine.address)("shutdown", "--time", "30")
        assert (done.stdout, done.stderr) == ("shutting down\n", "")
    console = machine.wait_until_off()
    for name in ("one", "two"):
        assert console.index(f"container {name} took its leave") < console.index(farewell)


def test_a_read_only_root_keeps_its_state_in_run_and_says_so(boot: Callable[..., Machine]) -> None:
    machine = boot(root=Root.READ_ONLY)

    async def work(client: Client) -> str:
        return (await client.agent_info()).state_dir

    assert with_client(machine, work) == "/run/arcbox-agent/state"
    assert "state is kept in memory" in machine.console()


def test_a_minimal_initramfs_needs_nothing_but_the_agent(boot: Callable[..., Machine], minimal_initramfs: Path) -> None:
    machine = boot(initramfs=minimal_initramfs)

    async def work(client: Client) -> SystemInfo:
        return await client.system_info()

    info = with_client(machine, work)
    assert info.kernel_version == guest_kernel().release
    assert info.os_name == "Linux"  # no os-release, as there is no distribution
    done = Arcboxctl(machine.address)("--json", "shutdown", "--reboot")
    assert json.loads(done.stdout) == {"accepted": True}
    assert "reboot: Restarting system" in machine.wait_until_off()

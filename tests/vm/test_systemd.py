"""The unit of packaging/ under a real systemd, which is PID 1 of the guest."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from arcbox_agent.client import Client
from arcbox_agent.wire import ShutdownResponse
from tests.vm.conftest import wait_for_another_agent, with_client
from tests.vm.machine import Machine
from tests.vm.packages import REPOSITORY

_UNITS = REPOSITORY / "packaging" / "systemd"

_AGENT = f"""#!/bin/sh
# As a wheel would install it, for the checkout under test.
PYTHONPATH={REPOSITORY / "src"} exec {sys.executable} -m arcbox_agent.agent "$@"
"""

#: What of the host's own units a small guest wants.
_TARGET = """[Unit]
Requires=basic.target
Wants=arcbox-agent.service
After=basic.target
AllowIsolate=yes
"""


@pytest.fixture(scope="module")
def systemd() -> Iterator[Machine]:
    files = {
        "/usr/local/bin/arcbox-agent": (_AGENT, 0o755),
        "/etc/arcbox-agent/config.toml": ((REPOSITORY / "packaging" / "config.toml").read_text(), 0o644),
        "/etc/systemd/system/guest.target": (_TARGET, 0o644),
        # Without one systemd takes it for a first boot, and asks questions.
        "/etc/machine-id": ("0123456789abcdef0123456789abcdef\n", 0o444),
        # The host's checkout may well be in /tmp: the guest is not to clear that.
        "/etc/tmpfiles.d/tmp.conf": ("", 0o644),
    }
    for unit in _UNITS.iterdir():
        files[f"/etc/systemd/system/{unit.name}"] = (unit.read_text(), 0o644)
    machine = Machine(
        ["/lib/systemd/systemd"],
        files=files,
        memory=768,
        kernel_arguments="systemd.unit=guest.target systemd.mask=tmp.mount systemd.show_status=1"
        " systemd.log_target=console",
    )
    yield machine
    machine.close()


async def properties(client: Client, unit: str, *names: str) -> dict[str, str]:
    result = await client.exec(["systemctl", "show", unit, *(f"--property={name}" for name in names)], check=True)
    return dict(line.split("=", 1) for line in result.stdout.decode().splitlines())


def test_systemd_starts_the_agent_and_is_told_when_it_is_ready(systemd: Machine) -> None:
    async def work(client: Client) -> tuple[dict[str, str], int, str]:
        state = await properties(client, "arcbox-agent", "ActiveState", "Type", "MainPID", "StatusText")
        limits = await client.exec(["/bin/sh", "-c", f"cat /proc/{state['MainPID']}/oom_score_adj"], check=True)
        return state, (await client.agent_info()).pid, limits.stdout.decode().strip()

    state, pid, oom_score_adj = with_client(systemd, work)
    assert state["ActiveState"] == "active"
    assert state["Type"] == "notify"
    assert state["StatusText"] == "listening on vsock:1024"
    assert int(state["MainPID"]) == pid
    assert oom_score_adj == "-900"


def test_the_units_have_nothing_that_systemd_complains_about(systemd: Machine) -> None:
    async def work(client: Client) -> tuple[int, str]:
        units = [f"/etc/systemd/system/{unit.name}" for unit in sorted(_UNITS.iterdir())]
        result = await client.exec(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units])
        return result.exit_code, result.stderr.decode()

    assert with_client(systemd, work) == (0, "")


def test_containers_go_on_while_the_unit_is_restarted(systemd: Machine) -> None:
    async def before(client: Client) -> tuple[str, int, int]:
        created = await client.create_container(cmd=["/bin/sh", "-c", "while sleep 0.1; do :; done"])
        await client.start_container(created.id)
        (container,) = await client.list_containers()
        pid = (await client.agent_info()).pid
        await client.exec_detached(["systemctl", "--no-block", "restart", "arcbox-agent"])
        return created.id, container.pid, pid

    id, pid, old_agent = with_client(systemd, before)

    wait_for_another_agent(systemd, than=old_agent)

    async def after(client: Client) -> tuple[str, int]:
        (container,) = await client.list_containers()
        await client.remove_container(id, force=True)
        return container.id, container.pid

    assert with_client(systemd, after) == (id, pid)


def test_systemd_may_hold_the_sockets(systemd: Machine) -> None:
    async def switch(client: Client) -> int:
        script = "systemctl stop arcbox-agent; systemctl start arcbox-agent.socket"
        await client.exec_detached(["systemd-run", "--no-block", "/bin/sh", "-c", script])
        return (await client.agent_info()).pid

    old_agent = with_client(systemd, switch)
    wait_for_another_agent(systemd, than=old_agent)

    async def work(client: Client) -> tuple[list[str], str]:
        info = await client.agent_info()
        state = await properties(client, "arcbox-agent.socket", "ActiveState")
        return sorted(listener.address for listener in info.listeners), state["ActiveState"]

    listeners, state = with_client(systemd, work)
    assert listeners == ["unix:/run/arcbox-agent.sock", "vsock:1024"]
    assert state == "active"


def test_shutdown_asks_systemd(systemd: Machine) -> None:
    async def work(client: Client) -> ShutdownResponse:
        return await client.shutdown(timeout=5)

    assert with_client(systemd, work).accepted
    console = systemd.wait_until_off()
    assert "reboot: Power down" in console

"""The script of packaging/ under a real OpenRC, which is PID 1 of the guest."""

from __future__ import annotations

import sys
from collections.abc import Callable

from arcbox_agent.client import Client
from arcbox_agent.wire import ShutdownResponse
from tests.vm.conftest import wait_for_another_agent, with_client
from tests.vm.machine import Machine
from tests.vm.packages import REPOSITORY, unpacked

_AGENT = f"""#!/bin/sh
PYTHONPATH={REPOSITORY / "src"} exec {sys.executable} -m arcbox_agent.agent "$@"
"""

#: Puts OpenRC over the guest's root, with the agent in its default runlevel, and becomes it.
_PID_1 = """#!/bin/busybox sh
set -e
# One by one, as /sbin and /lib are symlinks here, which a copy of the whole would replace.
for name in bin etc lib sbin usr; do
    [ ! -d "{openrc}/$name" ] || cp -a "{openrc}/$name/." "/$name/"
done
rm -rf /etc/runlevels
mkdir -p /etc/runlevels/sysinit /etc/runlevels/boot /etc/runlevels/default /etc/runlevels/shutdown
chmod 755 /etc/init.d/arcbox-agent
# What the script needs of its neighbours, which belong to other packages.
for name in localmount modules bootmisc; do
    printf '#!/sbin/openrc-run\\nstart() {{ return 0; }}\\n' > "/etc/init.d/$name"
    chmod 755 "/etc/init.d/$name"
done
ln -s /etc/init.d/arcbox-agent /etc/runlevels/default/
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
exec /sbin/openrc-init
"""


def test_openrc_starts_the_agent_again_and_is_asked_to_power_off(boot: Callable[..., Machine]) -> None:
    openrc = unpacked("openrc", lambda: ["openrc", "librc1", "libeinfo1"])
    packaging = REPOSITORY / "packaging"
    machine = boot(
        ["/pid1.sh"],
        files={
            "/pid1.sh": (_PID_1.format(openrc=openrc), 0o755),
            "/usr/local/bin/arcbox-agent": (_AGENT, 0o755),
            "/etc/arcbox-agent/config.toml": ((packaging / "config.toml").read_text(), 0o644),
            "/etc/init.d/arcbox-agent": ((packaging / "openrc" / "arcbox-agent").read_text(), 0o755),
        },
    )

    async def work(client: Client) -> tuple[int, str]:
        status = await client.exec(["/sbin/rc-service", "arcbox-agent", "status"], check=True)
        pid = (await client.agent_info()).pid
        await client.exec_detached(["/bin/sh", "-c", f"kill -KILL {pid}"])
        return pid, status.stdout.decode()

    first, status = with_client(machine, work)
    assert first != 1
    assert "started" in status

    assert wait_for_another_agent(machine, than=first) != 1

    async def end(client: Client) -> ShutdownResponse:
        return await client.shutdown(timeout=5)

    assert with_client(machine, end).accepted
    assert "reboot: Power down" in machine.wait_until_off()

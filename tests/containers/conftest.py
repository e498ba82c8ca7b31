"""A root directory to run containers in, and a client of a running agent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent import sync

BUSYBOX = "/bin/busybox"

APPLETS = (
    "cat chmod cp date df echo env false grep head hostname id kill ln ls mkdir mkfifo mount ps pwd readlink rm "
    "sh sleep stat tail touch tr true tty umount wc whoami yes"
).split()


@pytest.fixture(scope="session")
def base_rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small root of static binaries: Debian's busybox-static, and users of its own."""
    assert os.path.exists(BUSYBOX), "these tests need busybox: apt-get install busybox-static"
    root = tmp_path_factory.mktemp("rootfs")
    root.chmod(0o755)  # users other than root must come in
    for name in ("bin", "etc", "tmp", "proc", "dev", "data"):
        (root / name).mkdir()
    shutil.copy2(BUSYBOX, root / "bin" / "busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc" / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nalice:x:4100:4200:Alice:/home/alice:/bin/sh\n4300:x:4301:4302::/odd:/bin/sh\n"
    )
    (root / "etc" / "group").write_text("root:x:0:\nalice:x:4200:\nstaff:x:4400:bob,alice\nwheel:x:4500:alice\n")
    return root


@pytest.fixture
def rootfs(base_rootfs: Path, tmp_path: Path) -> Path:
    """A copy that the test may change."""
    copy = tmp_path / "rootfs"
    shutil.copytree(base_rootfs, copy, symlinks=True)
    return copy


@pytest.fixture
def client(agent: Any) -> Iterator[sync.Client]:
    with sync.connect(agent.address, wait=10) as client:
        yield client


@pytest.fixture
def output_of(client: sync.Client) -> Callable[..., list[str]]:
    """Runs a container to its end; the lines it wrote, in order."""

    def run(*cmd: str, code: int = 0, **options: Any) -> list[str]:
        id = client.create_container(cmd=list(cmd), **options).id
        client.start_container(id)
        end = client.wait_container(id)
        lines = [entry.data.decode() for entry in client.logs(id)]
        assert end.status_code == code, lines
        client.remove_container(id)
        return lines

    return run

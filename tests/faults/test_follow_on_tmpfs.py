"""Following a log where reads cannot be asked not to wait: tmpfs, as of a guest with a read-only root."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from arcbox_agent import connect
from tools.soak import small_disk
from tools.stress.agent import PATIENCE, AgentProcess


def test_a_follow_on_a_file_system_without_nowait_delivers_all_and_sleeps_in_between() -> None:
    with tempfile.TemporaryDirectory(prefix="arcbox-") as name:
        directory = Path(name)
        with small_disk(directory / "disk", "8m"):
            agent = AgentProcess(
                directory, state_dir=directory / "disk" / "state", settings={"containers_at_exit": "stop"}
            )
            agent.start()
            try:
                agent.wait_until_it_answers()
                asyncio.run(_follow(agent))
                agent.stop()
            finally:
                if agent.running:
                    agent.kill()


async def _follow(agent: AgentProcess) -> None:
    async with connect(agent.address, timeout=PATIENCE) as client:
        script = "echo first; sleep 2; echo last"
        await client.create_container(id="c", cmd=["/bin/sh", "-c", script])
        await client.start_container("c")
        lines, cpu = [], 0.0
        async for entry in client.logs("c", follow=True):
            lines.append(entry.data)
            if entry.data == b"first":
                cpu = agent.cpu_seconds()
        assert lines == [b"first", b"last"]
        # Two seconds of silence: a follow that spins takes all of them.
        assert agent.cpu_seconds() - cpu < 1.0

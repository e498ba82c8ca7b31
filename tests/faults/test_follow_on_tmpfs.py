"""Following a log where reads cannot be asked not to wait: tmpfs, as of a guest with a read-only root."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from pathlib import Path

from arcbox_agent import connect
from arcbox_agent.agent.config.table import Settings
from arcbox_agent.agent.logs.follower import Followers
from arcbox_agent.agent.metrics import Metrics
from arcbox_agent.logs import Options
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


def test_a_line_written_while_a_thread_reads_wakes_the_follow(tmp_path: Path) -> None:
    """Its event may come before the thread's answer, which does not have the line yet."""
    lines = 5_000
    with small_disk(tmp_path / "disk", "8m"):
        log = tmp_path / "disk" / "web.log"
        log.touch()
        taken = threading.Semaphore(0)

        def write() -> None:
            with open(log, "ab", buffering=0) as file:
                for number in range(lines):
                    # Each at the very time when the follow looks for more after the last one.
                    if not taken.acquire(timeout=PATIENCE):
                        return
                    file.write(b"2026-11-23T17:45:12.255151664Z stdout F %d\n" % number)

        async def follow_all() -> bytes:
            followers = Followers(Settings(), Metrics())
            await followers.start()
            follow = followers.follow(str(log), Options(), lambda: False)
            try:
                text, seen = b"", 0
                taken.release()
                while seen < lines:
                    async with asyncio.timeout(PATIENCE / 4):
                        frames = await follow.next()
                    assert frames is not None
                    text += frames
                    came = frames.count(b"stdout")
                    seen += came
                    for _ in range(came):
                        taken.release()
                return text
            finally:
                follow.close()
                await followers.close()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            assert asyncio.run(follow_all()).count(b"stdout") == lines
        finally:
            writer.join()

"""A process that does nothing but follow: `python -m tests.logs.follow_process PATH OUTPUT [STREAM]`.

Writes the text of what it follows to OUTPUT, and how many lines that are to
PATH.read; ends when there is a file PATH.ended and all is delivered.
"""

from __future__ import annotations

import asyncio
import os
import sys

import uvloop

from arcbox_agent.agent.config.table import Settings
from arcbox_agent.agent.logs.follower import Followers
from arcbox_agent.agent.metrics import Metrics
from arcbox_agent.logs import Options


class TextOptions(Options):
    """Plain text instead of frames."""

    def reader(self, path: str, output: str = "", **options: object) -> object:  # type: ignore[override]
        return super().reader(path, "text", **options)  # type: ignore[arg-type]


async def main(path: str, target: str, stream: str) -> None:
    followers = Followers(Settings(), Metrics())
    await followers.start()
    follow = followers.follow(
        path,
        TextOptions(stdout=stream != "stderr", stderr=stream != "stdout"),
        lambda: os.path.exists(f"{path}.ended"),
    )

    async def look_for_the_end() -> None:
        while not os.path.exists(f"{path}.ended"):
            await asyncio.sleep(0.02)
        follow.wake()

    looking = asyncio.create_task(look_for_the_end())
    lines = 0
    print("following", flush=True)
    with open(target, "wb", buffering=0) as out, open(f"{path}.read", "w") as marker:
        while (data := await follow.next()) is not None:
            out.write(data)
            lines += data.count(b"\n")
            marker.seek(0)
            marker.write(f"{lines}")
            marker.flush()
    follow.close()
    await looking
    await followers.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else ""))

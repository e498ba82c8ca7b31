"""A process that does nothing but capture, to be killed: `python -m tests.logs.capture_process DIRECTORY MAX_SIZE`.

Prints a line when the capture is set up.  SIGTERM: bring the output to its end and leave.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from arcbox_agent.agent.config.table import Settings
from arcbox_agent.agent.containers.output.capture import Capture
from arcbox_agent.agent.metrics import Metrics


async def main(directory: str, max_size: int) -> int:
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, asked.set)
    settings = Settings()
    settings.log_max_size, settings.log_max_files = max_size, 200
    capture = Capture(settings, Metrics())
    await capture.start()
    fifos = {name: os.path.join(directory, name) for name in ("stdout", "stderr")}
    handle = capture.attach("web", os.path.join(directory, "logs", "web.log"), directory, fifos)
    await handle.ready()
    print("capturing", flush=True)
    await asked.wait()
    complete = await handle.finish(30)
    await capture.close()
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], int(sys.argv[2]))))

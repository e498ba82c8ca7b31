"""Runs in the guest: how long the agent takes from exec to listening, and what it weighs then.

Prints `milliseconds bytes` for each of so many starts.  The agent says itself when it
listens, to the socket that NOTIFY_SOCKET names.

    python -m tests.vm.footprint COUNT
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def start_once(directory: str) -> tuple[float, int]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        path = f"{directory}/notify"
        notified.bind(path)
        notified.settimeout(60)
        command = [sys.executable, "-m", "arcbox_agent.agent", "--listen", "vsock:2048"]
        command += ["--state-dir", f"{directory}/state", "--run-dir", f"{directory}/run"]
        started = time.monotonic()
        agent = subprocess.Popen(command, env={**os.environ, "NOTIFY_SOCKET": path}, stderr=subprocess.DEVNULL)
        try:
            while b"READY=1" not in notified.recv(4096):
                pass
            took = time.monotonic() - started
            rollup = Path(f"/proc/{agent.pid}/smaps_rollup").read_text()
            match = re.search(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)
            assert match is not None
            return took * 1000, int(match[1]) * 1024
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.wait(60)
            os.unlink(path)


def main() -> None:
    with tempfile.TemporaryDirectory(dir="/run") as directory:
        for _ in range(int(sys.argv[1])):
            milliseconds, pss = start_once(directory)
            print(f"{milliseconds:.1f} {pss}", flush=True)


if __name__ == "__main__":
    main()

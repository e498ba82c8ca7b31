"""The whole way of a container's output, with faults at random: what was written is what was delivered.

Two writers at full speed -> FIFOs -> capture, killed again and again -> rotated log
-> two followers, stopped again and again.  ARCBOX_LOGS_SOAK_SECONDS: how long.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

from tests.logs.test_capture import start
from tests.logs.writer_process import output

SECONDS = float(os.environ.get("ARCBOX_LOGS_SOAK_SECONDS", "3"))
STREAMS = ("stdout", "stderr")


def test_what_was_written_is_what_was_delivered(tmp_path: Path) -> None:
    end = time.monotonic() + SECONDS
    seed = int(os.environ.get("ARCBOX_LOGS_SOAK_SEED", "1"))
    rounds = kills = 0
    while rounds == 0 or time.monotonic() < end:
        directory = tmp_path / str(rounds)
        directory.mkdir()
        kills += one_container(directory, seed)
        rounds += 1
        seed += 1
        subprocess.run(["rm", "-rf", directory], check=True)
    assert kills >= rounds


def begin_capture(directory: Path, max_size: int) -> subprocess.Popen[bytes]:
    capture = start("capture_process", directory, max_size, stdout=subprocess.PIPE)
    assert capture.stdout is not None
    assert capture.stdout.readline() == b"capturing\n"
    capture.stdout.close()
    return capture


def one_container(directory: Path, seed: int) -> int:
    """One container's life; how many times its capture was killed."""
    rng = random.Random(seed)
    size, max_size = 16 << 20, rng.choice([1 << 18, 1 << 20, 1 << 22])
    log = directory / "logs" / "web.log"
    log.parent.mkdir(mode=0o700)
    for name in STREAMS:
        os.mkfifo(directory / name, 0o600)
    keep = [os.open(directory / name, os.O_RDWR) for name in STREAMS]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        followers = [
            start("follow_process", log, directory / f"{name}.text", name, stdout=subprocess.DEVNULL)
            for name in STREAMS
        ]
        processes += followers
        writers = [start("writer_process", directory / name, seed * 2 + n, size) for n, name in enumerate(STREAMS)]
        processes += writers
        kills = 0
        capture = begin_capture(directory, max_size)
        processes.append(capture)
        while any(writer.poll() is None for writer in writers):
            time.sleep(rng.random() * 0.05)
            if rng.random() < 0.5:
                follower = rng.choice(followers)
                follower.send_signal(signal.SIGSTOP)
                time.sleep(rng.random() * 0.05)
                follower.send_signal(signal.SIGCONT)
            else:
                capture.kill()
                capture.wait()
                kills += 1
                time.sleep(rng.random() * 0.02)
                capture = begin_capture(directory, max_size)
                processes.append(capture)
        for fd in keep:
            os.close(fd)
        keep.clear()
        capture.send_signal(signal.SIGTERM)
        assert capture.wait(60) == 0
        Path(f"{log}.ended").touch()
        for follower in followers:
            assert follower.wait(60) == 0
        for number, name in enumerate(STREAMS):
            found, written = (directory / f"{name}.text").read_bytes(), output(seed * 2 + number, size)
            assert len(found) == len(written), f"{name}, seed {seed}"
            assert found == written, f"{name}, seed {seed}"
        return kills
    finally:
        for fd in keep:
            os.close(fd)
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()

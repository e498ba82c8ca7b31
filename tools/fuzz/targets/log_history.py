"""_log_history: files of a log that come and go, readers that hold some and ask what they have missed.

    data: calls, each a byte and what it takes

The judge: before any file was removed by a rotation that a reader holds, nothing between two files is
negative, what lies between a file and itself is nothing, and an unknown file is not told as all.
"""

from __future__ import annotations

import os
from collections.abc import Hashable

from arcbox_agent._log_file import CaptureLog
from arcbox_agent._log_history import LogHistory
from arcbox_agent._pump import Source
from tools.fuzz.draw import Draw
from tools.fuzz.target import Target
from tools.fuzz.targets.pump import place, pump_of_all

CALLS = 24


def corpus() -> list[bytes]:
    return [bytes([2, 0, 0, 0, 1, 1, 0, 0, 2, 1, 3, 4, 1, 2, 0]), bytes([1, 1, 1, 0, 0, 0, 0, 5, 0, 1, 0, 0, 4, 9, 9])]


def run(data: bytes, thorough: bool) -> Hashable:
    draw = Draw(data)
    directory = place()
    pump = pump_of_all()
    history = LogHistory()
    output = CaptureLog(str(directory / "log"), 100, draw.byte() % 4 + 1, history)
    fd, end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    source = Source(output, "stdout", fd, str(directory / "spool"))
    called: list[int] = []
    inodes = [0, 1, (1 << 64) - 1]
    try:
        output.open()
        source.recover()
        pump.add(source)
        while draw.more and len(called) < CALLS:
            call = draw.byte() % 5
            called.append(call)
            if call == 0:
                os.write(end, b"line %d\n" % len(called))
                pump.drain(source)
            elif call == 1:
                history.hold(draw.byte() % 3)
            elif call == 2:
                assert history.hold_from(draw.byte() % 3, draw.choice(inodes)) in (True, False)
            elif call == 3:
                history.release(draw.byte() % 3)
            else:
                left, entered = draw.choice(inodes), draw.choice(inodes)
                exact, sizes, lines = history.lost_between(left, entered)
                assert min(*sizes, *lines) >= 0 and sizes[1] == lines[1] == 0
                assert not exact or (left > 1 and entered > 1)
                assert left != entered or sizes == (0, 0)
            inodes.append(os.stat(directory / "log").st_ino)
        for key in range(3):
            history.release(key)
        pump.remove(source)
    finally:
        source.close()
        output.close()
        os.close(end)
    return tuple(called[:4]), len(set(inodes))


TARGET = Target(run, corpus, share=1)

"""_spool: a spool of any bytes beside a log of any bytes, taken up by an agent.

    data: a length, so many bytes of a log, then the spool; its mark is made to name the log, mostly

The judge: OSError at most; the log keeps its whole lines; what is added are lines of the capture, and
no more of them than the spool has bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Hashable

from arcbox_agent._log_file import CaptureLog
from arcbox_agent._pump import Source
from tools.fuzz.draw import Draw
from tools.fuzz.target import Target
from tools.fuzz.targets.pump import _LINE, files, place, pump_of_all

#: magic, inode, offset, skip, lost bytes, lost lines, open, cut
HEADER = struct.Struct("<QQqqqqQQ")
MAGIC = 0x31504253
STAMP = b"2026-11-23T17:45:12.255151664Z"


def corpus() -> list[bytes]:
    log = STAMP + b" stdout F hello\n" + STAMP + b" stderr P x\n"
    text = b"hello\nwo"
    header = HEADER.pack(MAGIC, 1, 0, 0, 0, 0, 0, 0)
    return [
        bytes([0, 1, len(log)]) + log + header + text,
        bytes([1, 0, len(log) - 3]) + log[:-3] + HEADER.pack(MAGIC, 1, 20, 3, 5, 1, 1, 1) + text,
        bytes([0, 1, 0]) + HEADER.pack(MAGIC, 0, 0, 0, 0, 0, 0, 0) + text,
        bytes([2, 1, 3]) + b"abc" + header,
        bytes([0, 1, 0]) + header[:40],
        bytes([0, 3, 50])
        + (STAMP + b" stdout F:gap [output lost]\n")[:50]
        + HEADER.pack(MAGIC, 1, 0, 8, 9, 1, 1, 1)
        + text,
    ]


def run(data: bytes, thorough: bool) -> Hashable:
    draw = Draw(data)
    name = ("stdout", "stderr")[draw.byte() % 2]
    bits = draw.byte()
    directory = place()
    log, spool = directory / "log", directory / "spool"
    before = draw.block()
    log.write_bytes(before)
    kept = bytearray(draw.rest())
    if bits & 1 and len(kept) >= 16:
        kept[:8] = MAGIC.to_bytes(8, "little")
        kept[8:16] = log.stat().st_ino.to_bytes(8, "little")
    spool.write_bytes(kept)
    pump = pump_of_all()
    output = CaptureLog(str(log), 100 if bits & 2 else 1 << 20, 50)
    source = None
    outcome = "refused"
    try:
        output.open()
        source = Source(output, name, -1, str(spool))
        source.recover()
        assert 0 <= source.pending <= max(0, len(kept) - HEADER.size)
        pump.add(source)
        pump.flush(source)
        pump.remove(source)
        outcome = "taken"
    except OSError:
        pass
    finally:
        if source is not None:
            source.close()
        output.close()
    whole = before[: before.rfind(b"\n") + 1]
    after = b"".join(files(log))
    assert after.startswith(whole)
    added = after[len(whole) :]
    assert added == b"" or added.endswith(b"\n")
    lines = added.split(b"\n")[:-1]
    # A line each at most for what it was made of, for a gap, and for an end.
    assert len(lines) <= max(0, len(kept) - HEADER.size) + 3
    assert all(_LINE.fullmatch(line) for line in lines)
    assert min(os.listdir(directory)).startswith("log")
    return outcome, bits & 3, min(len(lines), 4), len(kept) >= HEADER.size, len(whole) < len(before)


TARGET = Target(
    run, corpus, words=[b"\n", STAMP + b" stdout F ", STAMP + b" stderr P ", b"F:gap ", b"\xff" * 8], share=1
)

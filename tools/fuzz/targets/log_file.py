"""_log_file: a log that an agent finds, whatever is in it and beside it; opened, written and rotated.

    data: the name, the sizes and the siblings, then the content

The judge: the whole lines are kept, a started one is cut away; what is written comes after them; no more
files than were asked for.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Hashable
from pathlib import Path

from arcbox_agent._log_file import CaptureLog
from arcbox_agent._pump import Source
from tools.fuzz.draw import Draw
from tools.fuzz.target import Target
from tools.fuzz.targets.pump import _LINE, place, pump_of_all

STAMP = b"2026-11-23T17:45:12.255151664Z"
NAMES = ["log", "l\udcff g", "x" * 200, "x" * 255, "x" * 256, "no/log", "a\0b"]


def corpus() -> list[bytes]:
    line = STAMP + b" stdout F hello\n"
    return [
        bytes([0, 0, 3, 5, 0]) + line * 2,
        bytes([0, 1, 2, 9, 7]) + line + b"half a li",
        bytes([0, 4, 5, 5, 2]) + b"no line",
        bytes([1, 9, 0, 0, 1]) + b"",
        bytes([3, 1, 1, 40, 3]) + line * 3,
        *(bytes([index, 1, 1, 3, 3]) for index in range(len(NAMES))),
    ]


def run(data: bytes, thorough: bool) -> Hashable:
    draw = Draw(data)
    directory = place()
    name = NAMES[draw.byte() % len(NAMES)]
    max_size, max_files, writes, beside = draw.byte() * 16, draw.byte() % 8 - 1, draw.byte() % 12, draw.byte()
    content = draw.rest()
    log = directory / name
    try:
        log.write_bytes(content)
    except (OSError, ValueError):
        content = b""
    # Rotated files, with a gap where a rotation was cut short; they are not the content's.
    for number in range(1, 4):
        if beside & 1 << number and len(name) < 200:
            try:
                Path(f"{log}.{number}").write_bytes(STAMP + b" stdout F old\n")
            except (OSError, ValueError):
                break
    try:
        output = CaptureLog(str(log), max_size, max_files)
        output.open()
    except (OSError, ValueError) as error:
        assert name not in ("log", "l\udcff g", "x" * 200)
        assert isinstance(error, ValueError) or error.errno in (errno.ENAMETOOLONG, errno.ENOENT)
        return "refused", name
    whole = content[: content.rfind(b"\n") + 1]
    assert log.read_bytes() == whole
    rotations = write(output, directory, writes)
    output.close()
    found = sorted(os.listdir(directory), key=lambda file: -int(file.rpartition(".")[2]) if "." in file else 0)
    found = [file for file in found if file.startswith(name)]
    assert f"{name}.new" not in found or name == "x" * 255
    assert rotations == 0 or len(found) <= max(max_files, 1) + 1 + 3
    if rotations == 0:
        after = log.read_bytes()
        assert after.startswith(whole)
        added = after[len(whole) :].split(b"\n")
        assert added.pop() == b"" and len(added) == writes
        assert all(_LINE.fullmatch(line) for line in added)
    elif rotations <= max(max_files, 1):
        after = b"".join((directory / file).read_bytes() for file in found)
        assert after.replace(STAMP + b" stdout F old\n", b"").count(b" stdout F line ") >= writes
    return min(rotations, 3), len(found), len(whole) < len(content), writes > 0


def write(output: CaptureLog, directory: Path, writes: int) -> int:
    """So many lines, each a batch of its own; how often the log was rotated."""
    fd, end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    pump = pump_of_all()
    before = pump.rotations
    source = Source(output, "stdout", fd, str(directory / "spool"))
    source.recover()
    try:
        pump.add(source)
        for number in range(writes):
            os.write(end, b"line %d\n" % number)
            pump.drain(source)
        assert pump.flush(source)
        pump.remove(source)
        return pump.rotations - before
    finally:
        source.close()
        os.close(end)
        os.unlink(directory / "spool")


TARGET = Target(run, corpus, words=[b"\n", STAMP + b" stdout F x\n"], share=1)

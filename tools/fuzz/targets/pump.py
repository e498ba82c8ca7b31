"""_pump: what two streams write, with kills of the agent, rotations and a full disk between the writes.

    data: the log's size and number of files, then calls, each a byte and what it takes

The judge: every byte that was written is in the log once and in order, or is counted in a gap.  A spool
for which there was no room is in memory: what of it is not in the log goes with the agent that is killed.
"""

from __future__ import annotations

import fcntl
import os
import re
import resource
import struct
import tempfile
import termios
from collections.abc import Hashable
from pathlib import Path

from arcbox_agent._log_file import CaptureLog
from arcbox_agent._pump import Pump, Source
from tools.fuzz.draw import Draw
from tools.fuzz.target import Target

STREAMS = ("stdout", "stderr")
#: More files than any input rotates.
FILES = 60
CALLS = 24
_GAP = re.compile(rb"\[output lost: (\d+) bytes, (\d+) lines: the log could not be written: [^\]]*\]")
_LINE = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) (F|P|F:end|F:gap) (.*)", re.DOTALL)
#: The longest line that a reader takes whole.
WINDOW = 262144
MARK = struct.Struct("<8xQq")
_places: list[Path] = []
_pumps: list[Pump] = []


def pump_of_all() -> Pump:
    """One for every execution: what it keeps of a source goes with the source, and its memory costs time."""
    if not _pumps:
        _pumps.append(Pump())
    return _pumps[0]


def place() -> Path:
    """An empty directory, the same one each time."""
    if not _places:
        _places.append(Path(tempfile.mkdtemp()))
    [directory] = _places
    for name in os.listdir(directory):
        os.unlink(f"{directory}/{name}")
    return directory


def files(log: Path) -> list[bytes]:
    """Oldest first; a rotation that was cut short leaves an empty place."""
    numbers = {}
    for name in os.listdir(log.parent):
        if name.startswith(log.name):
            tail = name[len(log.name) + 1 :]
            numbers[int(tail or "0")] = name
    found = []
    for number in sorted(numbers, reverse=True):
        with open(f"{log.parent}/{numbers[number]}", "rb") as file:
            found.append(file.read())
    return found


def content(log: Path) -> tuple[dict[str, bytes], dict[str, int]]:
    """Of each stream: what the log says it wrote, and how many bytes the log says are lost."""
    said = {"stdout": bytearray(), "stderr": bytearray()}
    lost = dict.fromkeys(STREAMS, 0)
    latest = b""
    for file in files(log):
        lines = file.split(b"\n")
        assert lines.pop() == b"", "a log ends with a whole line"
        for line in lines:
            assert len(line) < WINDOW, "a reader takes no such line whole"
            match = _LINE.fullmatch(line)
            assert match is not None, line
            stamp, name, tag, text = match[1], match[2].decode(), match[3], match[4]
            assert stamp > latest, "a reader goes on behind the time of the last line"
            latest = stamp
            if tag == b"F:gap":
                gap = _GAP.fullmatch(text)
                assert gap is not None, text
                lost[name] += int(gap[1])
            else:
                said[name] += text + (b"\n" if tag == b"F" else b"")
    return {name: bytes(text) for name, text in said.items()}, lost


class World:
    """Two pipes, their spools and a log; and the agent that is killed and comes again."""

    def __init__(self, directory: Path, max_size: int) -> None:
        self.log = directory / "log"
        self.max_size = max_size
        self.written = {name: bytearray() for name in STREAMS}
        #: Of each stream: where bytes went with an agent, and how many.
        self.holes: dict[str, list[tuple[int, int]]] = {name: [] for name in STREAMS}
        self.pipes: dict[str, int] = {}
        self.ends: dict[str, int] = {}
        self.sources: dict[str, Source] = {}
        for name in STREAMS:
            self.pipes[name], self.ends[name] = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.spools = {name: directory / f"{name}.spool" for name in STREAMS}
        self.pump = pump_of_all()
        self.dropped, self.rotations = self.pump.dropped, self.pump.rotations
        self.begin()

    def begin(self) -> None:
        """As an agent attaches a container's output."""
        self.output = CaptureLog(str(self.log), self.max_size, FILES)
        self.output.open()
        for name in STREAMS:
            own = fcntl.fcntl(self.pipes[name], fcntl.F_DUPFD_CLOEXEC, 3)
            source = self.sources[name] = Source(self.output, name, own, str(self.spools[name]))
            source.recover()
            self.pump.add(source)
        #: The log as this agent found it.
        self.begun = self.log.stat().st_ino, self.log.stat().st_size

    def write(self, name: str, data: bytes) -> None:
        while data:
            try:
                size = os.write(self.ends[name], data)
            except BlockingIOError:
                self.pump.drain(self.sources[name])
                continue
            self.written[name] += data[:size]
            data = data[size:]

    def stop(self) -> None:
        for name in STREAMS:
            self.pump.remove(self.sources[name])
            self.sources[name].close()
        self.output.close()

    def kill(self, cut: int) -> None:
        """Nothing is closed as it should be; of a write to the log, the last `cut` bytes were not made."""
        spools = {name: path.read_bytes() for name, path in self.spools.items()}
        in_memory = [name for name, spool in spools.items() if len(spool) < MARK.size]
        self.stop()
        size, inode = self.log.stat().st_size, self.log.stat().st_ino
        marks = [MARK.unpack_from(spool) for spool in spools.values() if len(spool) >= MARK.size]
        if all(mark[0] == inode for mark in marks):
            floor = self.begun[1] if self.begun[0] == inode else 0
            os.truncate(self.log, max(floor, size - cut, *(mark[1] for mark in marks)))
        for name, spool in spools.items():
            self.spools[name].write_bytes(spool)
        self.begin()
        said, lost = content(self.log)
        for name in in_memory:
            told = len(said[name]) + lost[name] + sum(size for _, size in self.holes[name])
            gone = len(self.written[name]) - waiting(self.pipes[name]) - told
            assert gone >= 0, "more is in the log than was taken"
            self.holes[name].append((told, gone))

    def close(self) -> None:
        self.stop()
        for fd in (*self.pipes.values(), *self.ends.values()):
            os.close(fd)


def waiting(fd: int) -> int:
    """Bytes in a pipe."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), "little")


def full_disk(world: World, room: int) -> None:
    """No file may grow beyond the log's size and a little more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = [path.stat().st_size for path in (world.log, *world.spools.values()) if path.exists()]
    # A spool's own header has its place already.
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) + room, hard))
    try:
        for source in world.sources.values():
            world.pump.drain(source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def corpus() -> list[bytes]:
    text = b"\5hello\0\3wo\n"
    return [
        b"\x20\0\0" + text + b"\4\5",
        b"\2\0\0\x09one\ntwo\nx\1\4\4err\n\4\4\7\x10\0\0\4end\n\5\4\5\5",
        b"\x05\2\0\x40" + b"line of output\n" * 4 + b"\x30\4\7\x05\5\0",
        b"\xff\3\1\3abc\xff\4\7\0\5\1",
        # Without room the spools go into memory, and from there with the agent.
        b"\x30\0\x48" + b"more for\n" * 8 + b"\6\0\0\5later\4\0\7\0\1\3end\4\1\0\4new\n\5\0",
        b"\x30\0\0\x20" + b"0123456\n" * 4 + b"\6\x10\0\3abc\7\0\4\4\5\5",
    ]


def run(data: bytes, thorough: bool) -> Hashable:
    draw = Draw(data)
    world = World(place(), (draw.byte() + 1) * 40)
    called: list[int] = []
    try:
        while draw.more and len(called) < CALLS:
            call = draw.byte() % 8
            called.append(call)
            name = STREAMS[call & 1]
            if call < 2:
                world.write(name, draw.block())
            elif call < 4:
                # Many lines, or one that is as long as a line may be.
                world.write(name, draw.block()[:60] * (draw.byte() % 32 * (300 if draw.chance(8) else 1) + 1))
            elif call == 4:
                world.pump.drain(world.sources[draw.choice(STREAMS)])
            elif call == 5:
                world.pump.flush(world.sources[draw.choice(STREAMS)])
            elif call == 6:
                full_disk(world, draw.byte() * 4)
            else:
                world.kill(draw.byte())
            for source in world.sources.values():
                assert source.pending >= 0 and source.lost >= 0 and source.lag >= source.pending
        # A failed write is tried again only after a time; a new agent tries at once.
        if world.output.error:
            world.kill(0)
        for source in world.sources.values():
            world.pump.drain(source)
            assert world.pump.flush(source), "not all of the output is in the log"
        judge(world)
    finally:
        world.close()
    lost, rotated = world.pump.dropped > world.dropped, world.pump.rotations > world.rotations
    return tuple(sorted(set(called))), len(called) // 4, lost, rotated


def judge(world: World) -> None:
    said, lost = content(world.log)
    for name in STREAMS:
        written = bytearray(world.written[name])
        for at, size in reversed(world.holes[name]):
            del written[at : at + size]
        assert len(said[name]) + lost[name] == len(written), (
            f"{name}: {len(said[name])} + {lost[name]} of {len(written)}"
        )
        if not lost[name]:
            assert said[name] == written


TARGET = Target(run, corpus, words=[b"\4\5", b"\7\0", b"\7\x08", b"\6\x10", b"\0\1\n", b"\2\2a\n\xff\x40"], share=1)

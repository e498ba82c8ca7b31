"""The ring of the vsock device, seen by two processors at the same time."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time

from tests.conftest import PATIENCE
from tests.vm.vsock_backend.memory import GuestMemory
from tests.vm.vsock_backend.virtqueue import Chain, Virtqueue

SIZE = 128
DESCRIPTORS, AVAILABLE, USED = 0, 4096, 8192
#: Words of u16: the index of the used ring, one that the guest is told to stop by, and one
#: by which it tells that it has seen enough.
INDEX, STOP, DONE = USED // 2 + 1, 6000, 6001

#: The guest: which indices does it ever see?  Until it has seen one change: on a busy machine it
#: may not run at the same time at all.
WATCHER = f"""
import mmap, sys
words = memoryview(mmap.mmap(int(sys.argv[1]), 16384)).cast("H")
print("ready", flush=True)
seen = set()
looks = 0
while not words[{STOP}] and (looks < 1_000_000 or len(seen) < 2):
    seen.add(words[{INDEX}])
    looks += 1
words[{DONE}] = 1
print(*sorted(seen))
"""


def test_the_guest_never_sees_half_an_index() -> None:
    file = os.memfd_create("guest")
    os.ftruncate(file, 16384)
    memory = GuestMemory()
    words = memoryview(mmap.mmap(file, 16384)).cast("H")
    words[INDEX] = 0x00FF
    with subprocess.Popen(
        [sys.executable, "-c", WATCHER, str(file)], stdout=subprocess.PIPE, text=True, pass_fds=[file]
    ) as watcher:
        try:
            memory.replace([(0, 16384, 0, 0, file)])  # which closes it
            assert watcher.stdout is not None and watcher.stdout.readline() == "ready\n"
            queue = Virtqueue(memory)
            queue.size = SIZE
            deadline = time.monotonic() + PATIENCE
            while not words[DONE] and time.monotonic() < deadline:
                words[INDEX] = 0x00FF
                queue.place(DESCRIPTORS, AVAILABLE, USED)
                queue.push(Chain(0, [], []), 0)
                assert words[INDEX] == 0x0100
        finally:
            words[STOP] = 1
        assert watcher.stdout.read() == "255 256\n"

"""A split virtqueue (virtio 1.2, 2.7), seen from the device.

    descriptors  size x { u64 address, u32 length, u16 flags, u16 next }
    available    u16 flags, u16 index, size x { u16 head }             written by the guest
    used         u16 flags, u16 index, size x { u32 head, u32 written }  written by us

The guest looks at an index while it is written here, and the other way round, so each is
read and written whole, by one instruction: as an item of a memoryview.  struct's "<H"
goes byte by byte, and between 0x00ff and 0x0100 the guest would see 0x0000.
"""

from __future__ import annotations

import os
import struct
import threading
from typing import NamedTuple

from tests.vm.vsock_backend.memory import GuestMemory

_DESCRIPTOR = struct.Struct("<QIHH")
_USED = struct.Struct("<II")
_EVENT = struct.pack("<Q", 1)

_MORE = 1
_FOR_THE_DEVICE_TO_WRITE = 2
_INDIRECT = 4
_NO_INTERRUPT = 1

#: Both rings begin with these two, and the available ring goes on with its heads.
_FLAGS, _INDEX, _HEADS = 0, 1, 2

#: virtio's own limit.
MAX_QUEUE_SIZE = 32768


class QueueError(Exception):
    """The guest's driver broke the rules of the ring."""


class Chain(NamedTuple):
    """One buffer of the guest, in pieces."""

    head: int
    readable: list[memoryview]
    writable: list[memoryview]


class Virtqueue:
    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self.size = 0
        self.kick = -1
        self.call = -1
        self.enabled = False
        self._next = 0
        self._used = 0
        self._descriptors: memoryview | None = None
        #: Of the available ring and of the used ring: the same memory as u16.
        self._available: memoryview | None = None
        self._used_words: memoryview | None = None
        self._used_ring: memoryview | None = None
        self._fence = threading.Lock()

    # ---- set up by QEMU

    def place(self, descriptors: int, available: int, used: int) -> None:
        self._descriptors = self._memory.user(descriptors, 16 * self.size)
        self._available = self._memory.user(available, 4 + 2 * self.size).cast("H")
        self._used_ring = self._memory.user(used, 4 + 8 * self.size)
        self._used_words = self._used_ring.cast("H")
        self._used = self._used_words[_INDEX]

    def begin_at(self, index: int) -> None:
        self._next = index

    @property
    def position(self) -> int:
        return self._next

    @property
    def running(self) -> bool:
        return self.enabled and self.kick >= 0 and self._used_ring is not None

    def stop(self) -> None:
        """Lets go of the descriptors and of the guest's memory."""
        for fd in (self.kick, self.call):
            if fd >= 0:
                os.close(fd)
        self.kick = self.call = -1
        self.enabled = False
        self._descriptors = self._available = self._used_words = self._used_ring = None

    # ---- at work

    def has_next(self) -> bool:
        if not self.running:
            return False
        assert self._available is not None
        return bool(self._available[_INDEX] != self._next)

    def pop(self) -> Chain | None:
        """The next buffer that the guest offers, taken."""
        if not self.has_next():
            return None
        chain = self.peek()
        self.take()
        return chain

    def take(self) -> None:
        self._next = (self._next + 1) & 0xFFFF

    def peek(self) -> Chain:
        """The next buffer, left where it is; `has_next` said that there is one."""
        assert self._available is not None
        head = self._available[_HEADS + self._next % self.size]
        chain = Chain(head, [], [])
        at = head
        # A chain longer than the ring would be a loop.
        for _ in range(self.size):
            if at >= self.size:
                raise QueueError(f"descriptor {at} of {self.size}")
            assert self._descriptors is not None
            address, length, flags, following = _DESCRIPTOR.unpack_from(self._descriptors, 16 * at)
            if flags & _INDIRECT:
                raise QueueError("an indirect descriptor, which was not offered")
            pieces = chain.writable if flags & _FOR_THE_DEVICE_TO_WRITE else chain.readable
            pieces.append(self._memory.guest(address, length))
            if not flags & _MORE:
                return chain
            at = following
        raise QueueError("a chain of descriptors that does not end")

    def push(self, chain: Chain, written: int) -> None:
        """Gives a buffer back, `written` bytes of it filled."""
        assert self._used_ring is not None and self._used_words is not None
        _USED.pack_into(self._used_ring, 4 + 8 * (self._used % self.size), chain.head, written)
        self._used = (self._used + 1) & 0xFFFF
        self._used_words[_INDEX] = self._used

    def notify(self) -> None:
        """Interrupts the guest, where it wants to be."""
        if self.call < 0 or self._available is None:
            return
        # The guest asks for interrupts and then looks at the used index.  The index has to be
        # there for it to see before its wish is read, or it would sleep beside its packet:
        # taking a lock is a full barrier.
        with self._fence:
            wanted = not self._available[_FLAGS] & _NO_INTERRUPT
        if wanted:
            os.write(self.call, _EVENT)

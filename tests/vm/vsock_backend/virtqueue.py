"""A split virtqueue (virtio 1.2, 2.7), seen from the device.

    descriptors  size x { u64 address, u32 length, u16 flags, u16 next }
    available    u16 flags, u16 index, size x { u16 head }             written by the guest
    used         u16 flags, u16 index, size x { u32 head, u32 written }  written by us
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from tests.vm.vsock_backend.memory import GuestMemory

_DESCRIPTOR = struct.Struct("<QIHH")
_U16 = struct.Struct("<H")
_USED = struct.Struct("<II")
_EVENT = struct.pack("<Q", 1)

_MORE = 1
_FOR_THE_DEVICE_TO_WRITE = 2
_INDIRECT = 4
_NO_INTERRUPT = 1

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
        self._available: memoryview | None = None
        self._used_ring: memoryview | None = None

    # ---- set up by QEMU

    def place(self, descriptors: int, available: int, used: int) -> None:
        self._descriptors = self._memory.user(descriptors, 16 * self.size)
        self._available = self._memory.user(available, 4 + 2 * self.size)
        self._used_ring = self._memory.user(used, 4 + 8 * self.size)
        (self._used,) = _U16.unpack_from(self._used_ring, 2)

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
        self._descriptors = self._available = self._used_ring = None

    # ---- at work

    def has_next(self) -> bool:
        if not self.running:
            return False
        assert self._available is not None
        (index,) = _U16.unpack_from(self._available, 2)
        return bool(index != self._next)

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
        (head,) = _U16.unpack_from(self._available, 4 + 2 * (self._next % self.size))
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
        ring = self._used_ring
        assert ring is not None
        _USED.pack_into(ring, 4 + 8 * (self._used % self.size), chain.head, written)
        self._used = (self._used + 1) & 0xFFFF
        _U16.pack_into(ring, 2, self._used)

    def notify(self) -> None:
        """Interrupts the guest, where it wants to be."""
        if self.call < 0 or self._available is None:
            return
        (flags,) = _U16.unpack_from(self._available, 0)
        if not flags & _NO_INTERRUPT:
            os.write(self.call, _EVENT)

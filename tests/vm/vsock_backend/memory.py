"""The guest's memory: QEMU hands over descriptors, which are mapped here."""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple


class BadAddressError(Exception):
    """The guest, or QEMU, named memory that is not there."""


class Region(NamedTuple):
    guest_address: int
    size: int
    #: Where QEMU itself sees it: the addresses of the rings come so.
    user_address: int
    view: memoryview


class GuestMemory:
    def __init__(self) -> None:
        self._regions: list[Region] = []

    def replace(self, regions: list[tuple[int, int, int, int, int]]) -> None:
        """Maps (guest address, size, user address, offset in the file, descriptor); closes each."""
        mapped = []
        for guest_address, size, user_address, offset, fd in regions:
            # Mapped from the file's start: the offset need not be a multiple of a page.
            whole = mmap.mmap(fd, offset + size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            os.close(fd)
            mapped.append(Region(guest_address, size, user_address, memoryview(whole)[offset : offset + size]))
        self._regions = mapped

    def guest(self, address: int, size: int) -> memoryview:
        for region in self._regions:
            start = address - region.guest_address
            if 0 <= start and start + size <= region.size:
                return region.view[start : start + size]
        raise BadAddressError(f"guest address {address:#x}, {size} bytes")

    def user(self, address: int, size: int) -> memoryview:
        for region in self._regions:
            start = address - region.user_address
            if 0 <= start and start + size <= region.size:
                return region.view[start : start + size]
        raise BadAddressError(f"user address {address:#x}, {size} bytes")

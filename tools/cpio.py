"""Archives that the kernel unpacks as its first root: cpio, in the `newc` format.

Several may follow one another in one file; the kernel unpacks them all, in order.
"""

from __future__ import annotations

import stat

_TRAILER = "TRAILER!!!"


class CpioArchive:
    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0
        self._directories: set[str] = set()

    def add_directory(self, path: str, mode: int = 0o755) -> None:
        path = path.strip("/")
        if path and path not in self._directories:
            self._add_parents(path)
            self._directories.add(path)
            self._add(path, stat.S_IFDIR | mode)

    def add_file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self._add_parents(path.strip("/"))
        self._add(path.strip("/"), stat.S_IFREG | mode, content)

    def add_symlink(self, path: str, target: str) -> None:
        self._add_parents(path.strip("/"))
        self._add(path.strip("/"), stat.S_IFLNK | 0o777, target.encode())

    def add_character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        self._add_parents(path.strip("/"))
        self._add(path.strip("/"), stat.S_IFCHR | mode, device=(major, minor))

    def to_bytes(self) -> bytes:
        """The whole archive, padded so that another can follow."""
        whole = b"".join([*self._parts, self._entry(_TRAILER, 0, 0)])
        return whole + bytes(-len(whole) % 512)

    def _add_parents(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if parent:
            self.add_directory(parent)

    def _add(self, path: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        self._parts.append(self._entry(path, self._inode, mode, content, device))

    @staticmethod
    def _entry(path: str, inode: int, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
        name = path.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, dev (2), rdev (2), name's size, checksum
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        begin = header + name
        return begin + bytes(-len(begin) % 4) + content + bytes(-len(content) % 4)

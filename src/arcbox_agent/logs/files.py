"""A log and its rotated siblings: `ID.log`, `ID.log.1` (the newest of them), `ID.log.2` ...

Rotation shifts the files by rename, oldest first, while a reader looks.  The reader is
safe by the descriptor that it holds: if that file is found in the same place before and
after a neighbour was opened, the neighbour is the right one.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

from arcbox_agent._logs import open_cached, open_unlinked
from arcbox_agent.errors import LogFileError

#: A shift leaves one place empty for a moment; more empty places in a row are the end of the files.
_HOLES = 3
#: A compressed file that is larger is refused: a guest may have made it so.
_MOST_DECOMPRESSED = 256 << 20
#: The same of all files of one log: a reader has them at the same time, in a directory for temporary files.
MOST_DECOMPRESSED_TOGETHER = 1 << 30
#: More rotated files than any agent keeps.
_MAX_NUMBER = 1000
#: Errors of open that mean that there is no log in a place: it is empty, or holds something else
#: (a directory, a socket, a symlink to itself).  Any other error (no descriptors, no permission,
#: a broken disk) is raised: lines that exist must not be left out silently.
_NO_LOG = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ELOOP})


class CompressedError(OSError):
    """A compressed log is damaged or too large."""


class LogFile:
    """An open file of a log; closed with the last reference to it.

    `decompressed`: its bytes, where it was compressed.
    """

    __slots__ = ("decompressed", "device", "fd", "inode")

    def __init__(self, fd: int, status: os.stat_result, decompressed: int = 0) -> None:
        self.fd = fd
        self.decompressed = decompressed
        self.device = status.st_dev
        self.inode = status.st_ino

    def __del__(self) -> None:
        os.close(self.fd)

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def is_same(self, status: os.stat_result | None) -> bool:
        return status is not None and status.st_ino == self.inode and status.st_dev == self.device


def open_file(path: str, nowait: bool = False, no_links: bool = False) -> LogFile:
    """OSError: it cannot be opened, or is not a regular file.  LogFileError (also OSError): it is a symbolic link.

    nowait: BlockingIOError where the disk would have to be waited for.
    no_links: no directory of the path may be a link either.
    """
    if nowait:
        fd = open_cached(path)
    else:
        if no_links:
            _look_before_opening(path)
        try:
            fd = open_unlinked(path, no_links)
        except OSError as error:
            raise (LogFileError(path) if error.errno == errno.ELOOP else error) from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise IsADirectoryError(errno.EISDIR, "not a regular file", path)
    return LogFile(fd, status)


def _look_before_opening(path: str) -> None:
    """Refuse what must not even be opened: opening some devices does something."""
    if sys.platform != "linux":
        # Elsewhere no open refuses links in the middle of a path.
        directory = os.path.dirname(path)
        while directory not in ("", os.path.dirname(directory)):
            if os.path.islink(directory):
                raise LogFileError(path)
            directory = os.path.dirname(directory)
    kind = stat.S_IFMT(os.lstat(path).st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFLNK):
        raise IsADirectoryError(errno.EISDIR, "not a regular file", path)


def open_if_there(path: str, nowait: bool = False, no_links: bool = False) -> LogFile | None:
    """As open_file, but None where no log lies at `path`.  OSError: one may, and cannot be opened."""
    try:
        return open_file(path, nowait, no_links)
    except LogFileError:
        return None
    except OSError as error:
        if error.errno not in _NO_LOG:
            raise
    try:
        compressed = open_file(path + ".gz", nowait, no_links)
    except LogFileError:
        return None
    except OSError as error:
        if error.errno in _NO_LOG:
            return None
        raise
    if nowait:
        raise BlockingIOError
    return _decompress(compressed, path + ".gz")


def _decompress(compressed: LogFile, path: str) -> LogFile:
    """A rotated log that somebody has compressed, as a file without a name.  CompressedError: see there."""
    # Not at the top: hardly any log needs them.
    import gzip
    import tempfile
    import zlib

    whole = 0
    with tempfile.TemporaryFile() as plain, open(os.dup(compressed.fd), "rb") as raw, gzip.open(raw) as reader:
        try:
            while block := reader.read(1 << 20):
                whole += len(block)
                if whole > _MOST_DECOMPRESSED:
                    text = f"it has more than {_MOST_DECOMPRESSED >> 20} MiB decompressed"
                    raise CompressedError(errno.EFBIG, text, path)
                plain.write(block)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise CompressedError(errno.EIO, f"it cannot be decompressed: {error}", path) from error
        plain.flush()
        return LogFile(os.dup(plain.fileno()), os.fstat(compressed.fd), whole)


def unread(path: str) -> list[str]:
    """The names of files beside a log that seem to be of it and are not read: named by date, or links."""
    directory, name = os.path.split(path)
    try:
        names = os.listdir(directory or ".")
    except OSError:
        return []
    import re  # only for logs without an agent

    dated = re.compile(re.escape(name) + r"[.-][0-9]{8}([-T._0-9]*)(\.[a-z0-9]+)?")
    numbered = re.compile(re.escape(name) + r"\.[0-9]{1,3}(\.gz)?")
    other = re.compile(re.escape(name) + r"\.[0-9]{1,3}\.(bz2|xz|zst|lz4)")
    found = []
    for each in names:
        if dated.fullmatch(each) or other.fullmatch(each):
            found.append(each)
        elif numbered.fullmatch(each) and os.path.islink(os.path.join(directory, each)):
            found.append(each)
    return sorted(found)


def place(path: str, number: int) -> str:
    return f"{path}.{number}" if number else path


def look(path: str) -> os.stat_result | None:
    """What lies there, or there compressed."""
    for each in (path, path + ".gz"):
        try:
            return os.stat(each)
        except OSError:
            continue
    return None


def find(path: str, file: LogFile) -> int | None:
    """The number of the place where the file is now; None: it is gone."""
    missing = 0
    for number in range(_MAX_NUMBER):
        status = look(place(path, number))
        if file.is_same(status):
            return number
        missing = 0 if status is not None else missing + 1
        if missing > _HOLES:
            return None
    return None


def open_neighbour(path: str, file: LogFile, step: int, nowait: bool = False, no_links: bool = False) -> LogFile | None:
    """The next older (step 1) or newer (step -1) file; None: there is none, or not at this moment.

    nowait: BlockingIOError where the disk would have to be waited for.
    OSError: it is there, and cannot be opened.
    """
    if nowait and not file.is_same(look(path)):
        raise BlockingIOError  # it was rotated: the search needs lookups that may not be cached
    for _ in range(100):
        number = find(path, file)
        if number is None or number + step < 0:
            return None
        neighbour = None
        holes = range(number + step, number + step * (1 + _HOLES), step)
        passed = []
        for hole in holes:
            if hole < 0:
                break
            neighbour = open_if_there(place(path, hole), nowait, no_links)
            if neighbour is not None:
                break
            passed.append(hole)
        if not file.is_same(look(place(path, number))):
            continue
        # A shift fills the place it has left empty, and only then the next newer one.
        if step > 0 or neighbour is None or not any(look(place(path, hole)) for hole in passed):
            return neighbour
    return None


def open_newest(path: str, nowait: bool = False, no_links: bool = False) -> LogFile:
    """The log itself, or the newest of its siblings while there is none.  OSError: there is nothing."""
    missing: OSError | None = None
    for number in range(_HOLES):
        try:
            return open_file(place(path, number), nowait, no_links)
        except OSError as error:
            # The log itself tells what is wrong; but where it is only missing, a sibling will do.
            if not isinstance(error, FileNotFoundError) and (number == 0 or error.errno not in _NO_LOG):
                raise
            missing = missing or error
    assert missing is not None
    raise missing

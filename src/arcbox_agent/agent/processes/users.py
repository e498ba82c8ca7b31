"""Users and groups, from the files of the root that a process is to run in.

The files are opened with the root as the root of every symlink, so that a link in
a container's root cannot have the guest's own /etc/passwd read instead.
"""

from __future__ import annotations

import errno
import os
import stat

from arcbox_agent._spawn import open_in_root
from arcbox_agent.errors import BadRequestError

#: More of a passwd or group file is not read: it belongs to a container that may be hostile.
MAX_FILE = 4 << 20

MAX_ID = 0xFFFFFFFE  # -1 means "leave as it is" to the kernel

#: Supplementary groups the kernel takes (NGROUPS_MAX).
MAX_GROUPS = 65536


class User:
    """Whom a process runs as, and the home directory of that user.

    `ids`: uid, gid and supplementary groups to change to.  None: the process keeps the agent's.
    """

    __slots__ = ("home", "ids", "uid")

    def __init__(self, uid: int, home: str, ids: tuple[int, int, tuple[int, ...]] | None) -> None:
        self.uid = uid
        self.home = home
        self.ids = ids

    def __repr__(self) -> str:
        return f"User(uid={self.uid}, home={self.home!r}, ids={self.ids})"


#: Users of the guest itself, each with the state of the files it was found in.
_known: dict[str, tuple[object, User]] = {}
MOST_KNOWN = 64


def look_up_in_guest(spec: str) -> User:
    """`look_up("/", spec)`, which reads the files again only where they have changed."""
    signature = tuple(map(_signature, ("/etc/passwd", "/etc/group")))
    known = _known.get(spec)
    if known is not None and known[0] == signature:
        return known[1]
    user = look_up("/", spec)
    if len(_known) >= MOST_KNOWN:
        _known.clear()
    _known[spec] = signature, user
    return user


def _signature(path: str) -> object:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def look_up(root: str, spec: str) -> User:
    """The user that `name|uid[:group|gid]` means below `root`; "" is the agent's own, root.

    An unknown name is an error, an unknown number is not.  Supplementary groups are
    set only where no group is named.  It reads files: for a thread.
    """
    name, colon, group = spec.partition(":")
    if colon and not group:
        raise BadRequestError(f"invalid user {spec!r}: no group follows the colon")
    if len(spec) > 256 or "\0" in spec or "\n" in spec:
        raise BadRequestError("invalid user: too long, or with a NUL or a line break in it")
    # An agent of an ordinary user can run processes of that user, and no others.
    name = name or str(os.geteuid())
    entry = _find(_rows(root, "etc/passwd", 6), name, 2)
    if entry is not None:
        login: str | None = entry[0]
        uid, gid, home = _number(entry[2]), _number(entry[3]), entry[5] or "/"
        if uid is None or gid is None or "\0" in home:
            raise BadRequestError(f"the passwd entry of user {name!r} is broken")
    else:
        uid, login, gid, home = _number(name), None, 0, "/"
        if uid is None:
            raise BadRequestError(f"unknown user {name!r}: no such name in the passwd file")
    if not spec and os.geteuid() != 0:
        return User(uid, home, None)  # an agent that is not root can only run what it is itself
    if not group:
        return User(uid, home, (uid, gid, _supplementary(root, login)))
    entry = _find(_rows(root, "etc/group", 3), group, 2)
    chosen = _number(entry[2] if entry is not None else group)
    if chosen is None:
        raise BadRequestError(f"unknown group {group!r}: no such name in the group file")
    return User(uid, home, (uid, chosen, ()))


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    value = int(text)
    return value if value <= MAX_ID else None


def _find(rows: list[list[str]], wanted: str, column: int) -> list[str] | None:
    """The entry of that name, else the first of that number."""
    for row in rows:
        if row[0] == wanted:
            return row
    if _number(wanted) is not None:
        for row in rows:
            if row[column] == wanted:
                return row
    return None


def _supplementary(root: str, login: str | None) -> tuple[int, ...]:
    if login is None:
        return ()
    found: dict[int, None] = {}
    for row in _rows(root, "etc/group", 4):
        gid = _number(row[2])
        if gid is not None and login in row[3].split(","):
            found[gid] = None
    return tuple(found)[:MAX_GROUPS]


def _rows(root: str, path: str, columns: int) -> list[list[str]]:
    """The entries of a colon-separated file that have enough columns; none where it is missing."""
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Without O_NONBLOCK a FIFO of that name would block this thread for ever.
        fd = open_in_root(directory, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
            return []
        raise
    finally:
        os.close(directory)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return []
        octets = file.read(MAX_FILE)
    # Not splitlines(): a name may hold any of the other characters that it takes for the end of a line.
    rows = [line.split(":") for line in octets.decode("utf-8", "surrogateescape").split("\n")]
    return [row for row in rows if len(row) >= columns]

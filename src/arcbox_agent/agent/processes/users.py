"""Users and groups, from the files of the root that a process is to run in.

The files are opened with the root as the root of every symlink, so that a link in
a container's root cannot have the guest's own /etc/passwd read instead.
"""

from __future__ import annotations

import errno
import os
import stat

from arcbox_agent._entries import find, groups_of
from arcbox_agent._spawn import open_in_root
from arcbox_agent.errors import BadRequestError

#: The most bytes of a passwd or group file: it belongs to a container that may be hostile.
MAX_FILE = 4 << 20

#: What `look_up` reads of the guest itself.
IN_GUEST = (b"/etc/passwd", b"/etc/group")

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
    entry = _entry(_read(root, "etc/passwd"), name, 6)
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
        groups = groups_of(_read(root, "etc/group"), os.fsencode(login), MAX_GROUPS) if login is not None else ()
        return User(uid, home, (uid, gid, groups))
    entry = _entry(_read(root, "etc/group"), group, 3)
    chosen = _number(entry[2] if entry is not None else group)
    if chosen is None:
        raise BadRequestError(f"unknown group {group!r}: no such name in the group file")
    return User(uid, home, (uid, chosen, ()))


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    value = int(text)
    return value if value <= MAX_ID else None


def _entry(octets: bytes, wanted: str, columns: int) -> list[str] | None:
    """The entry of that name, else the first of that number."""
    found = find(octets, os.fsencode(wanted), columns, _number(wanted) is not None)
    return [os.fsdecode(field) for field in found] if found is not None else None


def _read(root: str, path: str) -> bytes:
    """A file below `root`; nothing where it is missing, or no regular file.  BadRequestError: it is too large."""
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Without O_NONBLOCK a FIFO of that name, or a lease on the file, would block this thread.
        fd = open_in_root(directory, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
            return b""
        raise
    finally:
        os.close(directory)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return b""
        if status.st_size > MAX_FILE:
            raise _too_large(path)
        with open(fd, "rb", closefd=False) as file:
            octets = file.read(MAX_FILE + 1)
    finally:
        os.close(fd)
    if len(octets) > MAX_FILE:
        raise _too_large(path)
    return octets


def _too_large(path: str) -> BadRequestError:
    return BadRequestError(f"the /{path} of the container is larger than {MAX_FILE} bytes: shorten it")

"""A container's mounts: checked when it is created, turned into steps of the spawn when it starts.

The mounting itself happens in the child, in a mount namespace of its own, and is in
spawn_child.h: every target is resolved with the container's root as the root of all
symlinks, so that no link in it can have something mounted outside.
"""

from __future__ import annotations

import os
import posixpath

from arcbox_agent.agent.containers import ids
from arcbox_agent.agent.containers.record import MAX_MOUNTS, MOUNT_TYPES
from arcbox_agent.errors import BadRequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from arcbox_agent.wire import Mount

#: A tmpfs is like /tmp: everybody may write, nobody may remove what is another's.
TMPFS_OPTIONS = "mode=1777"

#: (type, source, target, readonly), as it is kept on disk.
Entry = tuple[str, str, str, bool]


def check(mounts: Sequence[Mount], rootfs: str) -> tuple[list[Entry], list[str]]:
    """The mounts of a request, outermost first, and warnings.  It looks at files: for a thread."""
    if len(mounts) > MAX_MOUNTS:
        raise BadRequestError(f"{len(mounts)} mounts are more than the {MAX_MOUNTS} allowed")
    entries: list[Entry] = []
    warnings: list[str] = []
    for number, mount in enumerate(mounts):
        where = f"mount {number + 1}"
        kind = mount.type or "bind"
        if kind not in MOUNT_TYPES:
            raise BadRequestError(f"{where}: unknown type {kind!r}: it must be bind, volume or tmpfs")
        target = _target(mount.target, where)
        source = mount.source
        if "\0" in source:
            raise BadRequestError(f"{where}: the source has a NUL in it")
        if kind == "bind":
            if not source.startswith("/"):
                raise BadRequestError(f"{where}: the source of a bind must be an absolute path, not {source!r}")
            if not os.path.exists(source):
                raise BadRequestError(f"{where}: the source {source} does not exist")
        elif kind == "volume":
            ids.check(source, "volume name")
        elif source not in ("", "tmpfs"):
            warnings.append(f"{where}: a tmpfs has no source: {source!r} is ignored")
            source = ""
        if any(target == other[2] for other in entries):
            raise BadRequestError(f"{where}: a second mount at {target}")
        if not rootfs and not os.path.exists(target):
            # Made in the guest's own file system it would stay there for ever.
            raise BadRequestError(f"{where}: the target {target} does not exist in the guest")
        entries.append((kind, source, target, mount.readonly))
    # What is mounted at /a must not hide what is mounted at /a/b.
    entries.sort(key=lambda entry: entry[2].count("/"))
    return entries, warnings


def _target(target: str, where: str) -> str:
    if not target.startswith("/"):
        raise BadRequestError(f"{where}: the target must be an absolute path, not {target!r}")
    if "\0" in target or ".." in target.split("/") or len(target) > 4000:
        raise BadRequestError(f"{where}: the target {target[:200]!r} has a NUL or `..` in it, or is too long")
    target = "/" + posixpath.normpath(target).lstrip("/")
    if target == "/":
        raise BadRequestError(f"{where}: nothing can be mounted over the root")
    return target


def steps(entries: Sequence[Entry], volumes_dir: str, rootfs: str) -> list[tuple[str, str, str, str, bool, bool]]:
    """What the child is to do.  Makes the volumes that are missing: for a thread."""
    found = []
    for kind, source, target, readonly in entries:
        if kind == "volume":
            # Only the way to it is closed to others (the state directory); inside a
            # container it must be open to the container's user.
            source = os.path.join(volumes_dir, source)
            try:
                os.mkdir(source)
                os.chmod(source, 0o755)  # whatever the agent's own umask is
            except FileExistsError:
                pass  # with the mode that its users gave it
        found.append(
            (
                "tmpfs" if kind == "tmpfs" else "bind",
                source,
                target,
                TMPFS_OPTIONS if kind == "tmpfs" else "",
                readonly,
                bool(rootfs),
            )
        )
    return found

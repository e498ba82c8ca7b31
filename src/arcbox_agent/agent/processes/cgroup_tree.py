"""Goes through the cgroups below one, however deep a container has nested them.

By descriptor, one step down or up at a time: no path gets too long, nothing recurses, and one
descriptor is open.  A container may make cgroups as fast as they are found, so a walk has a time-out.
"""

from __future__ import annotations

import errno
import os
import time

from arcbox_agent.agent.config import budget

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def visit(path: str, look: Callable[[int], None]) -> None:
    """Call `look` with a descriptor of each: of `path`, and of all below it.  For a thread.

    OSError of `look`: that one is passed over.  OSError: no descriptor is left to begin with.
    """
    _walk(path, look, remove=False)


def remove_below(path: str) -> None:
    """Remove all below `path` that can be removed.  For a thread."""
    _walk(path, None, remove=True)


def _walk(path: str, look: Callable[[int], None] | None, *, remove: bool) -> None:
    give_up = time.monotonic() + budget.CGROUPS_LOOKED_THROUGH
    try:
        here = os.open(path, _DIRECTORY)
    except OSError as error:
        if not remove and error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return  # removed meanwhile
    names: list[str] = []
    try:
        pending = [_enter(here, look)]
        while time.monotonic() < give_up:
            if pending[-1]:
                name = pending[-1].pop()
                try:
                    below = os.open(name, _DIRECTORY, dir_fd=here)
                except FileNotFoundError:
                    continue
                os.close(here)
                here = below
                names.append(name)
                pending.append(_enter(here, look))
            elif names:
                above = os.open("..", _DIRECTORY, dir_fd=here)
                os.close(here)
                here = above
                pending.pop()
                name = names.pop()
                if remove:
                    try:
                        os.rmdir(name, dir_fd=here)
                    except OSError:
                        continue  # something runs in it, or was made in it meanwhile
            else:
                return
    except OSError:
        return  # no descriptor is left, or the way up was removed
    finally:
        os.close(here)


def _enter(fd: int, look: Callable[[int], None] | None) -> list[str]:
    """Look at a cgroup; the names of those right below it."""
    if look is not None:
        try:
            look(fd)
        except OSError:
            pass
    try:
        with os.scandir(fd) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []

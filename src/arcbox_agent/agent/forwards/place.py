"""Where an address is: in the guest, or among the files of a container.

The process containers share the guest's network.  A path of a container is looked up below its
root, with every `..` and symbolic link kept inside, and opened without following it further
(O_PATH); the socket is then reached by way of /proc/self/fd, where nobody can exchange it.
"""

from __future__ import annotations

import errno
import os
import stat

from arcbox_agent._spawn import open_in_root
from arcbox_agent.agent.processes.stat_line import start_time_of
from arcbox_agent.errors import BadRequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.containers.model import Container
    from arcbox_agent.agent.containers.service import Containers

#: The kernel's bound on a path (PATH_MAX), with its NUL.
MAX_PATH = 4096


class Place:
    """The guest (`key` None), or the running container of that id.

    What opens files is for the `spawn` lane: the file system of a root may hang.
    """

    __slots__ = ("_container", "key")

    def __init__(self, container: Container | None = None) -> None:
        self._container = container
        self.key = None if container is None else container.id

    def open(self, path: str, flags: int) -> int:
        """Open a file of this place; its descriptor.  OSError."""
        root = self._open_root()
        if root is None:
            return os.open(path, flags | os.O_CLOEXEC)
        try:
            return open_in_root(root, path, flags | os.O_CLOEXEC)
        finally:
            os.close(root)

    def open_socket_file(self, path: str) -> int:
        """Open, with O_PATH, a file that is a socket.  OSError: ENOTSOCK where it is none."""
        fd = self.open(path, os.O_PATH)
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
        return fd

    def open_directory_of(self, path: str) -> tuple[int, str]:
        """Open the directory in which `path` is, or will be; its descriptor, and the last name of the path."""
        directory, name = os.path.split(path)
        if name in ("", ".", ".."):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        return self.open(directory, os.O_PATH | os.O_DIRECTORY), name

    def _open_root(self) -> int | None:
        """None: the guest's own root is its root."""
        container = self._container
        if container is None:
            return None
        record, run = container.record, container.run
        if not (record.rootfs or record.mounts):
            return None
        if run is None or run.ended:
            raise BadRequestError(f"container is not running: {record.id}")
        # With the mounts that the container has.
        root = os.open(f"/proc/{run.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if start_time_of(run.pid) != run.start_time:
            # The pid is that of another process by now.
            os.close(root)
            raise BadRequestError(f"container is not running: {record.id}")
        return root


def place_of(containers: Containers, ref: str) -> Place:
    """The place that a request names: of a container that runs, or the guest."""
    if not ref:
        return Place()
    container = containers.resolve(ref)
    containers.host_of(container)  # refuses one that does not run
    return Place(container)


def check_path(path: str) -> None:
    """BadRequestError: `path` cannot be that of a socket or a file."""
    if not path.startswith("/"):
        raise BadRequestError(f"the path {path!r} does not begin with /")
    if "\0" in path or len(path.encode("utf-8", "surrogateescape")) >= MAX_PATH:
        raise BadRequestError(f"a path has no NUL character, and less than {MAX_PATH} bytes")

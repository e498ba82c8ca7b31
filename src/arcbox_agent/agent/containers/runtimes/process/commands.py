"""A command in a container that is a process: its root by chroot, its mounts by setns."""

from __future__ import annotations

import errno
import fcntl
import os

from arcbox_agent.agent.containers.runtimes.protocol import frozen
from arcbox_agent.agent.processes import users
from arcbox_agent.agent.processes.spec import SpawnSpec, complete
from arcbox_agent.agent.processes.stat_line import start_time_of
from arcbox_agent.errors import BadRequestError, ConflictError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.containers.record import Record
    from arcbox_agent.agent.processes.scopes import Scope
    from arcbox_agent.wire import ExecRequest

_NS_GET_USERNS = 0xB701  # linux/nsfs.h


def not_running(id: str) -> BadRequestError:
    return BadRequestError(f"container is not running: {id}")


def prepare(
    record: Record, pid: int, start_time: int, above: Scope, request: ExecRequest, name: str, terminal: bool
) -> tuple[SpawnSpec, Scope]:
    """See CommandHost.command.  `pid`, `start_time`: the container's main process; `above`: its scope."""
    # In the rootfs on disk, not in the container's mount namespace: its processes could mount
    # an /etc/passwd of their own there, and choose as whom a command runs.
    user = users.look_up(record.rootfs or "/", request.user or record.user)
    programs, env = complete(request.cmd[0], {**record.env, **request.env}, user.home, terminal=terminal)
    scope = above.child(name)
    spec = SpawnSpec(
        request.cmd,
        programs=programs,
        env=env,
        cwd=request.working_dir or record.working_dir or "/",
        root=record.rootfs or None,
        ids=user.ids,
        terminal=terminal,
    )
    try:
        if record.mounts:
            spec.join_fd = _open_mount_namespace(pid, start_time)
        # Without parents: nobody would remove the scope of a container that has ended.
        scope.create(parents=False)
        if scope.frozen():
            raise frozen(f"container {record.id}")
        spec.cgroup_fd = scope.open()
    except BaseException as error:
        spec.close()
        scope.remove()
        if isinstance(error, (FileNotFoundError, ProcessLookupError)):
            raise not_running(record.id) from None
        raise
    return spec, scope


def _open_mount_namespace(pid: int, start_time: int) -> int:
    """The mount namespace of a container, for a command to enter.

    Not one that belongs to a user namespace: any user can make one, with files of its own
    choice in the place of those that a command runs, perhaps as root.
    """
    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if start_time_of(pid) != start_time:
            # The pid is that of another process by now.
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        owner = fcntl.ioctl(fd, _NS_GET_USERNS)
        try:
            ours = os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user"))
        finally:
            os.close(owner)
        if not ours:
            raise ConflictError("the container has gone into a user namespace, where the agent runs nothing")
    except BaseException:
        os.close(fd)
        raise
    return fd

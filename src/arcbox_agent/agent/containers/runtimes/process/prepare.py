"""What a start needs before the spawn: files, descriptors, and the scope."""

from __future__ import annotations

import os

from arcbox_agent.agent.containers.output.stdio import ContainerStdio
from arcbox_agent.agent.containers.runtimes.process import mounts, pid_file
from arcbox_agent.agent.containers.runtimes.protocol import frozen
from arcbox_agent.agent.processes import users
from arcbox_agent.agent.processes.spec import SpawnSpec, complete

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.containers.record import Record
    from arcbox_agent.agent.containers.store import Store
    from arcbox_agent.agent.processes.scopes import Scope, Scopes


class Preparation:
    """What a start has opened, and must close again if it fails.

    `spec` is the spawn's as soon as that has begun; the rest is closed in any case.
    """

    __slots__ = ("scope", "spec", "stdio")

    def __init__(self, scope: Scope) -> None:
        #: The container's; it is not made yet.
        self.scope = scope
        self.stdio = ContainerStdio()
        self.spec: SpawnSpec | None = None

    def prepare(self, record: Record, store: Store, scopes: Scopes) -> SpawnSpec:
        """Everything a start needs of files.  In a thread; `close` closes what was opened, whatever fails."""
        path = store.run_path(record.id)
        os.makedirs(path, mode=0o700, exist_ok=True)
        user = users.look_up(record.rootfs or "/", record.user)
        programs, env = complete(record.command[0], record.env, user.home, terminal=record.tty)
        steps = mounts.steps(
            [(kind, source, target, readonly) for kind, source, target, readonly in record.mounts],
            store.volumes_dir,
            record.rootfs,
        )
        spec = self.spec = SpawnSpec(
            record.command,
            programs=programs,
            env=env,
            cwd=record.working_dir or "/",
            root=record.rootfs or None,
            mounts=steps,
            new_namespace=bool(steps),
            ids=user.ids,
            terminal=record.tty,
        )
        spec.pid_fd = pid_file.create(os.path.join(path, pid_file.NAME))
        self.stdio.open(path, user.uid, terminal=record.tty, stdin=record.open_stdin)
        spec.stdio = self.stdio.for_child()
        self.scope = scopes.new_container(record.id)
        self.scope.create()
        if self.scope.frozen():
            raise frozen("its cgroup")
        spec.cgroup_fd = self.scope.open()
        return spec

    def close(self, spawned: bool) -> None:
        """`spawned`: the descriptors of `spec` are the spawn's."""
        self.stdio.close()
        if self.spec is not None and not spawned:
            self.spec.close()

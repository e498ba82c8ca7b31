"""The guest itself as a run: it is always there, and commands in it need no container."""

from __future__ import annotations

from arcbox_agent.agent.containers.runtimes.protocol import frozen
from arcbox_agent.agent.processes import users
from arcbox_agent.agent.processes.spec import SpawnSpec, complete

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.processes.lanes import Lanes
    from arcbox_agent.agent.processes.scopes import Scope, Scopes
    from arcbox_agent.wire import ExecRequest

#: Empty scopes that are kept: making and removing a cgroup costs a tenth of a spawn.
SPARE_SCOPES = 8


class GuestRun:
    """See the module."""

    __slots__ = ("_lanes", "_scopes", "_spare")

    ended = False
    key: str | None = None

    def __init__(self, scopes: Scopes, lanes: Lanes) -> None:
        self._scopes = scopes
        self._lanes = lanes
        #: Scopes of commands that are over, with nothing in them.
        self._spare: list[Scope] = []

    def command(self, request: ExecRequest, name: str, terminal: bool) -> tuple[SpawnSpec, Scope]:
        user = users.look_up_in_guest(request.user)
        try:
            # The name of a scope tells the next agent whether its command was detached.
            scope = None if request.detach else self._spare.pop()
        except IndexError:
            scope = None
        if scope is None:
            scope = self._scopes.commands().child(name)
            scope.create()
        try:
            # That of a detached command is not used again.
            cgroup_fd = -1 if request.detach else scope.keep_open()
            if scope.frozen():
                raise frozen("the cgroup of the guest's commands")
            if request.detach:
                cgroup_fd = scope.open()
        except BaseException:
            scope.remove()
            raise
        programs, env = complete(request.cmd[0], request.env, user.home, terminal=terminal)
        spec = SpawnSpec(
            request.cmd,
            programs=programs,
            env=env,
            cwd=request.working_dir or "/",
            ids=user.ids,
            terminal=terminal,
            cgroup_fd=cgroup_fd,
        )
        if not request.detach:
            spec.lent.add(cgroup_fd)
        return spec, scope

    def take_back(self, scope: Scope) -> bool:
        # A command may have left something behind, which would end with the next one.
        if not scope.reusable or len(self._spare) >= SPARE_SCOPES or scope.alive():
            return False
        self._spare.append(scope)
        return True

    async def close(self) -> None:
        for scope in self._spare:
            await self._lanes.removal.submit(None, scope.dissolve)
        self._spare.clear()

"""The guest itself as a run: it is always there, and commands in it need no container."""

from __future__ import annotations

from arcbox_agent.agent.containers.runtimes.protocol import frozen
from arcbox_agent.agent.processes import environment, users
from arcbox_agent.agent.processes.spec import SpawnSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.containers.runtimes.protocol import CommandSpec
    from arcbox_agent.agent.processes.lanes import Lanes
    from arcbox_agent.agent.processes.scopes import Scope, Scopes

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

    def command(self, spec: CommandSpec) -> tuple[SpawnSpec, Scope]:
        user = users.look_up_in_guest(spec.user)
        programs, env = environment.complete(spec.argv[0], spec.env, user.home, terminal=spec.terminal)
        try:
            # The name of a scope tells the next agent whether its command was detached.
            scope = None if spec.detached else self._spare.pop()
        except IndexError:
            scope = None
        if scope is None:
            scope = spec.scope_in(self._scopes.commands())
            scope.create()
        try:
            if scope.frozen():
                raise frozen("the cgroup of the guest's commands")
            cgroup_fd = scope.open()
        except BaseException:
            scope.remove()
            raise
        launched = SpawnSpec(
            spec.argv,
            programs=programs,
            env=env,
            cwd=spec.cwd or "/",
            ids=user.ids,
            terminal=spec.terminal,
            cgroup_fd=cgroup_fd,
        )
        return launched, scope

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

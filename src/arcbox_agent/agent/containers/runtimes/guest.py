"""The guest itself as a run: it is always there, and commands in it need no container."""

from __future__ import annotations

from functools import partial

from arcbox_agent.agent.containers.runtimes.protocol import Launch
from arcbox_agent.agent.processes import environment, users
from arcbox_agent.agent.processes.spec import SpawnSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_agent.agent.containers.runtimes.protocol import CommandSpec
    from arcbox_agent.agent.processes.lanes import Lanes
    from arcbox_agent.agent.processes.scopes import Scope, Scopes

#: Empty scopes that are kept: making and removing a cgroup costs a tenth of a spawn.
SPARE_SCOPES = 8


class GuestRun:
    """See the module."""

    __slots__ = ("_lanes", "_scopes", "_spare")

    ended = False

    def __init__(self, scopes: Scopes, lanes: Lanes) -> None:
        self._scopes = scopes
        self._lanes = lanes
        #: Scopes of commands that are over, with nothing in them.
        self._spare: list[Scope] = []

    def command(self, spec: CommandSpec) -> Callable[[], Launch]:
        return partial(self._launch, spec)

    def _launch(self, spec: CommandSpec) -> Launch:
        """In a thread."""
        user = users.look_up_in_guest(spec.user)
        env = environment.environment(spec.env, user.home)
        launched = SpawnSpec(
            spec.argv,
            programs=environment.programs(spec.argv[0], env),
            env=environment.strings(env),
            cwd=spec.cwd or "/",
            ids=users.ids_of(user, spec.user),
            terminal=spec.terminal,
        )
        scope = self._take_spare(spec)
        if scope is None:
            scope = spec.scope_in(self._scopes.commands())
            scope.create()
        try:
            launched.cgroup_fd = scope.open()
        except BaseException:
            scope.remove()
            raise
        return Launch(launched, scope)

    def _take_spare(self, spec: CommandSpec) -> Scope | None:
        # The name of a scope tells the next agent whether its command was detached.
        if spec.detached:
            return None
        try:
            return self._spare.pop()
        except IndexError:
            return None

    def take_back(self, scope: Scope) -> bool:
        # A command may have left something behind, which would end with the next one.
        if not scope.reusable or len(self._spare) >= SPARE_SCOPES or scope.alive():
            return False
        self._spare.append(scope)
        return True

    async def close(self) -> None:
        for scope in self._spare:
            await self._lanes.signals(scope.dissolve)
        self._spare.clear()

"""The guest itself as a run: it is always there, and commands in it need no container."""

from __future__ import annotations

from arcbox_agent._entries import state_of
from arcbox_agent.agent.containers.runtimes.protocol import frozen
from arcbox_agent.agent.processes.spec import SpawnSpec, complete
from arcbox_agent.agent.processes.users import IN_GUEST, look_up

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.processes.lanes import Lanes
    from arcbox_agent.agent.processes.scopes import Scope, Scopes
    from arcbox_agent.agent.processes.users import User
    from arcbox_agent.wire import ExecRequest

#: Empty scopes that are kept: making and removing a cgroup costs a tenth of a spawn.
SPARE_SCOPES = 8

#: Users that are kept.
MOST_USERS = 64


class GuestRun:
    """See the module."""

    __slots__ = ("_lanes", "_scopes", "_spare", "_users")

    ended = False
    key: str | None = None

    def __init__(self, scopes: Scopes, lanes: Lanes) -> None:
        self._scopes = scopes
        self._lanes = lanes
        #: Scopes of commands that are over, with nothing in them.
        self._spare: list[Scope] = []
        #: Users that were looked up, each with the state of the files it was found in.
        self._users: dict[str, tuple[bytes, User]] = {}

    def command(self, request: ExecRequest, name: str, terminal: bool) -> tuple[SpawnSpec, Scope]:
        user = self._user(request.user)
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

    def _user(self, spec: str) -> User:
        """`look_up("/", spec)`, which reads the files again only where they have changed."""
        state = state_of(*IN_GUEST)
        known = self._users.get(spec)
        if known is not None and known[0] == state:
            return known[1]
        user = look_up("/", spec)
        if len(self._users) >= MOST_USERS:
            self._users.clear()
        self._users[spec] = state, user
        return user

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

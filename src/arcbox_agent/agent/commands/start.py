"""A command that is being started.

The start goes on where its client goes away meanwhile: what it has made then needs an end.
"""

from __future__ import annotations

from arcbox_agent._spawn import SpawnError
from arcbox_agent.agent.config import budget
from arcbox_agent.agent.containers.runtimes.protocol import interpreter_of, reason
from arcbox_agent.agent.processes.spawning import HungError
from arcbox_agent.errors import AgentFailedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from typing import NoReturn

    from arcbox_agent.agent.commands.prepare import Preparation
    from arcbox_agent.agent.processes.children import Process, Processes
    from arcbox_agent.agent.processes.spawning import Late, SpawnUnderWay


class Start:
    """`late`: see Processes.begin.  RequestError: it cannot be begun."""

    __slots__ = ("_processes", "_spawning", "began", "preparation")

    def __init__(self, processes: Processes, preparation: Preparation, late: Late) -> None:
        self._processes = processes
        self.preparation = preparation
        #: Loop time.
        self.began = processes.loop.time()
        request, key = preparation.request, preparation.host.key
        limit = budget.SPAWNED
        if request.timeout_ms:
            # A time that is over before its command has started ends the command, and is told as such.  Only a start
            # that hangs is given up.
            limit = min(max(request.timeout_ms / 1000, budget.HANGING_START), limit)
        try:
            self._spawning: SpawnUnderWay = processes.begin(preparation.run, key=key, limit=limit, late=late)
        except (SpawnError, OSError) as error:
            self._fail(error)

    @property
    def future(self) -> asyncio.Future[tuple[int, int, int]]:
        """Done when it is over.  Cancelled, what it makes is killed."""
        return self._spawning.future

    async def wait(self) -> None:
        """Until it is over.  Cancelled, it goes on."""
        waiter: asyncio.Future[None] = self._processes.loop.create_future()

        def wake(_: object) -> None:
            if not waiter.done():
                waiter.set_result(None)

        self.future.add_done_callback(wake)
        await waiter

    def finish(self) -> Process:
        """The process, once it is over.  RequestError: there is none, and why."""
        try:
            return self._processes.finish(self._spawning)
        except (HungError, SpawnError, OSError) as error:
            self._fail(error)

    def _fail(self, error: HungError | SpawnError | OSError) -> NoReturn:
        program = self.preparation.request.cmd[0]
        if isinstance(error, HungError):
            raise AgentFailedError(f"exec failed: {error}") from error
        if isinstance(error, OSError) or error.step == "exec":
            # As 0.0.1-alpha.1 says it, and then which program.
            words = f"{error.strerror} (os error {error.errno})"
            if isinstance(error, SpawnError):
                words += f": {program}{interpreter_of(error)}"
        else:
            words = reason(error, program, self.preparation.cwd, ())
        raise AgentFailedError(f"exec failed: {words}") from error

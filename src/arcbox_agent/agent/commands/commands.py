"""Commands run for a client: in the guest, or in a container.

A command ends with its client, unless it was detached, and with all that it started: its
scope is killed.  One that ends by itself leaves behind what it put into the background.
"""

from __future__ import annotations

import asyncio
import signal

from arcbox_agent._spawn import SpawnError
from arcbox_agent.agent.commands.command import Command
from arcbox_agent.agent.commands.prepare import Preparation
from arcbox_agent.agent.config import budget
from arcbox_agent.agent.containers.runtimes.protocol import interpreter_of, reason
from arcbox_agent.agent.containers.tasks import take_failure
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.processes.scopes import end
from arcbox_agent.agent.processes.spawning import HungError
from arcbox_agent.errors import AgentFailedError, BusyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable

    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.containers.runtimes.protocol import CommandHost
    from arcbox_agent.agent.metrics import Metrics
    from arcbox_agent.agent.processes.children import Processes
    from arcbox_agent.agent.processes.lanes import Lanes
    from arcbox_agent.agent.processes.scopes import Scope
    from arcbox_agent.wire import ExecRequest

log = Logger("exec")

#: How many seconds apart, and how often, the agent tries to kill what a command started.
KILL_PAUSE = 0.1
KILL_ATTEMPTS = round(budget.COMMAND_KILLED / KILL_PAUSE)


class Commands:
    """All commands that run for clients."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        processes: Processes,
        lanes: Lanes,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._processes = processes
        self._lanes = lanes
        self._number = 0
        #: Slots taken: by what runs, and by what is being started.
        self._active = 0
        #: Starts under way, which go on when their clients go away.
        self._starting: set[asyncio.Task[Command]] = set()
        self._endings: set[asyncio.Task[None]] = set()
        #: Each waits for the end of a detached command.
        self._detached: set[asyncio.Task[None]] = set()
        metrics.gauge("commands_running", lambda: self._active, "Commands that run for clients.")

    # --------------------------------------------------------------- start

    def start(self, request: ExecRequest, host: CommandHost, *, stderr: bool) -> asyncio.Task[Command]:
        """Start what `request` asks for, which has been checked, in `host`; `stderr` False: nobody reads it.

        The start goes on when the client goes away: who awaits the task shields it, and then leaves it (`leave`)
        in any case.  It fails with a RequestError where the command cannot be started.  BusyError: it is one too many.
        """
        if self._active >= self._settings.max_execs:
            self._metrics.add("bound_execs")
            raise BusyError(f"max_execs = {self._settings.max_execs} commands run already: try again later")
        self._active += 1
        task = asyncio.get_running_loop().create_task(self._start(request, host, stderr))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        return task

    async def _start(self, request: ExecRequest, host: CommandHost, stderr: bool) -> Command:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            command = await self._spawn(request, host, stderr)
        except BaseException:
            self._active -= 1
            raise
        if host.ended:
            # The container ended meanwhile, perhaps before the command was in its scope.
            self._end_later(self._kill(command))
        if request.timeout_ms:
            # From the request on: the start counts.
            timer = loop.call_at(began + request.timeout_ms / 1000, self._time_out, command, request.cmd[0])
            command.process.ended.add_done_callback(lambda _: timer.cancel())
        if request.detach:
            # It goes on without its client, and without the agent.
            command.left = True
            self._end_later(self._finish(command, kill=False), self._detached)
        return command

    async def _spawn(self, request: ExecRequest, host: CommandHost, stderr: bool) -> Command:
        self._number += 1
        preparation = Preparation(request, host, self._number, stderr, self._processes.null)
        limit = budget.SPAWNED
        if request.timeout_ms:
            # A time that is over before its command has started ends the command, and is told as such.  Only a start
            # that hangs is given up.
            limit = min(max(request.timeout_ms / 1000, budget.HANGING_START), limit)
        try:
            process = await self._processes.spawn_by(
                preparation.run,
                key=host.key,
                limit=limit,
                late=lambda: self._abandoned(host.key, preparation),
            )
        except HungError as error:
            raise AgentFailedError(f"exec failed: {error}") from error
        except SpawnError as error:
            if error.step == "exec":
                # As 0.0.1-alpha.1 says it, and then which program.
                words = f"{error.strerror} (os error {error.errno}): {request.cmd[0]}{interpreter_of(error)}"
            else:
                words = reason(error, request.cmd[0], preparation.cwd, ())
            raise AgentFailedError(f"exec failed: {words}") from error
        except OSError as error:
            # As 0.0.1-alpha.1 says it.
            raise AgentFailedError(f"exec failed: {error.strerror} (os error {error.errno})") from error
        self._metrics.add("commands_started")
        scope = preparation.scope
        assert scope is not None
        return Command(
            process,
            host,
            scope,
            preparation.readers,
            preparation.typed,
            request.tty,
            self._lanes,
            self._processes.ready,
            self._settings.late_output,
        )

    def _abandoned(self, key: str | None, preparation: Preparation) -> None:
        """A start that was given up is over after all: nothing of it stays."""
        preparation.close()
        if preparation.scope is not None:
            self._end_later(self._end_scope(key, preparation.scope))

    async def _end_scope(self, key: str | None, scope: Scope) -> None:
        await self._lanes.removal.submit(key, end, scope)

    # ----------------------------------------------------------------- end

    def _time_out(self, command: Command, program: str) -> None:
        command.timed_out = True
        self._metrics.add("commands_timed_out")
        log.info("command timed out", program=program, pid=command.process.pid)
        self._end_later(self._kill(command))

    def leave(self, started: asyncio.Task[Command]) -> None:
        """The client of a command needs nothing of it any more: end it, and all that it started, once it is started.

        A command that has ended by itself leaves behind what it put into the background.
        """
        if not started.done():
            started.add_done_callback(take_failure)
            started.add_done_callback(self.leave)
            return
        if started.cancelled() or started.exception() is not None:
            return
        command = started.result()
        if command.left:
            return
        command.left = True
        command.close_outputs()
        if command.process.status is None or command.timed_out:
            self._end_later(self._finish(command, kill=True))
            return
        self._active -= 1
        # Later: the client gets its reply first.
        asyncio.get_running_loop().call_soon(self._give_back_scope, command)

    def _give_back_scope(self, command: Command) -> None:
        if not command.host.take_back(command.scope):
            self._end_later(self._dissolve_scope(command))

    async def _finish(self, command: Command, kill: bool) -> None:
        try:
            if kill:
                await self._kill(command)
            await command.process.wait()
        finally:
            self._active -= 1
        await self._dissolve_scope(command)

    async def _kill(self, command: Command) -> None:
        command.process.send_signal(signal.SIGKILL)
        for attempt in range(KILL_ATTEMPTS):
            try:
                await self._lanes.signals.submit(command.host.key, command.scope.kill)
                return
            except OSError as error:
                # Most likely no descriptor is left: there will be one again.
                if attempt == KILL_ATTEMPTS - 1:
                    log.error("what a command started cannot be killed", pid=command.process.pid, error=error)
            await asyncio.sleep(KILL_PAUSE)

    async def _dissolve_scope(self, command: Command) -> None:
        await self._lanes.removal.submit(command.host.key, command.scope.dissolve)

    def _end_later(self, work: Awaitable[None], among: set[asyncio.Task[None]] | None = None) -> None:
        async def run() -> None:
            await work

        tasks = self._endings if among is None else among
        task = asyncio.get_running_loop().create_task(run())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(take_failure)

    async def close(self) -> None:
        """Every client is gone by now: wait, not for long, for the end of what they started."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + budget.COMMANDS_ENDED
        # In this order: a start that was abandoned becomes an ending.
        for tasks in (self._starting, self._endings):
            if tasks:
                await asyncio.wait(tasks, timeout=max(0.0, deadline - loop.time()))
        left = [*self._starting, *self._endings, *self._detached]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

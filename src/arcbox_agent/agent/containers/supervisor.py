"""The life of one container: create, start, watch, remove, recover.

The table in lifecycle.py says what may happen; here it is carried out.  Whatever changes a
container runs as a task of the agent, not of the client that asked.
"""

from __future__ import annotations

import asyncio
import time

from arcbox_agent.agent.config import budget
from arcbox_agent.agent.containers.lifecycle import State, Trigger
from arcbox_agent.agent.containers.persist import RecordWriter
from arcbox_agent.agent.containers.record import STARTING
from arcbox_agent.agent.containers.runtimes.protocol import NotStarted, StartError, system_reason
from arcbox_agent.agent.containers.stopping import Stopper
from arcbox_agent.agent.containers.tasks import Tasks
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.processes.status import LOST
from arcbox_agent.errors import AgentFailedError, ConflictError, RequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from arcbox_agent.agent.containers.model import Container
    from arcbox_agent.agent.containers.record import Record
    from arcbox_agent.agent.containers.runtimes.choose import Runtimes
    from arcbox_agent.agent.containers.runtimes.protocol import Run
    from arcbox_agent.agent.containers.store import Store
    from arcbox_agent.agent.processes.lanes import Lanes
    from arcbox_agent.agent.processes.status import ExitStatus

log = Logger("containers")


class Supervisor:
    """Carries containers from state to state.  Knows nothing of the other containers."""

    def __init__(self, store: Store, runtimes: Runtimes, lanes: Lanes, late_output: float) -> None:
        self._runtimes = runtimes
        self.tasks = Tasks()
        self.stopper = Stopper(self.tasks, late_output, lambda record: runtimes.of(record).give_up(record))
        self._writer = RecordWriter(store, lanes, self.tasks, self._release)
        self.closing = False

    async def _carry_out(self, container: Container, trigger: Trigger) -> None:
        """Make a transition, write it, publish it.  OSError: a write that is required failed."""
        transition = container.move(trigger)
        await self._writer.write(container, transition.write)
        container.publish(transition)

    async def _release(self, record: Record) -> None:
        await self._runtimes.of(record).release(record)

    # -------------------------------------------------------------- create

    async def create(self, container: Container) -> None:
        """Write its first record.  OSError: it is not on disk, and there is no such container."""
        async with container.lock:
            try:
                await self._carry_out(container, Trigger.CREATE)
            except OSError:
                try:
                    # The file may have its name already: a container that was refused must not be
                    # there after a restart.
                    await self._writer.delete(container)
                except OSError as error:
                    log.error("a record that was not written whole stays", container=container.id, error=error)
                raise

    # --------------------------------------------------------------- start

    async def start(self, container: Container) -> None:
        """Start a run.  NotFoundError, ConflictError; AgentFailedError: it does not start, and why."""
        async with container.lock:
            record = container.record
            container.check(Trigger.START)
            if self.closing:
                raise AgentFailedError("the agent is stopping")
            await self._writer.write_pending(container)
            before = record.pid, record.start_time
            record.pid = record.start_time = 0
            record.boot_id = self._runtimes.boot_id
            record.run += 1
            try:
                await self._carry_out(container, Trigger.START)
            except OSError as error:
                _take_back_start(record, before)
                await self._carry_out(container, Trigger.START_REFUSED)
                raise AgentFailedError(f"the start cannot be recorded: {error.strerror}") from error
            # Before the spawn: no line of its output is older than its start.
            began_ns = time.time_ns()
            try:
                run = await self._runtimes.of(record).start(record)
            except asyncio.CancelledError:
                # The agent ends.  The intent stays on disk, and the next agent finds out what became of it.
                raise
            except BaseException as error:
                _take_back_start(record, before)
                record.error = str(error)
                await self._carry_out(container, Trigger.START_FAILED)
                if isinstance(error, StartError):
                    raise AgentFailedError(str(error)) from error
                raise
            _note_start(record, began_ns)
            await self._watch(container, run, Trigger.STARTED)

    async def _watch(self, container: Container, run: Run, trigger: Trigger) -> None:
        record = container.record
        record.pid, record.start_time = run.pid, run.start_time
        container.run = run
        container.watcher = self.tasks.spawn_detached(self._follow(container, run))
        await self._carry_out(container, trigger)

    # ----------------------------------------------------------------- end

    async def _follow(self, container: Container, run: Run) -> None:
        """From the start of a run to the moment when nothing of it is left."""
        # Cancelled at the agent's end, where the container goes on: the next agent takes over.
        status = await run.wait()
        finished_ns = time.time_ns()
        container.move(Trigger.MAIN_ENDED)
        complete = False
        helped = True
        try:
            helped = await self.stopper.await_helpers(container, run)
            await self.stopper.end_leftovers(container, run)
        except Exception as error:  # the container must become `stopped` whatever happens
            log.exception("the end of a container went wrong", error, container=container.id)
        try:
            complete = await run.finish_output(budget.OUTPUT_DRAINED)
        except Exception as error:
            log.exception("the output of a container cannot be finished", error, container=container.id)
        if not complete:
            log.warning("not all output of a container could be read", container=container.id)
        if not helped:
            log.warning("what passed a container's output on was killed: raise late_output", container=container.id)
        async with container.lock:
            _note_end(container.record, status, finished_ns, stopped=container.life.state is State.STOPPING_ENDING)
            container.record.output_cut = not helped or run.output_cut
            written = await self._writer.write(container, container.move(Trigger.ALL_ENDED).write)
            recorded = container.move(Trigger.END_RECORDED)
            container.run = container.stop = None
            if written:
                # Only now that the end is on disk: until then the next agent would learn the exit from it.
                try:
                    await run.close()
                except Exception as error:  # the container has ended, and whoever waits for that gets an answer
                    log.exception("what a run needed cannot be released", error, container=container.id)
        container.publish(recorded)

    # -------------------------------------------------------------- remove

    async def remove(self, container: Container, force: bool, forget: Callable[[Container], None]) -> None:
        """Remove all of it; `force`: stop it first.  `forget` is called when nothing of it is left on disk."""
        while True:
            if container.active:
                if not force:
                    container.check(Trigger.REMOVE)
                try:
                    await self.stopper.stop(container, 0)
                except ConflictError:
                    pass  # it ended by itself
            if force:
                await self.stopper.lock(container)
            else:
                await container.lock.acquire()
            try:
                if container.active:
                    continue  # another call started it again
                await self._remove(container, forget, Trigger.REMOVE_FAILED)
                return
            finally:
                container.lock.release()

    async def _remove(self, container: Container, forget: Callable[[Container], None], failed: Trigger) -> None:
        # The write may fail: a full disk must not keep anybody from making room.
        await self._carry_out(container, Trigger.REMOVE)
        try:
            await self._runtimes.of(container.record).remove(container.record)
            await self._writer.delete(container)
        except OSError as error:
            await self._carry_out(container, failed)
            raise AgentFailedError(f"its files cannot be removed: {system_reason(error)}") from error
        forget(container)
        await self._carry_out(container, Trigger.REMOVE_DONE)

    # ------------------------------------------------------------- recover

    async def recover(self, container: Container, forget: Callable[[Container], None]) -> None:
        """After a restart of the agent: make `container` what it truly is.

        Whatever this raises, an orphan stays one: it runs, and an agent that can adopt it will.
        """
        record = container.record
        if container.life.state is State.REMOVING:
            async with container.lock:
                try:
                    await self._remove(container, forget, Trigger.REMOVE_DEFERRED)
                except RequestError as error:
                    log.error("a removal cannot be completed", container=record.id, error=error)
            return
        if container.life.state is not State.ORPHANED:
            await self._runtimes.of(record).recover_output(record)
            return
        found = await self._runtimes.of(record).recover(record)
        if isinstance(found, NotStarted):
            record.run = max(0, record.run - 1)
            record.error = found.error
            await self._runtimes.of(record).recover_output(record)
            await self._carry_out(container, Trigger.NEVER_STARTED)
            return
        if record.state == STARTING:
            _note_start(record, time.time_ns())
        # In the lock, as in a start: the end of the run, which may come at once, is written after this.
        async with container.lock:
            await self._watch(container, found, Trigger.ADOPTED)

    # --------------------------------------------------------------- close

    async def settle(self, containers: Iterable[Container]) -> None:
        """At the agent's end: wait for changes that are under way, and let no more begin."""
        self.closing = True

        async def settled(container: Container) -> None:
            async with container.lock:
                pass

        waiting = [self.tasks.spawn(settled(each)) for each in containers if each.lock.locked()]
        if waiting and (await asyncio.wait(waiting, timeout=budget.CONTAINERS_SETTLED))[1]:
            log.error("a start, a removal or a record hangs: left to the next agent")

    async def close(self, containers: Iterable[Container]) -> None:
        """Wait for the ends of runs that are under way, and cancel the rest."""
        ending = self.stopper.hasten(containers)
        if ending and (await asyncio.wait(ending, timeout=budget.CONTAINERS_ENDED))[1]:
            log.error("the end of a container hangs: left to the next agent")
        await self.tasks.close()


def _note_start(record: Record, began_ns: int) -> None:
    record.started_ns, record.finished_ns = began_ns, 0
    record.exit_code = record.signal = 0
    record.stopped = record.lost = record.output_cut = False
    record.error = ""


def _take_back_start(record: Record, before: tuple[int, int]) -> None:
    """`before`: the pid and the start time of the last run."""
    record.pid, record.start_time = before
    record.run -= 1


def _note_end(record: Record, status: ExitStatus, finished_ns: int, stopped: bool) -> None:
    record.finished_ns = finished_ns
    record.exit_code, record.signal = status.shell_code, status.signal
    record.lost = status.lost
    record.stopped = stopped
    if status.lost:
        record.exit_code = LOST
        record.error = "its end was not seen: the agent was not running then, and the exit code is lost"

"""The life of one container: start, watch, stop, kill, record, remove.

Whatever changes a container runs here as a task of the agent, not of the client that
asked: a client that goes away leaves no half-done change behind.
"""

from __future__ import annotations

import asyncio
import signal
import time
from contextvars import Context

from arcbox_agent.agent.config import budget
from arcbox_agent.agent.containers import record as states
from arcbox_agent.agent.containers.model import Exit
from arcbox_agent.agent.containers.runtimes.protocol import NotStarted, StartError, system_reason
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.processes.children import LOST, ExitStatus
from arcbox_agent.errors import AgentFailedError, ConflictError, NotFoundError, RequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from typing import Any, TypeVar

    from arcbox_agent.agent.containers.model import Container
    from arcbox_agent.agent.containers.runtimes.protocol import Running, Runtime
    from arcbox_agent.agent.containers.store import Store
    from arcbox_agent.agent.processes.children import Counter
    from arcbox_agent.agent.processes.lanes import Lanes

    T = TypeVar("T")

log = Logger("containers")

#: How often to look whether everything is gone: from, and up to.
LOOK_FIRST, LOOK_LAST = 0.002, 0.05
#: How often what could not be written is tried again.
RETRY = 1.0


class Supervisor:
    """Carries containers from state to state.  Knows nothing of the other containers."""

    def __init__(self, store: Store, runtime: Runtime, metrics: Counter, lanes: Lanes) -> None:
        self._store = store
        self._runtime = runtime
        self._metrics = metrics
        self._lanes = lanes
        self._tasks: set[asyncio.Task[Any]] = set()
        #: Whose main process has ended, and who are not `stopped` yet.
        self._ending: set[Container] = set()
        self._dirty: set[Container] = set()
        self._retrying: asyncio.Task[None] | None = None
        self.closing = False

    def spawn_task(self, work: Coroutine[Any, Any, T], context: Context | None = None) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def own(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` to its end, whatever becomes of the caller."""
        return await asyncio.shield(self.spawn_task(work))

    # --------------------------------------------------------------- start

    async def start(self, container: Container) -> None:
        async with container.lock:
            record = container.record
            if container.removed:
                raise NotFoundError(f"container not found: {record.id}")
            if container.running is not None:
                raise ConflictError("container is already running")
            if self.closing:
                raise AgentFailedError("the agent is stopping")
            if container in self._dirty:
                # The end of the last run first: what still tells of it, should the agent be killed,
                # (pid file, pidfd) must not be taken for the new run's.
                try:
                    await self._write(container)
                except OSError as error:
                    raise AgentFailedError(f"the last run's end cannot be recorded: {error.strerror}") from error
                await self._runtime.release(record)
            before = record.state, record.pid, record.start_time
            record.state, record.pid, record.start_time = states.STARTING, 0, 0
            record.boot_id = self._runtime.boot_id
            record.run += 1
            try:
                await self._write(container)
            except OSError as error:
                record.state, record.pid, record.start_time = before
                record.run -= 1
                raise AgentFailedError(f"the start cannot be recorded: {error.strerror}") from error
            try:
                running = await self._runtime.start(record)
            except asyncio.CancelledError:
                # The agent ends.  The intent stays on disk: what becomes of it, the next agent finds out.
                raise
            except BaseException as error:
                record.state, record.pid, record.start_time = before
                record.run -= 1
                record.error = str(error)
                await self._write_or_retry(container)
                if isinstance(error, StartError):
                    self._metrics.add("container_start_failures")
                    raise AgentFailedError(str(error)) from error
                raise
            record.state = states.RUNNING
            record.pid, record.start_time = running.pid, running.start_time
            record.started_ns, record.finished_ns = time.time_ns(), 0
            record.exit_code = record.signal = 0
            record.stopped = record.lost = False
            record.error = ""
            self._metrics.add("containers_started")
            log.info("container started", container=record.id, pid=running.pid, run=record.run)
            self._watch(container, running)
            # Not for a power failure: after one nothing runs any more, and the intent is on disk.
            await self._write_or_retry(container, durable=False)

    def _watch(self, container: Container, running: Running) -> None:
        container.running = running
        container.output_finished = False
        container.stop_deadline = None
        container.stopper = None
        # In a context of its own: what happens to it later is not part of the request that started it.
        container.watcher = self.spawn_task(self._follow(container, running), Context())

    # ----------------------------------------------------------------- end

    async def _follow(self, container: Container, running: Running) -> None:
        """From the start of a run to the moment when nothing of it is left."""
        try:
            status = await running.wait()
        except asyncio.CancelledError:
            # The agent ends and the container goes on: the next agent takes over.
            if self.closing:
                return
            raise
        finished = time.time_ns()
        self._ending.add(container)
        complete = False
        try:
            await self._end_leftovers(container, running)
        except Exception as error:  # the container must become `stopped` whatever happens
            log.exception("the end of a container went wrong", error, container=container.id)
        try:
            complete = await running.finish_output(budget.OUTPUT_DRAINED)
        except Exception as error:
            log.exception("the output of a container cannot be finished", error, container=container.id)
        if not complete:
            log.warning("not all output of a container could be read", container=container.id)
        async with container.lock:
            self._note_exit(container, status, finished)
            written = await self._write_or_retry(container)
            container.running = None
            container.stop_deadline = None
            container.output_finished = True
            self._ending.discard(container)
            # Those until now: from here on it is `stopped`, and who waits for the next exit means another.
            waiters, container.exit_waiters = container.exit_waiters, set()
            if written:
                # Not before it is on disk: until then it is what the next agent learns the exit from.
                try:
                    await running.close()
                except Exception as error:  # it has ended, and whoever waits for that is told
                    log.exception("what a run needed cannot be let go", error, container=container.id)
        end = container.last_exit()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(end)
        container.tell_listeners()

    def _note_exit(self, container: Container, status: ExitStatus, finished: int) -> None:
        record = container.record
        record.state = states.STOPPED
        record.finished_ns = finished
        record.exit_code, record.signal = status.shell_code, status.signal
        record.lost = status.lost
        record.stopped = container.stop_deadline is not None
        if status.lost:
            record.exit_code = LOST
            record.error = "its end was not seen: the agent was not running then, and the exit code is lost"
            self._metrics.add("exits_lost")
        self._metrics.add("containers_exited")
        log.info(
            "container ended",
            container=record.id,
            exit_code=record.exit_code,
            signal=record.signal,
            lost=record.lost,
        )

    async def _end_leftovers(self, container: Container, running: Running) -> None:
        """The main process is gone.  A Stop lets the others end by themselves in its time; then they are killed."""
        loop = asyncio.get_running_loop()
        pause = LOOK_FIRST
        while container.stop_deadline is not None and await running.alive():
            left = container.stop_deadline - loop.time()
            if left <= 0:
                break
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 2, LOOK_LAST)
        give_up = loop.time() + budget.CONTAINERS_KILLED
        pause = LOOK_FIRST
        while await running.alive():
            try:
                await running.kill_all()
            except OSError as error:  # no descriptor left, most likely: there will be one again
                log.debug("a container cannot be killed yet", container=container.id, error=error)
            if loop.time() > give_up:
                log.error("something of a container cannot be killed", container=container.id)
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, LOOK_LAST)

    # ---------------------------------------------------------------- stop

    async def stop(self, container: Container, timeout: float) -> None:
        """SIGTERM, and after `timeout` SIGKILL, for all of it; returns when it is dead."""
        async with container.lock:
            running, watcher = container.running, container.watcher
            if running is None or watcher is None:
                raise ConflictError("container is not running")
            deadline = asyncio.get_running_loop().time() + timeout
            if container.stop_deadline is None or deadline < container.stop_deadline:
                # A second Stop joins the first, and can only make it shorter.
                container.stop_deadline = deadline
                container.stop_hastened.set()
            if container.stopper is None:
                container.stopper = self.spawn_task(self._stop(container, running, watcher, timeout > 0))
        await asyncio.wait([watcher])

    async def _stop(self, container: Container, running: Running, watcher: asyncio.Task[None], gently: bool) -> None:
        loop = asyncio.get_running_loop()
        if gently:
            try:
                await running.signal_all(signal.SIGTERM)
            except OSError as error:  # no descriptor left to look for the others with
                log.warning("only the main process can be told to stop", container=container.id, error=error)
                running.send_signal(signal.SIGTERM)
        while not watcher.done():
            container.stop_hastened.clear()
            deadline = container.stop_deadline
            left = 0.0 if deadline is None else deadline - loop.time()
            if left <= 0:
                break
            hastened = loop.create_task(container.stop_hastened.wait())
            try:
                await asyncio.wait([watcher, hastened], timeout=left, return_when=asyncio.FIRST_COMPLETED)
            finally:
                hastened.cancel()
        if not watcher.done():
            # By its pidfd, should the rest miss the main process (no cgroup and a new session, no
            # descriptor left).  Its end brings _end_leftovers, which does not give up on the others.
            running.send_signal(signal.SIGKILL)
            await running.kill_all()

    def kill(self, container: Container, sig: int) -> None:
        """One signal, to the main process."""
        if container.running is None or not container.running.send_signal(sig):
            raise ConflictError(f"container is not running: {container.id}")
        if sig == signal.SIGKILL and container.stop_deadline is not None:
            # Nor is a Stop under way patient with the rest any more.
            container.stop_deadline = asyncio.get_running_loop().time()
            container.stop_hastened.set()

    # -------------------------------------------------------------- remove

    async def remove(self, container: Container, force: bool, forget: Callable[[Container], None]) -> None:
        """`forget` is called when nothing is left of it on disk."""
        if container.running is not None and not force:
            raise ConflictError("cannot remove running container (use force=true)")
        while True:
            if container.running is not None:
                try:
                    await self.stop(container, 0)
                except ConflictError:
                    pass  # it ended by itself
            async with container.lock:
                if container.removed:
                    raise NotFoundError(f"container not found: {container.id}")
                if container.running is not None:
                    if not force:
                        raise ConflictError("cannot remove running container (use force=true)")
                    continue  # somebody started it again
                await self._remove(container, forget)
                return

    async def _remove(self, container: Container, forget: Callable[[Container], None]) -> None:
        record = container.record
        before, record.state = record.state, states.REMOVING
        try:
            await self._write(container)
        except OSError:
            pass  # a full disk must not keep anybody from making room
        try:
            await self._runtime.remove(record)
            await self._lanes.disk(self._store.remove, record.id)
        except OSError as error:
            record.state = before
            await self._write_or_retry(container)
            raise AgentFailedError(f"its files cannot be removed: {system_reason(error)}") from error
        container.removed = True
        self._dirty.discard(container)
        forget(container)
        self._metrics.add("containers_removed")
        log.info("container removed", container=record.id)
        end = container.last_exit()
        for waiter in container.removal_waiters:
            if not waiter.done():
                waiter.set_result(end)
        gone = NotFoundError(f"container was removed: {record.id}")
        fail(container.exit_waiters, gone)
        container.removal_waiters.clear()
        container.exit_waiters.clear()
        container.tell_listeners()

    # ------------------------------------------------------------- recover

    async def recover(self, container: Container, forget: Callable[[Container], None]) -> None:
        """After a restart of the agent: makes `container` what it truly is."""
        record = container.record
        if record.state == states.REMOVING:
            async with container.lock:
                try:
                    await self._remove(container, forget)
                except RequestError as error:
                    log.error("a removal cannot be completed", container=record.id, error=error)
            return
        if record.state not in (states.STARTING, states.RUNNING):
            await self._runtime.recover_output(record)
            return
        found = await self._runtime.recover(record)
        if isinstance(found, NotStarted):
            record.state = states.STOPPED if record.finished_ns else states.CREATED
            record.run = max(0, record.run - 1)
            record.error = found.error
            log.warning("a start did not come about", container=record.id, error=found.error)
            await self._runtime.recover_output(record)
            await self._write_or_retry(container)
            return
        if record.state == states.STARTING:
            record.state = states.RUNNING
            record.started_ns, record.finished_ns = time.time_ns(), 0
            record.exit_code = record.signal = 0
            record.stopped = record.lost = False
            record.error = ""
        record.pid, record.start_time = found.pid, found.start_time
        log.info("container found again", container=record.id, pid=found.pid)
        self._metrics.add("containers_recovered")
        # In the lock, as in a start: the end of the run, which may come at once, is written after this.
        async with container.lock:
            self._watch(container, found)
            await self._write_or_retry(container, durable=False)

    # --------------------------------------------------------------- close

    async def settle(self, containers: Iterable[Container]) -> None:
        """At the agent's end: lets what changes a container come to its end, and lets nothing more begin."""
        self.closing = True

        async def settled(container: Container) -> None:
            async with container.lock:
                pass

        waiting = [self.spawn_task(settled(each)) for each in containers if each.lock.locked()]
        if waiting and (await asyncio.wait(waiting, timeout=budget.CONTAINERS_SETTLED))[1]:
            log.error("a start, a removal or a record hangs: left to the next agent")

    async def close(self) -> None:
        # How they ended, before Linux 6.15 nobody could tell the next agent, which would not be
        # patient with what they left either.
        for container in self._ending:
            if container.stop_deadline is not None:
                container.stop_deadline = asyncio.get_running_loop().time()
        ending = [container.watcher for container in self._ending if container.watcher is not None]
        if ending and (await asyncio.wait(ending, timeout=budget.CONTAINERS_ENDED))[1]:
            log.error("the end of a container hangs: left to the next agent")
        tasks = [task for task in self._tasks if not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---------------------------------------------------------------- disk

    async def create(self, container: Container) -> None:
        """Its first record.  OSError: it is not on disk."""
        async with container.lock:
            try:
                await self._write(container)
            except OSError:
                try:
                    # It may have its name already: what was refused must not be there after a restart.
                    await self._lanes.disk(self._store.remove, container.id)
                except OSError as error:
                    log.error("a record that was not written whole stays", container=container.id, error=error)
                raise

    async def _write(self, container: Container, durable: bool = True) -> None:
        await self._lanes.disk(self._store.write, container.record, container.record.encode(), durable)
        self._dirty.discard(container)

    async def _write_or_retry(self, container: Container, durable: bool = True) -> bool:
        """What has happened has happened: it is true in memory, and on disk as soon as that can take it."""
        try:
            await self._write(container, durable)
            return True
        except OSError as error:
            if not self._dirty:
                log.error("the state of containers cannot be written, and will be", error=error)
            self._dirty.add(container)
            if self._retrying is None or self._retrying.done():
                # In a context of its own: it goes on after the request in which it began.
                self._retrying = self.spawn_task(self._retry(), Context())
            return False

    async def _retry(self) -> None:
        while self._dirty:
            await asyncio.sleep(RETRY)
            for container in list(self._dirty):
                async with container.lock:
                    if container.removed:
                        self._dirty.discard(container)
                        continue
                    try:
                        await self._write(container)
                    except OSError:
                        break
                    if container.running is None:
                        await self._runtime.release(container.record)
        log.info("the state of containers is written again")


def fail(waiters: set[asyncio.Future[Exit]], error: RequestError) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_exception(error)

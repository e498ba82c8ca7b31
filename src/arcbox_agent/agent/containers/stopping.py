"""Stop and kill: the stop signal, patience, SIGKILL, until nothing that a container started is left.

The main process is asked first and alone: one that lets its workers finish must not find them dead.
What it has left is asked when it has ended.
"""

from __future__ import annotations

import asyncio
import signal

from arcbox_agent.agent.config import budget
from arcbox_agent.agent.containers.lifecycle import State, Trigger, refusal
from arcbox_agent.agent.containers.model import Stop
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.processes.helpers import HELPERS, LATE_IN_ALL, NOBODY
from arcbox_agent.errors import BusyError, ConflictError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from arcbox_agent.agent.containers.model import Container
    from arcbox_agent.agent.containers.record import Record
    from arcbox_agent.agent.containers.runtimes.protocol import Run
    from arcbox_agent.agent.containers.tasks import Tasks

log = Logger("containers")

#: Seconds between two looks whether anything of a run is left: at first, and at most.
FIRST_LOOK, LAST_LOOK = 0.002, 0.05


class Stopper:
    """Ends runs of containers."""

    __slots__ = ("_give_up_start", "_late", "_tasks")

    def __init__(self, tasks: Tasks, late_output: float, give_up_start: Callable[[Record], None]) -> None:
        """`late_output`: the setting.  `give_up_start`: see Runtime.give_up."""
        self._tasks = tasks
        self._late = late_output
        self._give_up_start = give_up_start

    async def lock(self, container: Container) -> None:
        """Take the container's lock.  A start that is under way has HANGING_START, and is given up then."""
        timer = None
        if container.life.state is State.STARTING:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(budget.HANGING_START, self._give_up_start, container.record)
        try:
            await container.lock.acquire()
        finally:
            if timer is not None:
                timer.cancel()

    async def stop(self, container: Container, timeout: float) -> None:
        """Ask a run to end, and after `timeout` seconds kill it; returns when its end is recorded.

        ConflictError: nothing runs.
        """
        await self.lock(container)
        try:
            container.move(Trigger.STOP)
            run, watcher = container.run, container.watcher
            assert run is not None and watcher is not None
            deadline = asyncio.get_running_loop().time() + timeout
            if container.stop is None:
                container.stop = Stop(deadline)
                self._tasks.spawn(self._stop(container, run, watcher, container.stop, gently=timeout > 0))
            else:
                # A second Stop joins the first, and can only make it shorter.
                container.stop.shorten(deadline)
        finally:
            container.lock.release()
        await asyncio.wait([watcher])

    async def _stop(
        self, container: Container, run: Run, watcher: asyncio.Task[None], stop: Stop, gently: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        if gently:
            # Without a cgroup, what has a session of its own is found by its parent: it is looked for while that lives.
            try:
                await run.alive()
            except (OSError, BusyError) as error:  # no thread to look with, or too many that look
                log.debug("what it started cannot be looked for yet", container=container.id, error=error)
            run.send_signal(container.stop_signal)
        while not watcher.done():
            stop.shortened.clear()
            left = stop.deadline - loop.time()
            if left <= 0:
                break
            shortened = loop.create_task(stop.shortened.wait())
            try:
                await asyncio.wait([watcher, shortened], timeout=left, return_when=asyncio.FIRST_COMPLETED)
            finally:
                shortened.cancel()
        if not watcher.done():
            # By its pidfd, in case kill_all misses the main process (no cgroup and a new session, or no
            # descriptor left).  Its end brings end_leftovers, which goes on with the others.
            run.send_signal(signal.SIGKILL)
            try:
                await run.kill_all()
            except OSError as error:
                log.debug("only the main process is killed yet", container=container.id, error=error)

    def kill(self, container: Container, sig: int) -> None:
        """Send one signal to the main process.  ConflictError: it does not run."""
        container.check(Trigger.KILL)
        assert container.run is not None
        if not container.run.send_signal(sig):
            raise refusal(container.life.state, Trigger.KILL, container.id)
        if sig == signal.SIGKILL and container.stop is not None:
            # A Stop that is under way ends its patience with the rest, too.
            container.stop.shorten(asyncio.get_running_loop().time())

    async def await_helpers(self, container: Container, run: Run) -> bool:
        """After the main process's end: let what still passes its output on end by itself.

        False: the time for that is over, or a Stop came, and there still is such a helper.
        """
        loop = asyncio.get_running_loop()
        began = last = loop.time()
        written = -1
        pause = FIRST_LOOK
        while container.stop is None:
            try:
                if not await run.alive():
                    return True
                who, now_written = await run.output_holders()
            except OSError:
                return True  # no descriptor is left to look with
            now = loop.time()
            if now_written != written:
                written, last = now_written, now
            if who == NOBODY or (who != HELPERS and now - began > budget.COMMAND_QUIET):
                return True
            if now > min(last + self._late, began + self._late * LATE_IN_ALL):
                return who != HELPERS
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_LOOK)
        return True

    async def end_leftovers(self, container: Container, run: Run) -> None:
        """After the main process's end: end what it left behind.

        A Stop asks it to end, and leaves it the rest of its time.  Then it is killed.
        """
        loop = asyncio.get_running_loop()
        if container.stop is not None and container.stop.deadline > loop.time():
            try:
                await run.signal_all(container.stop_signal)
            except OSError as error:
                # No descriptor is left to find its processes with.
                log.warning("what a container left is not asked to end", container=container.id, error=error)
        pause = FIRST_LOOK
        while container.stop is not None and await run.alive():
            left = container.stop.deadline - loop.time()
            if left <= 0:
                break
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 2, LAST_LOOK)
        give_up = loop.time() + budget.CONTAINERS_KILLED
        pause = FIRST_LOOK
        while await run.alive():
            try:
                await run.kill_all()
            except OSError as error:
                # No descriptor is left, most likely: there will be one again.
                log.debug("a container cannot be killed yet", container=container.id, error=error)
            if loop.time() > give_up:
                log.error("something of a container cannot be killed", container=container.id)
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_LOOK)

    async def stop_all(self, containers: Iterable[Container], timeout: float) -> None:
        """Stop every container that runs, the last started first: it may need those before it.

        A stop_timeout of a container's own can make its time shorter.  The next one's turn comes
        when one is dead, or has had its share of the time: one that ignores its signal holds up the
        others no longer.  All have until `timeout` (seconds), and what is killed then has
        budget.CONTAINERS_KILLED to be gone: where a disk hangs, it may never be.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        given_up = loop.time() - budget.CONTAINERS_KILLED
        running = [each for each in containers if each.active and (each.stop is None or each.stop.deadline > given_up)]
        running.sort(key=lambda each: -each.record.started_ns)
        stops: list[asyncio.Task[None]] = []
        for container in running:
            stops.append(loop.create_task(self._stop_by(container, deadline)))
            await asyncio.wait(stops[-1:], timeout=timeout / len(running))
        if not stops:
            return
        patience = max(0.0, deadline - loop.time()) + budget.CONTAINERS_KILLED
        ended, hanging = await asyncio.wait(stops, timeout=patience)
        if hanging:
            log.error("containers that cannot be ended are left", containers=len(hanging))
        for task in hanging:
            task.cancel()
        for task in ended:
            error = task.exception()
            if error is not None:
                log.exception("a container could not be stopped", error)

    async def _stop_by(self, container: Container, deadline: float) -> None:
        left = max(0.0, deadline - asyncio.get_running_loop().time())
        own = container.stop_timeout
        try:
            await self.stop(container, left if own is None else min(own, left))
        except ConflictError:
            pass  # it ended by itself

    def hasten(self, containers: Iterable[Container]) -> list[asyncio.Task[None]]:
        """At the agent's end: no more patience with what ended main processes left; the watchers of those.

        Before Linux 6.15 the next agent could not learn how they ended, and it would not be
        patient with what they left either.
        """
        now = asyncio.get_running_loop().time()
        winding_up = [each for each in containers if each.winding_up]
        for container in winding_up:
            if container.stop is not None:
                container.stop.shorten(now)
        return [each.watcher for each in winding_up if each.watcher is not None]

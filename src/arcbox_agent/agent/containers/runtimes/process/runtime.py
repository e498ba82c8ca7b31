"""The runtime that needs nothing but the kernel: a container is a process and what it starts.

It runs in a session of its own, in a cgroup of its own where there is cgroup2, in its
`rootfs` by chroot where it has one, and in a mount namespace of its own where it has
mounts.  Its output goes through FIFOs that it holds open itself, so it outlives the
agent unharmed; the keeper holds what the kernel would otherwise free meanwhile.
"""

from __future__ import annotations

import asyncio
import os

from arcbox_agent._spawn import SpawnError
from arcbox_agent.agent.config import budget
from arcbox_agent.agent.containers.runtimes.process import mounts, pid_file
from arcbox_agent.agent.containers.runtimes.process.held import Held
from arcbox_agent.agent.containers.runtimes.process.prepare import Preparation
from arcbox_agent.agent.containers.runtimes.process.recover import recover
from arcbox_agent.agent.containers.runtimes.process.run import ProcessRun
from arcbox_agent.agent.containers.runtimes.process.spawning import EndedUnseenError, Spawning
from arcbox_agent.agent.containers.runtimes.protocol import StartError, reason, system_reason
from arcbox_agent.agent.containers.tasks import take_failure
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.processes import users
from arcbox_agent.agent.processes.scopes import end
from arcbox_agent.agent.processes.spawning import HungError
from arcbox_agent.errors import BadRequestError, BusyError, RequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from arcbox_agent.agent.containers.output.capture import CaptureHandle
    from arcbox_agent.agent.containers.record import Record
    from arcbox_agent.agent.containers.runtimes.process.parts import Parts
    from arcbox_agent.agent.containers.runtimes.protocol import NotStarted
    from arcbox_agent.agent.processes.scopes import Scope
    from arcbox_agent.agent.processes.spec import SpawnSpec
    from arcbox_agent.wire import Mount

log = Logger("containers")

#: Characters of an image's name that a warning repeats.
MOST_SHOWN = 256


class ProcessRuntime:
    """See the module."""

    __slots__ = ("_cleaning", "_hanging", "_parts", "_waiting")

    name = "process"

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        #: Containers whose last start was given up and still hangs; the event comes when it is over.
        self._hanging: dict[str, asyncio.Event] = {}
        #: Those whose next start waits for that.
        self._waiting: dict[str, asyncio.Timeout] = {}
        self._cleaning: set[asyncio.Task[None]] = set()

    # -------------------------------------------------------------- create

    def check(self, record: Record, mounts_asked: Sequence[Mount]) -> None:
        image = record.image if len(record.image) <= MOST_SHOWN else record.image[:MOST_SHOWN] + "..."
        if image and not record.rootfs:
            record.warnings.append(
                f"image {image} is not unpacked: this runtime cannot unpack images; "
                "the container runs in the guest's own file system"
            )
        elif image:
            record.warnings.append(f"image {image} is not unpacked: the container runs in its rootfs {record.rootfs}")
        if record.rootfs:
            if not record.rootfs.startswith("/") or "\0" in record.rootfs:
                raise BadRequestError(f"the rootfs must be an absolute path, not {record.rootfs!r}")
            if not os.path.isdir(record.rootfs):
                raise BadRequestError(f"the rootfs {record.rootfs} is no directory of the guest")
        users.look_up(record.rootfs or "/", record.user)
        entries, warnings = mounts.check(mounts_asked, record.rootfs)
        record.mounts = [list(entry) for entry in entries]
        record.warnings.extend(warnings)

    # --------------------------------------------------------------- start

    async def start(self, record: Record) -> ProcessRun:
        parts = self._parts
        await self._former_start_over(record.id)
        preparation = Preparation(parts.scopes.container(record.id))
        try:
            spec = await self._prepare(record, preparation)
        except Exception as error:
            if isinstance(error, StartError):
                raise  # the thread that hangs has what there is to close
            preparation.close(spawned=False)
            await parts.clean_up(record.id, preparation.scope)
            if isinstance(error, (RequestError, OSError)):
                raise _start_error(error, record) from error
            raise
        return await self._spawn(record, preparation, spec)

    async def _former_start_over(self, id: str) -> None:
        """What was killed takes a moment to end and be cleaned up."""
        hanging = self._hanging.get(id)
        if hanging is None:
            return
        try:
            async with asyncio.timeout(budget.FORMER_START) as self._waiting[id]:
                await hanging.wait()
        except TimeoutError:
            raise StartError("its former start hangs still and cannot be ended: see the agent's log") from None
        finally:
            del self._waiting[id]

    async def _prepare(self, record: Record, preparation: Preparation) -> SpawnSpec:
        parts = self._parts

        def late(spec: SpawnSpec | None, error: BaseException | None) -> None:
            preparation.close(spawned=False)
            self._over(record.id, preparation.scope)

        work = parts.lanes.spawn.submit(
            record.id, preparation.prepare, record, parts.store, parts.scopes, late=late, dropped=lambda: None
        )
        timer = asyncio.get_running_loop().call_later(budget.SPAWNED, self._give_up_preparation, record.id, work)
        try:
            return await work
        finally:
            timer.cancel()

    def _give_up_preparation(self, id: str, work: asyncio.Future[SpawnSpec]) -> None:
        if not work.done():
            if not self._parts.lanes.spawn.waits(work):
                self._hanging[id] = asyncio.Event()
            log.warning("a start was given up: its root file system hangs", container=id)
            work.set_exception(
                StartError(f"not prepared within {budget.SPAWNED:g} s: its root file system, or that of a mount, hangs")
            )

    def _over(self, id: str, scope: Scope) -> None:
        """What hung of a start is over: clean up after it."""
        if id in self._hanging:
            self._cleaning.add(task := asyncio.get_running_loop().create_task(self._clean_late(id, scope)))
            task.add_done_callback(self._cleaning.discard)

    async def _clean_late(self, id: str, scope: Scope) -> None:
        try:
            await self._parts.clean_up(id, scope)
        except OSError as error:
            log.error("what hung of a start cannot be cleaned up", container=id, error=error)
        finally:
            self._hanging.pop(id).set()

    def give_up(self, record: Record) -> None:
        self._parts.processes.give_up(record.id)
        if waiting := self._waiting.get(record.id):
            waiting.reschedule(asyncio.get_running_loop().time())

    async def _spawn(self, record: Record, preparation: Preparation, spec: SpawnSpec) -> ProcessRun:
        parts = self._parts
        handle: CaptureHandle | None = None
        spawned = over = False

        def late() -> None:
            nonlocal over
            over = True
            self._over(record.id, preparation.scope)

        path = os.path.join(parts.store.run_path(record.id), pid_file.NAME)

        def kill() -> None:
            # The keeper may have the child.  One that was born frozen has written no pid.
            parts.lanes.signals.submit(record.id, pid_file.kill, path).add_done_callback(take_failure)
            parts.lanes.signals.submit(record.id, preparation.scope.kill).add_done_callback(take_failure)

        spawning = Spawning(parts.keeper, record.id, spec, path, kill, late, share=record.id)
        try:
            handle = parts.attach(record.id, preparation.stdio.fifos, preparation.stdio.master)
            await handle.ready()
            held = Held(preparation.stdio.fifos.values(), preparation.stdio.master)
            parts.keeper.hold(record.id, held)
            # Before the spawn: the container could write and end while no agent is there.
            await parts.keeper.keep(record.id, preparation.stdio.for_keeper(), anew=True)
            spawned = True
            process = await spawning.run(parts.processes)
        except asyncio.CancelledError:
            # The agent ends.  Nothing is undone: a spawn may be under way, and the pid file tells
            # the next agent what became of it.
            raise
        except EndedUnseenError as ended:
            preparation.close(spawned)
            return ProcessRun(parts, record, ended.pid, ended.start_time, None, preparation.scope, handle)
        except BaseException as error:
            if isinstance(error, HungError) and not over:
                self._hanging[record.id] = asyncio.Event()
            preparation.close(spawned)
            if handle is not None:
                await handle.finish(0)
            await parts.keeper.drop(record.id)
            await parts.clean_up(record.id, preparation.scope)
            if isinstance(error, (SpawnError, OSError, HungError, BusyError)):
                raise _start_error(error, record) from error
            raise
        preparation.close(spawned)
        preparation.scope.bind(process.pid, process.start_time)
        held.follow(process)
        if process.pidfd >= 0 and spawning.generation != parts.keeper.generation:
            # The keeper is not its parent.
            try:
                await parts.keeper.keep(record.id, [os.dup(process.pidfd)])
            except OSError as error:
                # The container goes on: this matters only if the agent is killed.
                log.error("the pidfd of a container cannot be kept", container=record.id, error=error)
        return ProcessRun(parts, record, process.pid, process.start_time, process, preparation.scope, handle)

    # ------------------------------------------------------------- recover

    async def recover(self, record: Record) -> ProcessRun | NotStarted:
        return await recover(self._parts, record)

    async def recover_output(self, record: Record) -> None:
        store = self._parts.store
        self._parts.capture.attach_rest(record.id, store.log_path(record.id), store.run_path(record.id))

    async def release(self, record: Record) -> None:
        parts = self._parts
        await parts.keeper.drop(record.id)
        await parts.clean_up(record.id, parts.scopes.container(record.id))

    async def remove(self, record: Record) -> None:
        await self._parts.capture.forget(record.id)
        await self.release(record)

    async def sweep(self, over: Iterable[str]) -> None:
        await self._parts.lanes.disk(self._sweep, set(over))

    def _sweep(self, over: set[str]) -> None:
        # An agent that was killed at the end of a run left its pid file, which must not be taken
        # for that of the next run.
        for name in os.listdir(self._parts.store.run_dir):
            if name in over:
                scope = self._parts.scopes.container(name)
                if scope.alive():
                    end(scope)
                self._parts.clean(name, scope)


def _start_error(error: Exception, record: Record) -> StartError:
    if isinstance(error, SpawnError):
        targets = [entry[2] for entry in record.mounts]
        return StartError(reason(error, record.command[0], record.working_dir, targets))
    return StartError(system_reason(error) if isinstance(error, OSError) else str(error))

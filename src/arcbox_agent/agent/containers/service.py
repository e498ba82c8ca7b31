"""All containers of the agent: creates, finds and lists them; the supervisor carries out every change."""

from __future__ import annotations

import asyncio
import os
import time

from arcbox_agent.agent.config import budget
from arcbox_agent.agent.containers import ids
from arcbox_agent.agent.containers.events import Events
from arcbox_agent.agent.containers.journal import Journal
from arcbox_agent.agent.containers.lifecycle import State, orphan_refusal
from arcbox_agent.agent.containers.model import Container
from arcbox_agent.agent.containers.record import RUNNING, Record
from arcbox_agent.agent.containers.runtimes.protocol import system_reason
from arcbox_agent.agent.containers.signals import parse_signal
from arcbox_agent.agent.containers.supervisor import Supervisor
from arcbox_agent.agent.containers.waiting import check_condition, wait
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.processes import environment
from arcbox_agent.errors import (
    AgentFailedError,
    BadRequestError,
    BusyError,
    ConfigError,
    ConflictError,
    NotFoundError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.containers.events import Exit
    from arcbox_agent.agent.containers.runtimes.choose import Runtimes
    from arcbox_agent.agent.containers.runtimes.protocol import CommandHost, Run
    from arcbox_agent.agent.containers.store import Store
    from arcbox_agent.agent.metrics import Metrics
    from arcbox_agent.agent.processes.lanes import Lanes
    from arcbox_agent.wire import CreateContainerRequest, Mount

log = Logger("containers")

#: Bytes of one request, all texts together: a record is written often, and must stay small.
#: In JSON, with warnings and errors that repeat the texts, it stays below the store's MAX_RECORD.
MAX_REQUEST = 1 << 20

#: Containers that are recovered at once; the others wait.
AT_ONCE = 64


class Containers:
    """All containers of one agent, by id and by name."""

    def __init__(self, settings: Settings, metrics: Metrics, lanes: Lanes, store: Store, runtimes: Runtimes) -> None:
        self._settings = settings
        self._lanes = lanes
        self._store = store
        self._runtimes = runtimes
        self._events = Events()
        self._events.subscribe(Journal(metrics))
        self._supervisor = Supervisor(store, runtimes, lanes, settings.late_output)
        self._tasks = self._supervisor.tasks
        self._containers: dict[str, Container] = {}
        self._names: dict[str, Container] = {}
        #: Creates under way: how many, and their ids and names.
        self._creating = 0
        self._reserved: set[str] = set()
        metrics.gauge("containers", lambda: len(self._containers), "Containers there are.")
        metrics.gauge("containers_running", self._count_running, "Containers that run.")

    def __len__(self) -> int:
        return len(self._containers)

    def _count_running(self) -> int:
        return sum(container.state == RUNNING for container in self._containers.values())

    # ----------------------------------------------------- start and close

    async def open(self) -> None:
        """Load the records, and adopt what still runs.  ConfigError: state_dir cannot be used."""
        try:
            await self._lanes.disk(self._store.prepare)
            records = await self._lanes.disk(self._store.load)
        except OSError as error:
            raise ConfigError("state_dir", f"{error.filename}: {error.strerror}") from error
        await self._runtimes.open()
        for record in records:
            self._add(Container.load(record, self._store.log_path(record.id), self._events))
        await self._recover_all()
        # Only after the adoptions: they tell what belongs to no container.
        known, running = list(self._containers), [each.id for each in self.list()]
        try:
            await self._lanes.disk(self._store.sweep, known)
            await self._runtimes.sweep([each.record for each in self._containers.values()], running)
        except OSError as error:
            log.error("what former containers left cannot be removed", error=error)
        if records:
            log.info("containers loaded", containers=len(self._containers), running=self._count_running())

    def _recoverable(self) -> list[Container]:
        """The containers whose runtime this agent has.  The others are listed, say why, and stay as they are."""
        found = []
        for container in self._containers.values():
            try:
                self._runtimes.of(container.record)
            except AgentFailedError as error:
                container.record.error = str(error)
                log.error("a container is left as it is", container=container.id, reason=error)
            else:
                found.append(container)
        return found

    async def close(self, stop: bool, deadline: float) -> None:
        """Leave the containers running, or stop them by `deadline` (loop time)."""
        await self._supervisor.settle(self._containers.values())
        if stop:
            left = deadline - asyncio.get_running_loop().time()
            await self.stop_all(max(0.0, min(left, self._settings.stop_timeout)))
        self._events.close(AgentFailedError("the agent is stopping"))
        await self._supervisor.close(self._containers.values())
        await self._runtimes.close()

    async def stop_all(self, timeout: float) -> None:
        """Stop every container that runs; see Stopper.stop_all."""
        await self._supervisor.stopper.stop_all(self._containers.values(), timeout)

    async def _recover_all(self) -> None:
        gate = asyncio.Semaphore(AT_ONCE)

        async def recover(container: Container) -> None:
            async with gate:
                await self._supervisor.recover(container, self._forget)

        results = await asyncio.gather(*map(recover, self._recoverable()), return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                log.exception("a container could not be recovered", result)

    # -------------------------------------------------------------- lookup

    def resolve(self, ref: str) -> Container:
        """The container of that id or name, or whose id alone begins so.  NotFoundError; ConflictError: several do."""
        container = self._containers.get(ref) or self._names.get(ref)
        if container is not None:
            return container
        found = [each for id, each in self._containers.items() if id.startswith(ref)] if ref else []
        if not found:
            raise NotFoundError(f"container not found: {ref}")
        if len(found) > 1:
            raise ConflictError(f"ambiguous container id: {ref} is the beginning of {len(found)} ids")
        return found[0]

    def _attended(self, ref: str) -> Container:
        """The same, for a call that changes it or waits for it.  AgentFailedError: it is an orphan."""
        container = self.resolve(ref)
        self._runtimes.of(container.record)
        if container.life.state is State.ORPHANED:
            raise orphan_refusal(container.id)
        return container

    def run_of(self, ref: str) -> Run | None:
        """The run of a container; None: it does not run."""
        return self._attended(ref).run

    def list(self, all: bool = False, filter: str = "") -> Sequence[Container]:
        """In order of creation; with `filter`, those of that id, beginning of an id, or name."""
        found = [
            each
            for each in self._containers.values()
            if (all or each.state == RUNNING) and (not filter or each.id.startswith(filter) or each.name == filter)
        ]
        return sorted(found, key=lambda each: (each.record.created_ns, each.id))

    # -------------------------------------------------------------- create

    async def create(self, request: CreateContainerRequest) -> tuple[Container, Sequence[str]]:
        """Check all that can be checked before a start, and write the record; the container, and warnings.

        BadRequestError, ConflictError, BusyError; AgentFailedError: it cannot be written.
        """
        record = self._record_of(request)
        if self._supervisor.closing:
            raise AgentFailedError("the agent is stopping")
        if len(self._containers) + self._creating >= self._settings.max_containers:
            raise BusyError(f"there are max_containers = {self._settings.max_containers} containers already")
        wanted = {record.id, record.name} - {""}
        for word in wanted:
            if word in self._containers or word in self._names or word in self._reserved:
                raise ConflictError(f"the id or name {word!r} is in use by another container")
        self._reserved |= wanted
        self._creating += 1
        return await self._tasks.own(self._create(record, request, wanted))

    async def _create(
        self, record: Record, request: CreateContainerRequest, wanted: set[str]
    ) -> tuple[Container, Sequence[str]]:
        try:
            await self._check(record, request.mounts)
            for warning in record.warnings:
                log.warning("container created, but not as asked", container=record.id, warning=warning)
            container = Container(record, self._store.log_path(record.id), self._events)
            await self._supervisor.create(container)
        except OSError as error:
            raise AgentFailedError(f"the container cannot be created: {system_reason(error)}") from error
        finally:
            self._reserved -= wanted
            self._creating -= 1
        self._add(container)
        return container, record.warnings

    async def _check(self, record: Record, mounts: Sequence[Mount]) -> None:
        """It looks at files, which hang where their file system does: those of one root have a share of the lane."""
        where = record.rootfs or next((mount.source for mount in mounts if mount.source.startswith("/")), None)
        try:
            async with asyncio.timeout(budget.SPAWNED):
                await self._lanes.spawn.submit(where, self._runtimes.of(record).check, record, mounts)
        except TimeoutError:
            raise AgentFailedError(
                f"the container cannot be created: {where or 'the root file system'} hangs for {budget.SPAWNED:g} s"
            ) from None

    def _record_of(self, request: CreateContainerRequest) -> Record:
        id = ids.check(request.id, "container id") if request.id else ids.new_id()
        if request.name:
            ids.check(request.name, "container name")
        command = [*request.entrypoint, *request.cmd]
        if not command:
            raise BadRequestError("empty command: name one, as this runtime takes none from an image")
        environment.check(command, request.env)
        environment.check_working_dir(request.working_dir)
        if len(request.rootfs) > environment.MAX_PATH_LENGTH:
            raise BadRequestError(f"the rootfs is longer than {environment.MAX_PATH_LENGTH} characters")
        if request.image and self._settings.refuse_images:
            raise BadRequestError(f"image {request.image}: this runtime cannot unpack images, and refuse_images is set")
        texts = [*command, *request.env, *request.env.values(), request.image, request.working_dir, request.rootfs]
        texts += [request.user, *(text for mount in request.mounts for text in (mount.source, mount.target))]
        if len("".join(texts).encode()) > MAX_REQUEST:
            raise BadRequestError(f"command, environment and paths are larger than {MAX_REQUEST} bytes")
        return Record(
            id,
            name=request.name,
            image=request.image,
            command=command,
            env=request.env,
            working_dir=request.working_dir,
            user=request.user,
            tty=request.tty,
            open_stdin=request.open_stdin,
            rootfs=os.path.normpath(request.rootfs) if request.rootfs else "",
            created_ns=time.time_ns(),
            stop_signal=parse_signal(request.stop_signal) if request.stop_signal else 0,
            stop_timeout_ms=max(-1, request.stop_timeout_ms),
            runtime=self._runtimes.default.name,
        )

    def _add(self, container: Container) -> None:
        self._containers[container.id] = container
        if container.name:
            self._names[container.name] = container

    def _forget(self, container: Container) -> None:
        self._containers.pop(container.id, None)
        if self._names.get(container.name) is container:
            del self._names[container.name]

    # ------------------------------------------------------------- changes

    async def start(self, ref: str) -> None:
        await self._tasks.own(self._supervisor.start(self._attended(ref)))

    async def stop(self, ref: str, timeout: float, own: bool = False) -> None:
        """`own`: the container's own stop_timeout holds instead, where it has one."""
        container = self._attended(ref)
        if own and container.stop_timeout is not None:
            timeout = container.stop_timeout
        await self._tasks.own(self._supervisor.stopper.stop(container, timeout))

    async def remove(self, ref: str, force: bool = False) -> None:
        await self._tasks.own(self._supervisor.remove(self._attended(ref), force, self._forget))

    def kill(self, ref: str, signal: str = "") -> None:
        self._supervisor.stopper.kill(self._attended(ref), parse_signal(signal or "KILL"))

    async def wait(self, ref: str, condition: str = "") -> Exit:
        """See waiting.py."""
        return await wait(self._attended(ref), check_condition(condition), self._events)

    def host_of(self, container: Container) -> CommandHost:
        """Where commands in a container run."""
        run = self.run_of(container.id)
        if run is None:
            raise BadRequestError(f"container is not running: {container.id}")
        return run

"""All executions: started, found by id, kept for a while after their end, taken over from a former agent."""

from __future__ import annotations

import asyncio
import os
import struct
import time
from fcntl import ioctl
from signal import SIGKILL
from termios import TIOCGWINSZ, TIOCSWINSZ

from arcbox_agent._spawn import SpawnError
from arcbox_agent.agent.config import budget
from arcbox_agent.agent.containers import ids
from arcbox_agent.agent.containers.runtimes.process import pid_file
from arcbox_agent.agent.containers.runtimes.process.spawning import EndedUnseenError, Spawning
from arcbox_agent.agent.containers.runtimes.protocol import interpreter_of, reason
from arcbox_agent.agent.containers.signals import parse_signal
from arcbox_agent.agent.containers.tasks import Tasks, take_failure
from arcbox_agent.agent.executions import record as records
from arcbox_agent.agent.executions.execution import Execution
from arcbox_agent.agent.executions.parts import Parts
from arcbox_agent.agent.executions.prepare import MOST_CELLS, SCOPE_PREFIX, Preparation
from arcbox_agent.agent.executions.reading import SpoolReader
from arcbox_agent.agent.executions.record import Record
from arcbox_agent.agent.executions.recover import recover
from arcbox_agent.agent.executions.spools import Input, Spooler
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.processes import environment
from arcbox_agent.agent.processes.spawning import HungError
from arcbox_agent.errors import (
    AgentFailedError,
    BadRequestError,
    BusyError,
    ConfigError,
    ConflictError,
    NotFoundError,
)
from arcbox_agent.wire import StartExecutionRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.containers.runtimes.protocol import CommandHost
    from arcbox_agent.agent.metrics import Metrics
    from arcbox_agent.agent.processes.children import Process, Processes
    from arcbox_agent.agent.processes.keeper import Keeper
    from arcbox_agent.agent.processes.lanes import Lanes
    from arcbox_agent.wire import ExecRequest

log = Logger("executions")

#: The longest key of a repeated request, in characters.
MAX_KEY = 256
#: The most bytes of a request: it is kept on disk.
MAX_REQUEST = 8 << 20
#: Executions that are taken over at one time.
AT_ONCE = 64
#: Seconds between two looks at what is kept too long.
LOOK = 1.0
MOST_KEEP_MS = 31 * 86400 * 1000


class Executions:
    """See the module."""

    def __init__(
        self, settings: Settings, metrics: Metrics, processes: Processes, keeper: Keeper, lanes: Lanes, boot_id: str
    ) -> None:
        loop = asyncio.get_running_loop()
        self._settings = settings
        self._tasks = Tasks()
        self._parts = Parts(
            loop,
            settings.state_dir,
            settings.run_dir,
            processes,
            keeper,
            lanes,
            Spooler(loop),
            self._tasks,
            boot_id,
            settings.late_output,
            self._ended,
        )
        self._executions: dict[str, Execution] = {}
        self._keys: dict[str, str] = {}
        #: Starts under way, by id.
        self._starting: dict[str, asyncio.Task[Execution]] = {}
        #: When each that has ended is removed (loop time), the one that ended first at the front.
        self._kept: dict[str, float] = {}
        #: Of output that those have.
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._number = 0
        self._closing = False
        metrics.gauge("executions", lambda: len(self._executions), "Executions that are kept, ended ones included.")
        metrics.gauge("executions_running", self._count_running, "Executions that run.")

    def _count_running(self) -> int:
        return len(self._executions) - len(self._kept)

    # ------------------------------------------------------ open and close

    async def open(self, keys: Collection[str]) -> None:
        """Load what a former agent left, and take over what runs.  `keys`: what the keeper has for no container.

        ConfigError: state_dir cannot be used.
        """
        parts = self._parts
        try:
            await parts.lanes.disk(_make, parts.state_dir)
            found = await parts.lanes.disk(records.load, parts.state_dir)
        except OSError as error:
            raise ConfigError("state_dir", f"{error.filename}: {error.strerror}") from error
        gate = asyncio.Semaphore(AT_ONCE)

        async def take_over(record: Record) -> Execution | None:
            async with gate:
                return await recover(parts, record)

        by_age = sorted(found, key=lambda each: each.created_ns)
        left = set()
        for record, taken in zip(
            by_age, await asyncio.gather(*map(take_over, by_age), return_exceptions=True), strict=True
        ):
            if isinstance(taken, BaseException):
                # The others go on, and what it has stays for the next agent.
                log.exception("an execution cannot be taken over, and is left as it is", taken, execution=record.id)
                left.add(f"x/{record.id}")
            elif taken is not None:
                self._add(taken)
                self.hold(taken)
        for key in keys:
            if key not in left and not self._keeps(key):
                await parts.keeper.drop(key)
        if found:
            log.info("executions loaded", executions=len(found), running=self._count_running())

    def _keeps(self, key: str) -> bool:
        """Whether what the keeper has under `key` is that of an execution which runs."""
        execution = self._executions.get(key.removeprefix("x/"))
        return execution is not None and execution.running

    async def close(self, stop: bool) -> None:
        """What runs is ended, or goes on, and the next agent takes it over."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        if self._starting:
            await asyncio.wait(self._starting.values(), timeout=budget.COMMANDS_ENDED)
        running = [each for each in self._executions.values() if each.running]
        if stop and running:
            for each in running:
                self._tasks.spawn_detached(each.kill_all())
            await asyncio.wait([each.ends for each in running], timeout=budget.COMMANDS_ENDED)
        for execution in self._executions.values():
            execution.leave()
        await self._parts.spooler.close()
        await self._tasks.close()

    # --------------------------------------------------------------- start

    async def start(self, request: StartExecutionRequest, host_of: Callable[[ExecRequest], CommandHost]) -> Execution:
        """Start a command, or find the one that the same request started before.  `host_of`: where it runs.

        BadRequestError, ConflictError, BusyError; AgentFailedError: it cannot be started.
        """
        command, key = request.command, request.idempotency_key
        assert command is not None
        id = ids.check(request.id, "execution id") if request.id else ""
        if len(key) > MAX_KEY:
            raise BadRequestError(f"the idempotency_key is longer than {MAX_KEY} characters")
        # What tells two commands apart, and is kept: all but their names.
        request.id = request.idempotency_key = ""
        octets = request.encode()
        if len(octets) > MAX_REQUEST:
            raise BadRequestError(f"command and environment are larger than {MAX_REQUEST} bytes")
        id = id or self._keys.get(key, "") or ids.new_id()
        if key:
            known = self._keys.setdefault(key, id)
            if known != id:
                raise ConflictError(f"the idempotency_key is that of execution {known}")
        task = self._starting.get(id)
        if task is None and id not in self._executions:
            try:
                self._check_bounds()
                host = host_of(command)
                record = self._record_of(request, id, key)
            except BaseException:
                self._started(id, key)
                raise
            task = self._tasks.spawn(self._start(record, request, octets, host))
            self._starting[id] = task
            task.add_done_callback(lambda _: self._started(id, key))
            # Shielded: a client that goes away leaves no half start behind.
            return await asyncio.shield(task)
        execution = await asyncio.shield(task) if task is not None else self._executions[id]
        try:
            kept = await self._parts.lanes.disk(records.read, self._parts.state(id, "request"))
        except (OSError, records.RecordError) as error:
            raise AgentFailedError(f"what execution {id} was started with cannot be read: {error}") from error
        if StartExecutionRequest.decode(kept) != request:
            raise ConflictError(f"execution {id} is another command")
        return execution

    def _started(self, id: str, key: str) -> None:
        self._starting.pop(id, None)
        if id not in self._executions and self._keys.get(key) == id:
            del self._keys[key]

    def _check_bounds(self) -> None:
        if self._closing:
            raise AgentFailedError("the agent is stopping")
        if self._count_running() + len(self._starting) >= self._settings.max_execs:
            raise BusyError(f"max_execs = {self._settings.max_execs} executions run already: try again later")
        while len(self._executions) + len(self._starting) >= self._settings.max_executions and self._kept:
            self._forget(next(iter(self._kept)))

    def _record_of(self, request: StartExecutionRequest, id: str, key: str) -> Record:
        command = request.command
        assert command is not None
        environment.check(command.cmd, command.env)
        environment.check_working_dir(command.working_dir)
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        most = self._settings.execution_spool_size
        return Record(
            id,
            key=key,
            container_id=command.container_id,
            cmd=list(command.cmd),
            user=command.user,
            tty=command.tty,
            open_stdin=request.open_stdin,
            spool_limit=min(request.spool_limit, most) or most,
            wait_when_full=request.wait_when_full,
            keep_ms=min(request.keep_ms, MOST_KEEP_MS),
            boot_id=self._parts.boot_id,
            created_ns=time.time_ns(),
            deadline_ns=now + min(command.timeout_ms, MOST_KEEP_MS) * 1_000_000 if command.timeout_ms else 0,
        )

    async def _start(
        self, record: Record, request: StartExecutionRequest, octets: bytes, host: CommandHost
    ) -> Execution:
        parts = self._parts
        command = request.command
        assert command is not None
        command.detach = True  # it gets a scope of its own
        self._number += 1
        preparation = Preparation(
            record,
            command,
            host,
            parts.state(record.id),
            parts.run(record.id),
            f"{SCOPE_PREFIX}{os.getpid()}-{self._number}",
        )
        execution = Execution(parts, record, None, None)
        execution.share = host.key
        spawned = False
        try:
            await self._prepare(preparation, host, octets, execution)
            execution.channels, execution.scope = preparation.channels, preparation.scope
            assert execution.channels is not None
            parts.spooler.add(execution.channels)
            parts.keeper.hold(execution.key, execution)
            # Before the spawn: it could write and end while no agent is there.
            await parts.keeper.keep(execution.key, execution.descriptors(), anew=True)
            spawned = True
            process = await self._spawn(execution, preparation, host)
        except asyncio.CancelledError:
            raise  # the agent ends: the pid file tells the next one what became of it
        except BaseException as error:
            if execution.channels is not None:
                await parts.spooler.release(execution.channels)
                preparation.channels = None
            if spawned:
                preparation.spec = None  # the spawn has closed it
            await parts.keeper.drop(execution.key)
            await parts.lanes.removal.submit(host.key, preparation.undo)
            raise _start_error(error, command.cmd[0], preparation.cwd) from error
        self._add(execution)
        self.hold(execution)
        if process is not None:
            execution.begin(process)
            if host.ended:
                self._tasks.spawn_detached(execution.kill_all())
        return execution

    async def _prepare(self, preparation: Preparation, host: CommandHost, octets: bytes, execution: Execution) -> None:
        def late(result: None, error: BaseException | None) -> None:
            self._parts.lanes.removal.submit(host.key, preparation.undo).add_done_callback(take_failure)

        work = self._parts.lanes.spawn.submit(host.key, preparation.prepare, octets, execution.changed, late=late)
        try:
            async with asyncio.timeout(budget.SPAWNED):
                await work
        except TimeoutError:
            raise AgentFailedError(
                f"exec failed: not prepared within {budget.SPAWNED:g} s: a file system that it needs hangs"
            ) from None

    async def _spawn(self, execution: Execution, preparation: Preparation, host: CommandHost) -> Process | None:
        """None: the keeper was killed during the spawn, and what it had started has ended."""
        parts = self._parts
        spec, scope = preparation.spec, preparation.scope
        assert spec is not None
        assert scope is not None
        path = parts.run(execution.id, pid_file.NAME)

        def kill() -> None:
            parts.lanes.signals.submit(host.key, pid_file.kill, path).add_done_callback(take_failure)
            parts.lanes.signals.submit(host.key, scope.kill).add_done_callback(take_failure)

        spawning = Spawning(parts.keeper, execution.key, spec, path, kill, share=host.key)
        try:
            process = await spawning.run(parts.processes)
        except EndedUnseenError:
            execution.finish(None, cut=True)
            return None
        scope.bind(process.pid, process.start_time)
        if process.pidfd >= 0 and spawning.generation != parts.keeper.generation:
            execution.process = process
            await parts.keeper.keep(execution.key, execution.descriptors(), anew=True)
        return process

    # -------------------------------------------------------------- lookup

    def resolve(self, ref: str) -> Execution:
        """By its id, or a beginning that no other has.  NotFoundError, ConflictError."""
        found = self._executions.get(ref)
        if found is not None:
            return found
        fitting = [each for id, each in self._executions.items() if ref and id.startswith(ref)]
        if not fitting:
            raise NotFoundError(f"execution not found: {ref}")
        if len(fitting) > 1:
            raise ConflictError(f"ambiguous execution id: {ref} is the beginning of {len(fitting)} ids")
        return fitting[0]

    def list(self, container_id: str = "", all: bool = False) -> list[Execution]:
        """In order of creation."""
        return [
            each
            for each in self._executions.values()
            if (all or each.running) and (not container_id or each.record.container_id == container_id)
        ]

    # ------------------------------------------------------------- changes

    def hold(self, execution: Execution) -> None:
        """The command waits for those who are attached, where it is to lose nothing; after the last one for a while."""
        channels = execution.channels
        if channels is None or not execution.record.wait_when_full:
            return
        loop, moved = self._parts.loop, False
        for output in channels.outputs:
            taken = [each.outputs[output.name].taken for each in execution.attached if output.name in each.outputs]
            if execution.attached:
                # What nobody wants of it need not be waited for.
                output.floor = max(min(taken), output.floor or 0) if taken else None
                moved = moved or output.blocked == "full"
        if execution.attached:
            execution.hold_until = 0.0
        elif not execution.hold_until:
            execution.hold_until = loop.time() + self._settings.execution_wait
            loop.call_later(self._settings.execution_wait, self._let_go, execution)
        if moved:
            self._parts.spooler.move(channels)

    def _let_go(self, execution: Execution) -> None:
        """No reader has come back: the command goes on, and its oldest output is dropped."""
        channels = execution.channels
        if channels is None or not execution.hold_until or self._parts.loop.time() < execution.hold_until:
            return
        for output in channels.outputs:
            output.floor = None
        self._parts.spooler.move(channels)

    async def write(self, execution: Execution, offset: int, octets: bytes, close: bool) -> None:
        """See Execution.write; returns when it is accepted."""
        execution.write(offset, octets, close)
        await self._until_input(execution, lambda stdin: stdin.accepted == stdin.queued)

    async def write_next(self, execution: Execution, octets: bytes) -> None:
        """Write behind what was written before; waits while there is no room for it."""
        await self._until_input(execution, lambda stdin: stdin.until() - stdin.queued >= len(octets))
        if execution.channels is not None and execution.channels.input is not None:
            execution.write(execution.channels.input.queued, octets, close=not octets)

    async def _until_input(self, execution: Execution, holds: Callable[[Input], bool]) -> None:
        """Until that holds for its input, or nobody reads that any more."""
        waits: asyncio.Future[None] = self._parts.loop.create_future()

        def look() -> None:
            stdin = execution.channels.input if execution.channels is not None else None
            if not waits.done() and (stdin is None or stdin.over or holds(stdin)):
                waits.set_result(None)

        token = object()
        execution.watchers[token] = look
        try:
            look()
            await waits
        finally:
            del execution.watchers[token]

    def resize(self, execution: Execution, rows: int, columns: int) -> None:
        """BadRequestError: it has no terminal."""
        if not execution.record.tty:
            raise BadRequestError(f"execution {execution.id} has no terminal")
        if execution.channels is None or execution.channels.outputs[0].fd < 0:
            return
        master = execution.channels.outputs[0].fd
        old_rows, old_columns, *pixels = struct.unpack("HHHH", ioctl(master, TIOCGWINSZ, bytes(8)))
        size = min(rows, MOST_CELLS) or old_rows, min(columns, MOST_CELLS) or old_columns
        ioctl(master, TIOCSWINSZ, struct.pack("HHHH", *size, *pixels))

    def signal(self, execution: Execution, signal: str) -> None:
        """To its process.  BadRequestError: there is no such signal.  ConflictError: it has ended."""
        number = parse_signal(signal or "TERM")
        self._check_running(execution)
        if number == SIGKILL:
            execution.asked_to_die = True
        if execution.process is not None:
            execution.process.send_signal(number)

    async def signal_all(self, execution: Execution, signal: str) -> None:
        """The same, to all that it started."""
        number = parse_signal(signal or "TERM")
        self._check_running(execution)
        if number == SIGKILL:
            execution.asked_to_die = True
            await execution.kill_all()
        elif execution.scope is not None:
            await self._parts.lanes.signals.submit(execution.share, execution.scope.send_signal, number)

    def _check_running(self, execution: Execution) -> None:
        if not execution.running:
            raise ConflictError(f"execution {execution.id} has ended")

    def reader(self, execution: Execution) -> SpoolReader:
        """For what it wrote."""
        return SpoolReader(execution, self._parts.state(execution.id))

    async def remove(self, ref: str, force: bool) -> None:
        """ConflictError: it runs, and is not to be killed."""
        execution = self.resolve(ref)
        if execution.running:
            if not force:
                raise ConflictError(f"execution {execution.id} runs: end it first, or remove it by force")
            execution.asked_to_die = True
            await execution.kill_all()
            await asyncio.shield(execution.ends)
        self._forget(execution.id)

    # --------------------------------------------------------------- its end

    def _add(self, execution: Execution) -> None:
        self._executions[execution.id] = execution
        if execution.record.key:
            self._keys[execution.record.key] = execution.id
        if not execution.running:
            self._ended(execution.id)

    def _ended(self, id: str) -> None:
        execution = self._executions.get(id)
        if execution is None:
            return
        keep = execution.record.keep_ms / 1000 or self._settings.execution_keep
        since = max(0.0, (time.time_ns() - execution.record.ended_ns) / 1e9)
        left = keep - min(since, keep)
        self._kept[id] = self._parts.loop.time() + left
        self._bytes += _size_of(execution)
        while self._bytes > self._settings.execution_spool_total and self._kept:
            self._forget(next(iter(self._kept)))
        if self._timer is None and not self._closing:
            self._timer = self._parts.loop.call_later(min(max(left, 0.1), LOOK), self._look)

    def _look(self) -> None:
        """Remove what is kept too long."""
        now = self._parts.loop.time()
        for id in [id for id, until in self._kept.items() if until <= now]:
            self._forget(id)
        self._timer = self._parts.loop.call_later(LOOK, self._look) if self._kept else None

    def _forget(self, id: str) -> None:
        execution = self._executions.pop(id, None)
        if execution is None:
            return
        if self._kept.pop(id, None) is not None:
            self._bytes -= _size_of(execution)
        if self._keys.get(execution.record.key) == id:
            del self._keys[execution.record.key]
        execution.gone = True
        execution.changed()
        self._parts.lanes.disk(records.remove, self._parts.state(id)).add_done_callback(take_failure)


def _size_of(execution: Execution) -> int:
    """Bytes of output that are kept."""
    return sum(end - begin for _, begin, end, _ in execution.outputs())


def _make(path: str) -> None:
    os.makedirs(path, mode=0o700, exist_ok=True)


def _start_error(error: BaseException, program: str, cwd: str) -> BaseException:
    """As exec says it."""
    if isinstance(error, HungError):
        return AgentFailedError(f"exec failed: {error}")
    if isinstance(error, SpawnError):
        if error.step == "exec":
            return AgentFailedError(
                f"exec failed: {error.strerror} (os error {error.errno}): {program}{interpreter_of(error)}"
            )
        return AgentFailedError(f"exec failed: {reason(error, program, cwd, ())}")
    if isinstance(error, OSError):
        return AgentFailedError(f"exec failed: {error.strerror} (os error {error.errno})")
    return error

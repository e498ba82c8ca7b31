"""A container in memory: its record, its run if there is one, and who waits for what."""

from __future__ import annotations

import asyncio

from arcbox_agent.agent.containers import record as states
from arcbox_agent.wire import ContainerInfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_agent.agent.containers.record import Record
    from arcbox_agent.agent.containers.runtimes.protocol import Running


class Exit:
    """How a container ended, as a Wait is told it."""

    __slots__ = ("code", "error", "signal")

    def __init__(self, code: int, signal: int, error: str) -> None:
        self.code = code
        self.signal = signal
        self.error = error


class Container:
    """One container.  Only service.py and supervisor.py change one.

    `lock` is held while it goes from one state to another (a start, a removal, the
    recording of an exit), never while somebody waits for it to end.
    """

    __slots__ = (
        "_listeners",
        "exit_waiters",
        "lock",
        "log_path",
        "output_finished",
        "record",
        "removal_waiters",
        "removed",
        "running",
        "stop_deadline",
        "stop_hastened",
        "stopper",
        "unattended",
        "watcher",
    )

    def __init__(self, record: Record, log_path: str) -> None:
        self.record = record
        self.log_path = log_path
        self.lock = asyncio.Lock()
        self.running: Running | None = None
        #: It runs, as far as is known, and this agent could not take it over.
        self.unattended = False
        #: The output of the present run is all in the log, and nothing runs.
        self.output_finished = True
        self.removed = False
        self.watcher: asyncio.Task[None] | None = None
        #: A Stop under way: until when (loop time) it is patient.
        self.stop_deadline: float | None = None
        self.stop_hastened = asyncio.Event()
        self.stopper: asyncio.Task[None] | None = None
        self.exit_waiters: set[asyncio.Future[Exit]] = set()
        self.removal_waiters: set[asyncio.Future[Exit]] = set()
        self._listeners: list[Callable[[], None]] = []

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def run(self) -> int:
        return self.record.run

    @property
    def state(self) -> str:
        """`created`, `running` or `stopped`: what a peer is told."""
        if self.running is not None or self.unattended:
            return states.RUNNING
        if self.record.finished_ns or self.record.state == states.STOPPED:
            return states.STOPPED
        return states.CREATED

    @property
    def status(self) -> str:
        state = self.state
        if state == states.CREATED:
            return "Created"
        if state == states.RUNNING:
            return f"Running (PID: {self.record.pid})"
        return "Stopped" if self.record.stopped else f"Exited ({self.record.exit_code})"

    def last_exit(self) -> Exit:
        record = self.record
        return Exit(record.exit_code, record.signal, record.error)

    def describe(self, detail: bool) -> ContainerInfo:
        record = self.record
        info = ContainerInfo(
            id=record.id,
            name=record.name,
            image=record.image,
            state=self.state,
            status=self.status,
            created=record.created_ns // 1_000_000_000,
        )
        if detail:
            info.pid = record.pid if self.state == states.RUNNING else 0
            info.exit_code = record.exit_code
            info.signal = record.signal
            info.started_at = record.started_ns
            info.finished_at = record.finished_ns
            info.command = list(record.command)
            info.error = record.error
            info.warnings = list(record.warnings)
            info.tty = record.tty
            info.user = record.user
            info.rootfs = record.rootfs
        return info

    def output_is_over(self) -> bool:
        """Nothing more will be written, until it is started again."""
        return self.running is None and self.output_finished

    def add_output_listener(self, callback: Callable[[], None]) -> None:
        """`callback` is called when `output_finished` becomes true, and at the removal."""
        self._listeners.append(callback)

    def remove_output_listener(self, callback: Callable[[], None]) -> None:
        if callback in self._listeners:
            self._listeners.remove(callback)

    def tell_listeners(self) -> None:
        for callback in list(self._listeners):
            callback()

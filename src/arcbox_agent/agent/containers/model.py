"""A container in memory: its record, where it stands in its life, and its run if there is one."""

from __future__ import annotations

import asyncio
import signal

from arcbox_agent.agent.containers.events import Event, Exit
from arcbox_agent.agent.containers.lifecycle import LOADED, RECORDED, WINDING_UP, Life, State
from arcbox_agent.agent.containers.record import CREATED, RUNNING, STOPPED
from arcbox_agent.agent.containers.signals import signal_name
from arcbox_agent.wire import ContainerInfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_agent.agent.containers.events import Events
    from arcbox_agent.agent.containers.lifecycle import Transition, Trigger
    from arcbox_agent.agent.containers.record import Record
    from arcbox_agent.agent.containers.runtimes.protocol import Run


#: Seconds of a Stop that has no end: the most that its message can say.
NO_END = 0xFFFFFFFF

#: Nothing is written, until a start.
_AT_REST = frozenset({State.CREATED, State.STOPPED, State.ORPHANED, State.REMOVED})


class Stop:
    """A Stop that is under way: patient until `deadline` (loop time)."""

    __slots__ = ("deadline", "shortened")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.shortened = asyncio.Event()

    def shorten(self, deadline: float) -> None:
        """An earlier deadline holds at once; a later one changes nothing."""
        if deadline < self.deadline:
            self.deadline = deadline
            self.shortened.set()


class Container:
    """One container.  Only the supervisor and its parts change one.

    `lock` is held while it goes from one state to another (a start, a removal, the
    recording of an exit), never while somebody waits for it to end.
    """

    __slots__ = ("_events", "id", "life", "lock", "log_path", "record", "run", "stop", "watcher")

    def __init__(self, record: Record, log_path: str, events: Events) -> None:
        self.id = record.id
        self.record = record
        self.log_path = log_path
        self.lock = asyncio.Lock()
        self.life = Life()
        #: The runtime's handle of the present run; None: the life is not `active`.
        self.run: Run | None = None
        #: Waits for the end of the present or the last run.
        self.watcher: asyncio.Task[None] | None = None
        self.stop: Stop | None = None
        self._events = events

    @classmethod
    def load(cls, record: Record, log_path: str, events: Events) -> Container:
        """A container as its record on disk describes it, before the supervisor finds out what is true."""
        container = cls(record, log_path, events)
        ran = record.finished_ns or record.state == STOPPED
        container.life = Life(LOADED[record.state], State.STOPPED if ran else State.CREATED)
        return container

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def stop_signal(self) -> int:
        return self.record.stop_signal or signal.SIGTERM

    @property
    def stop_timeout(self) -> float | None:
        """The seconds that a Stop leaves it; None: it has no say in that."""
        milliseconds = self.record.stop_timeout_ms
        if milliseconds < 0:
            return NO_END
        return min(milliseconds / 1000, NO_END) if milliseconds else None

    # ---------------------------------------------------------------- life

    @property
    def active(self) -> bool:
        """There is a run: from its start until its end is recorded."""
        return self.life.active

    @property
    def winding_up(self) -> bool:
        """The main process has ended, and the container is not `stopped` yet."""
        return self.life.state in WINDING_UP

    def check(self, trigger: Trigger) -> Transition:
        """See Life.check."""
        return self.life.check(trigger, self.record.id)

    def move(self, trigger: Trigger) -> Transition:
        """Make a transition, and spell the new state in the record.  Raises as Life.check does."""
        transition = self.life.move(trigger, self.record.id)
        self.record.state = RECORDED[self.life.state]
        return transition

    def publish(self, transition: Transition) -> None:
        """Publish a transition's event, if it has one."""
        if transition.publish is not None:
            record = self.record
            self._events.publish(
                Event(transition.publish, record.id, record.name, record.run, record.pid, self.last_exit())
            )

    def next_run_to_end(self) -> int:
        """The number of the present run, or of the next one."""
        return self.record.run + (not self.active and self.life.state is not State.STARTING)

    # ---------------------------------------------------------- description

    @property
    def state(self) -> str:
        """`created`, `running` or `stopped`: what a client sees."""
        return self.life.shown

    @property
    def status(self) -> str:
        state = self.state
        if state == CREATED:
            return "Created"
        if state == RUNNING:
            return f"Running (PID: {self.record.pid})"
        return "Stopped" if self.record.stopped else f"Exited ({self.record.exit_code})"

    def last_exit(self) -> Exit:
        """How the last run ended; code 0 and no error where there was none."""
        record = self.record
        return Exit(record.exit_code, record.signal, record.error, record.lost, record.output_cut)

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
            info.pid = record.pid if self.state == RUNNING else 0
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
            info.stop_signal = signal_name(self.stop_signal)
            info.stop_timeout_ms = record.stop_timeout_ms
        return info

    # -------------------------------------------------------------- output

    def output_is_over(self) -> bool:
        """Nothing more will be written, until it is started again."""
        return not self.active

    def next_run_is_over(self) -> Callable[[], bool]:
        """As `output_is_over`, for the present run, or where there is none for the next one."""
        run = self.next_run_to_end()
        return lambda: self.life.state in _AT_REST and (self.record.run >= run or self.life.state is State.REMOVED)

    def add_output_listener(self, listener: Callable[[], None]) -> None:
        """`listener` is called after every event of the container: `output_is_over` may answer otherwise now."""
        self._events.listen(self.record.id, listener)

    def remove_output_listener(self, listener: Callable[[], None]) -> None:
        self._events.unlisten(self.record.id, listener)

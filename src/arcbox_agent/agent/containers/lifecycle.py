"""The life of a container as a table: state x trigger -> next state, what is written, what is published.

    NEW -> CREATED -> STARTING -> RUNNING -> ENDING -> RECORDING -> STOPPED -> STARTING ...
                                     |                    ^
                                 STOPPING -> STOPPING_ENDING

Nothing here does anything.  The supervisor asks the table for a transition, carries it out, and
cannot carry out one that the table does not have.
"""

from __future__ import annotations

import enum

from arcbox_agent.agent.containers import record
from arcbox_agent.errors import AgentFailedError, ConflictError, NotFoundError, RequestError


class State(enum.Enum):
    """Where a container stands.  REST stands for the state of rest that it came from: CREATED or STOPPED."""

    #: Made in memory, not on disk yet.
    NEW = "new"
    #: At rest: it never ran.
    CREATED = "created"
    #: The intent to start is being written, or the runtime starts it.
    STARTING = "starting"
    #: Its main process runs.
    RUNNING = "running"
    #: The same, and a Stop is under way.
    STOPPING = "stopping"
    #: The main process has ended; what it left behind is killed, and the rest of the output is read.
    ENDING = "ending"
    #: The same during a Stop: what the main process left behind has the Stop's time to end.
    STOPPING_ENDING = "stopping-ending"
    #: Nothing of the run is left; its end is being written.
    RECORDING = "recording"
    #: At rest: it ran.
    STOPPED = "stopped"
    #: The record says that it runs or is being started, and this agent has not adopted it.
    ORPHANED = "orphaned"
    REMOVING = "removing"
    REMOVED = "removed"

    REST = "rest"

    # By identity: the standard hash, of the name, costs a Python call in every look-up.
    __hash__ = object.__hash__


class Trigger(enum.Enum):
    """What takes a container from one state to another."""

    #: A client's call.
    CREATE = "create"
    START = "start"
    STOP = "stop"
    KILL = "kill"
    REMOVE = "remove"
    #: The intent to start cannot be written.
    START_REFUSED = "start-refused"
    START_FAILED = "start-failed"
    STARTED = "started"
    MAIN_ENDED = "main-ended"
    ALL_ENDED = "all-ended"
    #: The end is on disk, or will be as soon as the disk takes it.
    END_RECORDED = "end-recorded"
    #: After a restart of the agent: the run was found.
    ADOPTED = "adopted"
    #: After a restart of the agent: the start that was under way did not happen.
    NEVER_STARTED = "never-started"
    REMOVE_FAILED = "remove-failed"
    #: After a restart of the agent: the removal failed again, and the record keeps the intent for the next agent.
    REMOVE_DEFERRED = "remove-deferred"
    REMOVE_DONE = "remove-done"

    __hash__ = object.__hash__


class Write(enum.Enum):
    """What of a transition is written to the container's record, and what happens where that fails."""

    NOTHING = "nothing"
    #: A failed write undoes the transition.
    REQUIRED = "required"
    #: A failed write is ignored.
    ATTEMPTED = "attempted"
    #: It has happened: a failed write is repeated until the disk takes it.
    REPEATED = "repeated"
    #: The same, but a power failure may take it back.
    REPEATED_UNSYNCED = "repeated-unsynced"


class Kind(enum.Enum):
    """Of a published event."""

    CREATE = "create"
    START = "start"
    START_FAILED = "start-failed"
    ADOPT = "adopt"
    NEVER_STARTED = "never-started"
    DIE = "die"
    REMOVE = "remove"

    __hash__ = object.__hash__


class Transition:
    """One entry of the table: the next state, what is written, and the event that is published when it is done."""

    __slots__ = ("publish", "to", "write")

    def __init__(self, to: State, write: Write = Write.NOTHING, publish: Kind | None = None) -> None:
        self.to = to
        self.write = write
        self.publish = publish


class LifecycleError(Exception):
    """A transition of the agent's own that the table does not have: a fault of the agent."""


TABLE: dict[State, dict[Trigger, Transition]] = {
    State.NEW: {
        Trigger.CREATE: Transition(State.CREATED, Write.REQUIRED, Kind.CREATE),
    },
    State.CREATED: {
        Trigger.START: Transition(State.STARTING, Write.REQUIRED),
        Trigger.REMOVE: Transition(State.REMOVING, Write.ATTEMPTED),
    },
    State.STARTING: {
        # The runtime was not asked, and the disk has the former record or is repaired by the next write.
        Trigger.START_REFUSED: Transition(State.REST),
        Trigger.START_FAILED: Transition(State.REST, Write.REPEATED, Kind.START_FAILED),
        # After a power failure nothing runs any more, and the intent to start is on disk.
        Trigger.STARTED: Transition(State.RUNNING, Write.REPEATED_UNSYNCED, Kind.START),
    },
    State.RUNNING: {
        Trigger.STOP: Transition(State.STOPPING),
        Trigger.KILL: Transition(State.RUNNING),
        Trigger.MAIN_ENDED: Transition(State.ENDING),
    },
    State.STOPPING: {
        # A second Stop joins the first.
        Trigger.STOP: Transition(State.STOPPING),
        Trigger.KILL: Transition(State.STOPPING),
        Trigger.MAIN_ENDED: Transition(State.STOPPING_ENDING),
    },
    State.ENDING: {
        Trigger.STOP: Transition(State.STOPPING_ENDING),
        Trigger.ALL_ENDED: Transition(State.RECORDING, Write.REPEATED),
    },
    State.STOPPING_ENDING: {
        Trigger.STOP: Transition(State.STOPPING_ENDING),
        Trigger.ALL_ENDED: Transition(State.RECORDING, Write.REPEATED),
    },
    State.RECORDING: {
        Trigger.END_RECORDED: Transition(State.STOPPED, publish=Kind.DIE),
    },
    State.STOPPED: {
        Trigger.START: Transition(State.STARTING, Write.REQUIRED),
        Trigger.REMOVE: Transition(State.REMOVING, Write.ATTEMPTED),
    },
    State.ORPHANED: {
        Trigger.ADOPTED: Transition(State.RUNNING, Write.REPEATED_UNSYNCED, Kind.ADOPT),
        Trigger.NEVER_STARTED: Transition(State.REST, Write.REPEATED, Kind.NEVER_STARTED),
    },
    State.REMOVING: {
        # As a new agent finds it, which goes on with the removal.
        Trigger.REMOVE: Transition(State.REMOVING, Write.ATTEMPTED),
        Trigger.REMOVE_FAILED: Transition(State.REST, Write.REPEATED),
        Trigger.REMOVE_DEFERRED: Transition(State.REST),
        # The record is deleted already, as the last of its files.
        Trigger.REMOVE_DONE: Transition(State.REMOVED, publish=Kind.REMOVE),
    },
    State.REMOVED: {},
}

#: There is a run, from the runtime's answer to the record of its end.
ACTIVE = frozenset((State.RUNNING, State.STOPPING, State.ENDING, State.STOPPING_ENDING, State.RECORDING))
#: The main process has ended, and the container is not at rest yet.
WINDING_UP = frozenset((State.ENDING, State.STOPPING_ENDING, State.RECORDING))

#: How the record spells a state; an orphan's record stays as it is, and a removed container has none.
RECORDED = {
    State.NEW: record.CREATED,
    State.CREATED: record.CREATED,
    State.STARTING: record.STARTING,
    State.RUNNING: record.RUNNING,
    State.STOPPING: record.RUNNING,
    State.ENDING: record.RUNNING,
    State.STOPPING_ENDING: record.RUNNING,
    State.RECORDING: record.STOPPED,
    State.STOPPED: record.STOPPED,
    State.REMOVING: record.REMOVING,
    State.REMOVED: record.REMOVING,
}

#: What a record's spelling means to an agent that has just read it.
LOADED = {
    record.CREATED: State.CREATED,
    record.STARTING: State.ORPHANED,
    record.RUNNING: State.ORPHANED,
    record.STOPPED: State.STOPPED,
    record.REMOVING: State.REMOVING,
}


class Life:
    """Where one container stands: its state, and the state of rest that it returns to (CREATED or STOPPED)."""

    __slots__ = ("rest", "state")

    def __init__(self, state: State = State.NEW, rest: State = State.CREATED) -> None:
        self.state = state
        self.rest = rest

    @property
    def active(self) -> bool:
        """There is a run."""
        return self.state in ACTIVE

    @property
    def shown(self) -> str:
        """`created`, `running` or `stopped`: what a client sees."""
        if self.state in ACTIVE or self.state is State.ORPHANED:
            return record.RUNNING
        return RECORDED[self.rest]

    def check(self, trigger: Trigger, id: str) -> Transition:
        """The transition that `trigger` makes from here; the error that says why there is none (see `refusal`)."""
        transition = TABLE[self.state].get(trigger)
        if transition is None:
            raise refusal(self.state, trigger, id)
        return transition

    def move(self, trigger: Trigger, id: str) -> Transition:
        """Make the transition; raises as `check` does, and stays where it is."""
        transition = self.check(trigger, id)
        self.state = self.rest if transition.to is State.REST else transition.to
        if self.state is State.CREATED or self.state is State.STOPPED:
            self.rest = self.state
        return transition


# ----------------------------------------------------------------- refusals

_NOT_FOUND = (NotFoundError, "container not found: {id}")

#: What a client's call says where the table has no transition for it; the texts are those of 0.0.1-alpha.1.
_REFUSALS: dict[Trigger, tuple[type[RequestError], str]] = {
    Trigger.START: (ConflictError, "container is already running"),
    Trigger.STOP: (ConflictError, "container is not running"),
    Trigger.KILL: (ConflictError, "container is not running: {id}"),
    Trigger.REMOVE: (ConflictError, "cannot remove running container (use force=true)"),
}
_REFUSALS_OF_STATE: dict[tuple[State, Trigger], tuple[type[RequestError], str]] = {
    (State.REMOVED, Trigger.START): _NOT_FOUND,
    (State.REMOVED, Trigger.REMOVE): _NOT_FOUND,
    (State.REMOVING, Trigger.START): (ConflictError, "container is being removed"),
}


def orphan_refusal(id: str) -> RequestError:
    """For every call that would change an orphan, or wait for it."""
    return AgentFailedError(
        f"the agent could not take over container {id}, which runs: "
        "see its log, and start the agent again with what it lacked"
    )


def refusal(state: State, trigger: Trigger, id: str) -> Exception:
    """Why `trigger` does nothing in `state`: a RequestError for a client's call, LifecycleError for the agent's own."""
    if trigger not in _REFUSALS:
        return LifecycleError(f"container {id}: no {trigger.value} in state {state.value}")
    if state is State.ORPHANED:
        return orphan_refusal(id)
    error, text = _REFUSALS_OF_STATE.get((state, trigger), _REFUSALS[trigger])
    return error(text.format(id=id))

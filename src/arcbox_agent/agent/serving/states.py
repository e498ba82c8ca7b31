"""A connection's states, and what brings it from one to the next.

    state       data that arrives         leaves it by
    REFUSING    its first frame gets the  CLOSE: the refusal has been sent
                refusal
    READING     is answered at once       CALL: a request takes a task;  TURN_OVER: others are due;
                                          UNSENT: the kernel did not take all replies
    YIELDING    waits in the inbox        GO_ON: the loop has come round
    ANSWERING   waits in the inbox, or    GO_ON: the task has ended
                belongs to the call
    DRAINING    waits in the inbox        GO_ON: the kernel has taken all
    CLOSING     is dropped                ABORT: the peer did not read the last replies in time
    ABORTED     is dropped                LOSS
    LOST        -                         -

Each state but LOST may also be left by LOSS, and each of the first five by CLOSE and by
ABORT.  What closes stays closed: a task or a turn that ends later (GO_ON) changes nothing.

    state \\ event   CALL       TURN_OVER  UNSENT    GO_ON    CLOSE    ABORT    LOSS
    REFUSING        -          -          -         -        CLOSING  ABORTED  LOST
    READING         ANSWERING  YIELDING   DRAINING  -        CLOSING  ABORTED  LOST
    YIELDING        -          -          -         READING  CLOSING  ABORTED  LOST
    ANSWERING       -          -          -         READING  CLOSING  ABORTED  LOST
    DRAINING        -          -          -         READING  CLOSING  ABORTED  LOST
    CLOSING         -          -          -         CLOSING  CLOSING  ABORTED  LOST
    ABORTED         -          -          -         ABORTED  ABORTED  ABORTED  LOST
    LOST            -          -          -         LOST     LOST     LOST     LOST

Three facts are no states, as each may be true in several: the peer has shut down its
sending side (Inbox.ended), we do not read (Inbox.paused), and the kernel has not taken
all (Outbox.blocked), which while a call streams is the call's own wait.
"""

from __future__ import annotations

from enum import IntEnum


class State(IntEnum):
    """In this order: from CLOSING on nothing is read, from ABORTED on nothing is sent."""

    READING = 0
    REFUSING = 1
    YIELDING = 2
    ANSWERING = 3
    DRAINING = 4
    CLOSING = 5
    ABORTED = 6
    LOST = 7


class Event(IntEnum):
    CALL = 0  # a request has a task
    TURN_OVER = 1  # it had its turn, and others are due
    UNSENT = 2  # no task, and replies that the kernel has not taken
    GO_ON = 3  # what was waited for is over
    CLOSE = 4  # the last reply is written, or none is owed
    ABORT = 5  # the peer is gone, or must go now
    LOSS = 6  # the transport is gone


_END = {Event.CLOSE: State.CLOSING, Event.ABORT: State.ABORTED, Event.LOSS: State.LOST}
_BUSY = {Event.GO_ON: State.READING, **_END}

#: state -> event -> state.  What is not in it cannot happen.
NEXT: dict[State, dict[Event, State]] = {
    State.REFUSING: _END,
    State.READING: {
        Event.CALL: State.ANSWERING,
        Event.TURN_OVER: State.YIELDING,
        Event.UNSENT: State.DRAINING,
        **_END,
    },
    State.YIELDING: _BUSY,
    State.ANSWERING: _BUSY,
    State.DRAINING: _BUSY,
    State.CLOSING: {**_END, Event.GO_ON: State.CLOSING},
    State.ABORTED: {**dict.fromkeys((Event.GO_ON, Event.CLOSE, Event.ABORT), State.ABORTED), Event.LOSS: State.LOST},
    State.LOST: dict.fromkeys((Event.GO_ON, Event.CLOSE, Event.ABORT, Event.LOSS), State.LOST),
}

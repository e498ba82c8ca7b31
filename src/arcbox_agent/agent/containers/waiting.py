"""WaitContainer: until a container does not run, ends the next time, or is removed."""

from __future__ import annotations

from arcbox_agent.agent.containers.lifecycle import Kind, State
from arcbox_agent.errors import BadRequestError, NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.containers.events import Event, Events, Exit
    from arcbox_agent.agent.containers.model import Container

NOT_RUNNING, NEXT_EXIT, REMOVED = CONDITIONS = ("not-running", "next-exit", "removed")


def check_condition(condition: str) -> str:
    """The condition, `not-running` where a client names none.  BadRequestError: there is no such one."""
    condition = condition or NOT_RUNNING
    if condition not in CONDITIONS:
        raise BadRequestError(f"unknown condition {condition!r}: it must be one of {', '.join(CONDITIONS)}")
    return condition


async def wait(container: Container, condition: str, events: Events) -> Exit:
    """How the container ended, when `condition` comes true.

    NotFoundError: it was removed before.  The error that Events.close was given: the agent stops.
    """
    if condition == NOT_RUNNING and not container.active and not container.lock.locked():
        return container.last_exit()
    events.check_open()
    if condition == NOT_RUNNING and not container.active:
        # A start or the end of a run is under way: its outcome decides.
        async with container.lock:
            if not container.active:
                return container.last_exit()
    # The run is named by its number: an event of an earlier run may still be to come.
    run = container.next_run_to_end()
    reader = events.reader(container.id)
    while True:
        missed, found = await reader.next()
        for event in found:
            if (end := _answer(event, condition, run)) is not None:
                return end
        if missed:
            if container.life.state is State.REMOVED:
                return _removed(container.id, condition, container.last_exit())
            if condition != REMOVED and container.next_run_to_end() > run:
                return container.last_exit()


def _answer(event: Event, condition: str, run: int) -> Exit | None:
    """What an event answers to a Wait for the end of `run` or for the removal; None: it goes on."""
    if event.kind is Kind.REMOVE:
        return _removed(event.id, condition, event.exit)
    if event.kind is Kind.DIE and condition != REMOVED and event.run >= run:
        return event.exit
    return None


def _removed(id: str, condition: str, end: Exit) -> Exit:
    if condition != REMOVED:
        raise NotFoundError(f"container was removed: {id}")
    return end

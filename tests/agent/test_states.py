"""A connection's states: the table in the docstring is the data that the code uses."""

from __future__ import annotations

from arcbox_agent.agent.serving import states
from arcbox_agent.agent.serving.states import NEXT, Event, State


def test_the_table_of_the_docstring_is_the_one_that_is_used() -> None:
    assert states.__doc__ is not None
    lines = [line.split() for line in states.__doc__.splitlines()]
    head = next(i for i, line in enumerate(lines) if line[:3] == ["state", "\\", "event"])
    events = [Event[name] for name in lines[head][3:]]
    assert events == list(Event)
    rows = {line[0]: line[1:] for line in lines[head + 1 : head + 1 + len(State)]}
    assert set(rows) == {state.name for state in State}
    for name, cells in rows.items():
        written = {event: State[cell] for event, cell in zip(events, cells, strict=True) if cell != "-"}
        assert NEXT[State[name]] == written


def test_every_state_is_reached_and_what_closes_stays_closed() -> None:
    reached = {State.READING, State.REFUSING}
    for _ in State:
        reached |= {after for state in reached for after in NEXT[state].values()}
    assert reached == set(State)
    for state in State:
        if state >= State.CLOSING:
            assert all(after >= state for after in NEXT[state].values())
        else:
            # Whatever a connection does, its peer may go away and the agent may end it.
            assert {Event.CLOSE, Event.ABORT, Event.LOSS} <= set(NEXT[state])

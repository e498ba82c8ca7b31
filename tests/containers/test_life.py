"""The table of a container's life: every state with every trigger, and every sequence of triggers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcbox_agent.agent.containers import lifecycle
from arcbox_agent.agent.containers.lifecycle import Kind, Life, LifecycleError, State, Trigger, Write, refusal
from arcbox_agent.agent.containers.record import STATES, Record
from arcbox_agent.errors import AgentFailedError, ConflictError, NotFoundError, RequestError

#: state, trigger -> next state, what is written, what is published.  What is not here is refused.
EXPECTED = {
    ("new", "create"): ("created", "required", "create"),
    ("created", "start"): ("starting", "required", None),
    ("created", "remove"): ("removing", "attempted", None),
    ("starting", "start-refused"): ("rest", "nothing", None),
    ("starting", "start-failed"): ("rest", "repeated", "start-failed"),
    ("starting", "started"): ("running", "repeated-unsynced", "start"),
    ("running", "stop"): ("stopping", "nothing", None),
    ("running", "kill"): ("running", "nothing", None),
    ("running", "main-ended"): ("ending", "nothing", None),
    ("stopping", "stop"): ("stopping", "nothing", None),
    ("stopping", "kill"): ("stopping", "nothing", None),
    ("stopping", "main-ended"): ("stopping-ending", "nothing", None),
    ("ending", "stop"): ("stopping-ending", "nothing", None),
    ("ending", "all-ended"): ("recording", "repeated", None),
    ("stopping-ending", "stop"): ("stopping-ending", "nothing", None),
    ("stopping-ending", "all-ended"): ("recording", "repeated", None),
    ("recording", "end-recorded"): ("stopped", "nothing", "die"),
    ("stopped", "start"): ("starting", "required", None),
    ("stopped", "remove"): ("removing", "attempted", None),
    ("orphaned", "adopted"): ("running", "repeated-unsynced", "adopt"),
    ("orphaned", "never-started"): ("rest", "repeated", "never-started"),
    ("removing", "remove"): ("removing", "attempted", None),
    ("removing", "remove-failed"): ("rest", "repeated", None),
    ("removing", "remove-deferred"): ("rest", "nothing", None),
    ("removing", "remove-done"): ("removed", "nothing", "remove"),
}

#: What a client sees of each state, where the container never ran and where it did; and its record's spelling.
SHOWN = {
    "new": ("created", "stopped", "created"),
    "created": ("created", "created", "created"),
    "starting": ("created", "stopped", "starting"),
    "running": ("running", "running", "running"),
    "stopping": ("running", "running", "running"),
    "ending": ("running", "running", "running"),
    "stopping-ending": ("running", "running", "running"),
    "recording": ("running", "running", "stopped"),
    "stopped": ("stopped", "stopped", "stopped"),
    "orphaned": ("running", "running", None),
    "removing": ("created", "stopped", "removing"),
    "removed": ("created", "stopped", "removing"),
}

STATES_OF_LIFE = [state for state in State if state is not State.REST]
CALLS = (Trigger.CREATE, Trigger.START, Trigger.STOP, Trigger.KILL, Trigger.REMOVE)


@pytest.mark.parametrize("state", STATES_OF_LIFE)
@pytest.mark.parametrize("trigger", Trigger)
def test_a_trigger_makes_the_transition_of_the_table_or_none(state: State, trigger: Trigger) -> None:
    life = Life(state, State.STOPPED)
    expected = EXPECTED.get((state.value, trigger.value))
    if expected is None:
        with pytest.raises((RequestError, LifecycleError)):
            life.move(trigger, "x")
        assert life.state is state
        return
    to, write, published = expected
    transition = life.check(trigger, "x")
    assert life.state is state  # to look is not to move
    assert life.move(trigger, "x") is transition
    assert transition.to is State(to)
    assert transition.write is Write(write)
    assert transition.publish is (None if published is None else Kind(published))
    assert life.state is (State.STOPPED if to == "rest" else State(to))


@pytest.mark.parametrize("rest", [State.CREATED, State.STOPPED])
@pytest.mark.parametrize(
    ("state", "trigger"),
    [(State(state), Trigger(trigger)) for (state, trigger), to in EXPECTED.items() if to[0] == "rest"],
)
def test_what_comes_to_nothing_leads_back_to_where_it_began(state: State, trigger: Trigger, rest: State) -> None:
    life = Life(state, rest)
    life.move(trigger, "x")
    assert (life.state, life.rest) == (rest, rest)


@pytest.mark.parametrize(
    ("state", "trigger", "error", "text"),
    [
        *(
            (state, Trigger.START, ConflictError, "container is already running")
            for state in (
                State.STARTING,
                State.RUNNING,
                State.STOPPING,
                State.ENDING,
                State.STOPPING_ENDING,
                State.RECORDING,
            )
        ),
        (State.REMOVING, Trigger.START, ConflictError, "container is being removed"),
        (State.REMOVED, Trigger.START, NotFoundError, "container not found: x"),
        *(
            (state, Trigger.STOP, ConflictError, "container is not running")
            for state in (State.CREATED, State.STARTING, State.RECORDING, State.STOPPED, State.REMOVING, State.REMOVED)
        ),
        *(
            (state, Trigger.KILL, ConflictError, "container is not running: x")
            for state in (
                State.CREATED,
                State.STARTING,
                State.ENDING,
                State.STOPPING_ENDING,
                State.STOPPED,
                State.REMOVED,
            )
        ),
        *(
            (state, Trigger.REMOVE, ConflictError, "cannot remove running container (use force=true)")
            for state in (State.STARTING, State.RUNNING, State.STOPPING, State.ENDING, State.RECORDING)
        ),
        (State.REMOVED, Trigger.REMOVE, NotFoundError, "container not found: x"),
        *(
            (
                State.ORPHANED,
                trigger,
                AgentFailedError,
                "the agent could not take over container x, which runs: see its log, and start the agent again "
                "with what it lacked",
            )
            for trigger in (Trigger.START, Trigger.STOP, Trigger.KILL, Trigger.REMOVE)
        ),
        (State.CREATED, Trigger.STARTED, LifecycleError, "container x: no started in state created"),
        (State.RUNNING, Trigger.CREATE, LifecycleError, "container x: no create in state running"),
    ],
)
def test_a_refusal_says_why(state: State, trigger: Trigger, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        Life(state).move(trigger, "x")
    for refused in (refusal(state, trigger, "x"), caught.value):
        assert type(refused) is error
        assert (refused.message if isinstance(refused, RequestError) else str(refused)) == text


@pytest.mark.parametrize("state", STATES_OF_LIFE)
def test_what_a_client_sees_of_a_state_and_how_the_record_spells_it(state: State) -> None:
    fresh, ran, spelling = SHOWN[state.value]
    if state != State.STOPPED:
        assert Life(state, State.CREATED).shown == fresh
    if state != State.CREATED:
        assert Life(state, State.STOPPED).shown == ran
    assert lifecycle.RECORDED.get(state) == spelling


def test_there_is_a_run_from_its_start_until_its_end_is_on_disk() -> None:
    active = {state.value for state in STATES_OF_LIFE if Life(state).active}
    assert active == {"running", "stopping", "ending", "stopping-ending", "recording"}


def test_every_spelling_of_a_record_can_be_loaded() -> None:
    assert set(lifecycle.LOADED) == set(STATES)
    states = {spelling: lifecycle.LOADED[spelling].value for spelling in STATES}
    assert states == {
        "created": "created",
        "starting": "orphaned",
        "running": "orphaned",
        "stopped": "stopped",
        "removing": "removing",
    }


def test_every_state_can_be_reached_and_left_but_the_last() -> None:
    rest = {State.CREATED, State.STOPPED}
    reached = {each.to for row in lifecycle.TABLE.values() for each in row.values()} | rest
    assert set(STATES_OF_LIFE) - reached == {State.NEW, State.ORPHANED}  # where a life begins
    assert [state for state in STATES_OF_LIFE if not lifecycle.TABLE[state]] == [State.REMOVED]


@given(
    st.sampled_from([State.NEW, *lifecycle.LOADED.values()]),
    st.booleans(),
    st.lists(st.sampled_from(Trigger), max_size=60),
)
def test_every_sequence_of_triggers_leaves_a_valid_state(begin: State, ran: bool, triggers: list[Trigger]) -> None:
    never_ran = begin in (State.NEW, State.CREATED) or (begin is not State.STOPPED and not ran)
    life = Life(begin, State.CREATED if never_ran else State.STOPPED)
    published: list[Kind] = []
    for trigger in triggers:
        before = life.state, life.rest
        try:
            transition = life.move(trigger, "x")
        except RequestError:
            assert trigger in CALLS
            assert (life.state, life.rest) == before
        except LifecycleError:
            assert trigger not in CALLS or trigger is Trigger.CREATE
            assert (life.state, life.rest) == before
        else:
            if transition.publish is not None:
                published.append(transition.publish)
        assert life.state in lifecycle.TABLE
        assert life.rest in (State.CREATED, State.STOPPED)
        assert life.state not in (State.CREATED, State.STOPPED) or life.rest is life.state
        assert life.shown in ("created", "running", "stopped")
        # Who never ran is not shown as stopped, and who ran once never again as created.
        assert not (before[1] is State.STOPPED and life.rest is State.CREATED)
    # A run that begins is published once, and so is its end, in turn.
    runs = [kind for kind in published if kind in (Kind.START, Kind.ADOPT, Kind.DIE)]
    assert all((kind is Kind.DIE) == (number % 2 == 1) for number, kind in enumerate(runs))
    assert Kind.REMOVE not in published[:-1]


def test_a_record_that_is_new_is_spelled_as_a_container_that_was_created() -> None:
    assert Record("x", command=["true"]).state == lifecycle.RECORDED[State.NEW]


def test_the_page_shows_the_table() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "containers.md").read_text()
    shown: dict[tuple[str, str], tuple[str, str, str | None]] = {}
    state = ""
    for line in page.partition("| state | shown as |")[2].partition("\n\n")[0].splitlines()[2:]:
        first, _, trigger, to, write, event = (cell.strip(" `") for cell in line.strip("|").split("|"))
        state = first or state
        if trigger:
            shown[state, trigger] = (to, write or "nothing", event or None)
    assert shown == EXPECTED

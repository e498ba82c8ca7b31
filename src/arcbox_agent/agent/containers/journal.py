"""What the agent's metrics and its log say of the events of containers."""

from __future__ import annotations

from arcbox_agent.agent.containers.lifecycle import Kind
from arcbox_agent.agent.observe.log import Logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from arcbox_agent.agent.containers.events import Event
    from arcbox_agent.agent.processes.children import Counter

log = Logger("containers")

COUNTERS = {
    Kind.START: "containers_started",
    Kind.START_FAILED: "container_start_failures",
    Kind.ADOPT: "containers_recovered",
    Kind.DIE: "containers_exited",
    Kind.REMOVE: "containers_removed",
}

#: The level, the text and the fields of a kind's line.  A failed start has none: the client learns why.
LINES: dict[Kind, tuple[Callable[..., None], str, Callable[[Event], dict[str, Any]]]] = {
    Kind.CREATE: (log.info, "container created", lambda event: {"name": event.name}),
    Kind.START: (log.info, "container started", lambda event: {"pid": event.pid, "run": event.run}),
    Kind.ADOPT: (log.info, "container adopted", lambda event: {"pid": event.pid}),
    Kind.NEVER_STARTED: (log.warning, "a start did not happen", lambda event: {"error": event.exit.error}),
    Kind.DIE: (
        log.info,
        "container ended",
        lambda event: {"exit_code": event.exit.code, "signal": event.exit.signal, "lost": event.exit.lost},
    ),
    Kind.REMOVE: (log.info, "container removed", lambda event: {}),
}


class Journal:
    """A subscriber that counts events and logs them."""

    __slots__ = ("_metrics",)

    def __init__(self, metrics: Counter) -> None:
        self._metrics = metrics

    def __call__(self, event: Event) -> None:
        counter = COUNTERS.get(event.kind)
        if counter is not None:
            self._metrics.add(counter)
        if event.kind is Kind.DIE and event.exit.lost:
            self._metrics.add("exits_lost")
        line = LINES.get(event.kind)
        if line is not None:
            write, text, fields = line
            write(text, container=event.id, **fields(event))

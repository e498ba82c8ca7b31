"""What all connections of one server have in common."""

from __future__ import annotations

from arcbox_agent.agent.observe.rate import OncePerMinute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable
    from typing import Any

    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.serving.call import Dispatch
    from arcbox_agent.agent.serving.ledger import Ledger
    from arcbox_agent.agent.serving.watch import Watch

#: The longest frame of a peer that may only look: all that it can ask for is short.
RESTRICTED_FRAME = 1 << 20


class Shared:
    """See the module.

    `forget`: called with a connection that is lost; `task_ended`: called when a task has ended.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        settings: Settings,
        counters: dict[str, int],
        version: bytes,
        dispatch: Dispatch,
        ledger: Ledger,
        watch: Watch,
        forget: Callable[[Any], None],
        task_ended: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.now = loop.time
        self.settings = settings
        #: What a peer may send, in bytes, and what one that may only look.
        self.longest_frame = (settings.max_frame_size, min(settings.max_frame_size, RESTRICTED_FRAME))
        self.counters = counters
        self.version = version
        self.dispatch = dispatch
        self.ledger = ledger
        self.watch = watch
        self.forget = forget
        self.task_ended = task_ended
        self.idle_timeout = settings.idle_timeout
        self.stopping = False
        self.running: set[object] = set()  # those whose task runs
        self.closed_log = OncePerMinute()  # of connections that did what they must not

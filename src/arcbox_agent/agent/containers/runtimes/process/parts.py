"""What the runtime of processes, its starts, its adoptions and its runs work with."""

from __future__ import annotations

import os

from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.processes.scopes import end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.containers.output.capture import Capture, CaptureHandle
    from arcbox_agent.agent.containers.store import Store
    from arcbox_agent.agent.processes.children import Processes
    from arcbox_agent.agent.processes.keeper import Keeper
    from arcbox_agent.agent.processes.lanes import Lanes
    from arcbox_agent.agent.processes.scopes import Scope, Scopes

log = Logger("containers")


class Parts:
    """The parts, and what more than one of their users does with them."""

    __slots__ = ("boot_id", "capture", "keeper", "lanes", "processes", "scopes", "store")

    def __init__(
        self,
        store: Store,
        processes: Processes,
        lanes: Lanes,
        capture: Capture,
        keeper: Keeper,
        scopes: Scopes,
        boot_id: str,
    ) -> None:
        self.store = store
        self.processes = processes
        self.lanes = lanes
        self.capture = capture
        self.keeper = keeper
        self.scopes = scopes
        self.boot_id = boot_id

    def attach(self, id: str, fifos: dict[str, str], master: int | None) -> CaptureHandle:
        """Capture what a container writes into `fifos`, or into the terminal behind `master`.  OSError."""
        return self.capture.attach(id, self.store.log_path(id), self.store.run_path(id), fifos, master)

    async def clean_up(self, id: str, scope: Scope) -> None:
        """`clean`, in the container's share of the lane for it."""
        await self.lanes.removal.submit(id, self.clean, id, scope)

    def clean(self, id: str, scope: Scope) -> None:
        """Remove what a run needed.  Its spool stays, as the capture may still need it.  For a thread."""
        path = self.store.run_path(id)
        for name in ("pid", "stdin", "stdout", "stderr"):
            try:
                os.unlink(os.path.join(path, name))
            except OSError:
                continue
        try:
            os.rmdir(path)
        except OSError:
            pass
        try:
            # What could not be killed when the run ended (most likely no descriptor was left) is now.
            ended = scope.remove() or end(scope)
        except OSError:
            ended = False
        if not ended:
            log.warning("something of the container cannot be ended", container=id)

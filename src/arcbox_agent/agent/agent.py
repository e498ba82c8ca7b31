"""The agent: its parts, the order in which they start, and their end.

Each part is built from those that it uses, and knows no other.  The parts start in the
order of `Agent._parts` and stop in the opposite one, whatever of them has started.

One budget bounds the stop: the calls that run, and where the machine ends the containers
beside them, have `shutdown_timeout` or what the host gave; each later step has its own
bound in config/budget.py, whose `longest_stop` is their sum.
"""

from __future__ import annotations

import asyncio
import os
import time

from arcbox_agent import __version__
from arcbox_agent.agent import config, routes
from arcbox_agent.agent.commands.commands import Commands
from arcbox_agent.agent.containers.output.capture import Capture
from arcbox_agent.agent.containers.runtimes.choose import Runtimes
from arcbox_agent.agent.containers.service import Containers
from arcbox_agent.agent.containers.store import Store
from arcbox_agent.agent.executions.executions import Executions
from arcbox_agent.agent.forwards.forwards import Forwards
from arcbox_agent.agent.logs.follower import Followers
from arcbox_agent.agent.metrics import Metrics
from arcbox_agent.agent.observe import log as agent_log
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.observe.memory import Memory
from arcbox_agent.agent.observe.notify import Notifier
from arcbox_agent.agent.processes.children import Processes
from arcbox_agent.agent.processes.lanes import Lanes
from arcbox_agent.agent.serving.listeners import Listener
from arcbox_agent.agent.serving.metrics_endpoint import MetricsEndpoint
from arcbox_agent.agent.serving.server import Server
from arcbox_agent.agent.serving.sockets import open_listeners, open_unix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle
    from collections.abc import Awaitable, Callable

    from arcbox_agent.agent.config.table import Settings

    Step = Callable[[], Awaitable[None]]

log = Logger("agent")

#: What peers make the agent hold is bounded by this part of the memory, unless a setting says otherwise.
MEMORY_PARTS = 8


class Agent:
    """One agent.

    `action`: what happens when it has ended: `exit`, `poweroff` or `reboot`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.action = "exit"
        self._started_at = time.monotonic()
        self._loop: AbstractEventLoop = asyncio.get_running_loop()
        self._notifier = Notifier()
        self._watchdog: TimerHandle | None = None
        self._stop_asked = asyncio.Event()
        self._stop_timeout = settings.shutdown_timeout
        self._listeners: list[Listener] = []
        self._metrics_listener: Listener | None = None

        memory = Memory()
        _fit_bounds(settings, memory.total)
        metrics = self._metrics = Metrics()
        self._metrics_endpoint = MetricsEndpoint(self._loop, metrics)
        self._lanes = Lanes()
        self._lanes.become_default()
        self._processes = Processes(self._loop, self._lanes, metrics)
        self._capture = Capture(settings, metrics)
        store = Store(settings.state_dir, settings.run_dir)
        runtimes = Runtimes(settings, metrics, store, self._processes, self._lanes, self._capture)
        self._containers = Containers(settings, metrics, self._lanes, store, runtimes)
        self._runtimes = runtimes
        self._executions = Executions(
            settings, metrics, self._processes, runtimes.keeper, self._lanes, runtimes.boot_id
        )
        self._commands = Commands(settings, metrics, self._processes, self._lanes)
        self._followers = Followers(settings, metrics)
        self._forwards = Forwards(settings, metrics)
        table = routes.bind(
            settings,
            metrics,
            __version__,
            self._listeners,
            self._containers,
            runtimes.guest,
            self._commands,
            self._executions,
            self._followers,
            self._forwards,
            self._capture,
            runtimes.default.name,
            self._lanes,
            self.request_stop,
        )
        self._server = Server(settings, metrics, __version__, table, memory)
        #: Start and stop of each part.
        self._parts: list[tuple[Step | None, Step]] = [
            (self._serve_metrics, self._close_metrics),
            (None, self._processes.close),
            (self._capture.start, self._capture.close),
            (self._open_containers, self._close_containers),
            (None, self._commands.close),
            (self._followers.start, self._followers.close),
            (self._listen, self._close_server),
        ]

    async def start(self) -> None:
        """Start the parts; the last one opens the doors."""
        agent_log.on_drop = self._count_dropped_line
        self._metrics.gauge(
            "uptime_seconds", lambda: time.monotonic() - self._started_at, "Seconds since the agent started."
        )
        for begin, _ in self._parts:
            if begin is not None:
                await begin()

    async def stop(self, timeout: float) -> None:
        """Stop the parts, whatever of them has started.  Running calls have `timeout` seconds."""
        self._stop_timeout = timeout
        for _, end in reversed(self._parts):
            await end()
        if self._watchdog is not None:
            self._watchdog.cancel()

    async def run(self) -> None:
        """Start, serve until somebody asks for the end, stop."""
        try:
            await self.start()
            self._notifier.ready(f"listening on {', '.join(each.address for each in self._listeners)}")
            self._feed_watchdog()
            agent_log.prepare_traces()
            await self._stop_asked.wait()
            self._notifier.stopping("stopping")
            log.info("stopping", action=self.action, timeout=self._stop_timeout)
        finally:
            try:
                await self.stop(self._stop_timeout)
            finally:
                # Whatever failed: threads that wait for work would keep the process from ending.
                self._lanes.close()

    def request_stop(self, action: str = "exit", timeout: float | None = None) -> str:
        """Ask for the end: `exit`, `poweroff` or `reboot`; what runs has `timeout` seconds.

        Returns the action that it ends with: another one where it is ending already.
        """
        if not self._stop_asked.is_set():
            self.action = action
            if timeout is not None:
                self._stop_timeout = timeout
            self._stop_asked.set()
        return self.action

    # ------------------------------------------------------------ starts and ends

    async def _serve_metrics(self) -> None:
        where = self.settings.metrics_listen
        if where:
            address = config.unix_address(where)
            self._metrics_listener = Listener(open_unix(address), where, "read-only", address.path)
            self._metrics_listener.start(self._loop, self.settings, self._metrics, self._metrics_endpoint.accept)
            log.info("serving metrics", address=where)

    async def _close_metrics(self) -> None:
        if self._metrics_listener is not None:
            await self._metrics_listener.close()
        self._metrics_endpoint.close()

    async def _open_containers(self) -> None:
        await self._containers.open()
        await self._executions.open(self._runtimes.others)
        if os.getpid() == 1:
            # Reap orphans only from here on: until a container is adopted again its zombie has no
            # owner, and reaping it would lose its exit code.
            self._processes.orphans.watch()

    async def _close_containers(self) -> None:
        stop = self.action != "exit" or self.settings.containers_at_exit == "stop"
        # First: their ends are told by the keeper, which the containers close.
        await self._executions.close(stop)
        await self._containers.close(
            stop=stop,
            deadline=self._loop.time() + self.settings.stop_timeout,
        )

    async def _listen(self) -> None:
        self._listeners += open_listeners(self.settings)
        for listener in self._listeners:
            listener.start(self._loop, self.settings, self._metrics, self._server.accept)
            log.info("listening", address=listener.address, mode=listener.mode)

    async def _close_server(self) -> None:
        deadline = self._loop.time() + self._stop_timeout
        stopping = [self._stop_serving(deadline)]
        if self.action != "exit":
            # The host gave the time for its containers: they have it beside the calls.
            stopping.append(self._containers.stop_all(self._stop_timeout))
        await asyncio.gather(*stopping)

    async def _stop_serving(self, deadline: float) -> None:
        for listener in self._listeners:
            await listener.close()
        await self._server.close(deadline)

    # -------------------------------------------------------------------- others

    def _count_dropped_line(self) -> None:
        self._metrics.add("log_lines_dropped")

    def _feed_watchdog(self) -> None:
        # By the loop's own timer: when the loop hangs, the service manager must notice.
        interval = self._notifier.watchdog_interval
        if interval:
            self._notifier.alive()
            self._watchdog = self._loop.call_later(interval, self._feed_watchdog)


def _fit_bounds(settings: Settings, memory: int) -> None:
    """Lower the bound on what peers may make the agent hold to a part of the memory, if it was not set."""
    fitting = max(settings.max_frame_size, memory // MEMORY_PARTS)
    if "max_queued_total" not in settings.given and fitting < settings.max_queued_total:
        settings.max_queued_total = fitting
        log.info("max_queued_total is lower, as memory is small", max_queued_total=fitting, memory=memory)

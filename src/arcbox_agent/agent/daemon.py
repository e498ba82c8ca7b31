"""The daemon: start, wiring, signals, end.  No logic of its own.

    main -> settings -> directories and their lock -> event loop -> Agent.run

Everything is built in Agent.start, in the order in which one part needs another, and
taken down in Agent.stop in the opposite order.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import threading
import time

import uvloop

from arcbox_agent import __version__
from arcbox_agent.agent import config
from arcbox_agent.agent.commands.commands import Commands
from arcbox_agent.agent.config import budget, directories
from arcbox_agent.agent.containers.output.capture import Capture
from arcbox_agent.agent.containers.service import Containers
from arcbox_agent.agent.logs.follower import Followers
from arcbox_agent.agent.metrics import Metrics
from arcbox_agent.agent.observe import log as agent_log
from arcbox_agent.agent.observe.log import LEVELS, Logger, handle_loop_exception, write_stderr
from arcbox_agent.agent.observe.notify import Notifier
from arcbox_agent.agent.processes.children import Processes
from arcbox_agent.agent.processes.lanes import Lanes
from arcbox_agent.agent.routes import ROUTES
from arcbox_agent.agent.serving.listeners import Listener, open_listeners, open_unix
from arcbox_agent.agent.serving.metrics_endpoint import MetricsEndpoint
from arcbox_agent.agent.serving.server import Server
from arcbox_agent.errors import ConfigError, RequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle
    from collections.abc import Sequence

    from arcbox_agent.agent.config.table import Settings

log = Logger("agent")

#: Exit codes: what a person should look at.
EXIT_OK = 0
EXIT_FAILED = 1  # the log says why
EXIT_USAGE = 2  # a setting is wrong: fix it, starting again does not help


class Agent:
    """One agent: its settings, its parts, and its end.

    `action`: what happens when it has ended: `exit`, `poweroff` or `reboot`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.version = __version__
        self.started_at = time.monotonic()
        self.action = "exit"
        self.notifier = Notifier()
        self.metrics = Metrics()
        self.loop: AbstractEventLoop = asyncio.get_running_loop()
        self.lanes = Lanes()
        self.lanes.become_default()
        self.processes = Processes(self.loop, self.lanes, self.metrics)
        self.capture = Capture(settings, self.metrics)
        self.containers = Containers(settings, self.metrics, self.processes, self.lanes, self.capture)
        self.commands = Commands(settings, self.metrics, self.processes, self.lanes, self.containers)
        self.followers = Followers(settings, self.metrics)
        self.server: Server = Server(self, self.loop, ROUTES)
        self._metrics_endpoint: MetricsEndpoint | None = None
        self._metrics_listener: Listener | None = None
        self._watchdog: TimerHandle | None = None
        self._stop_asked = asyncio.Event()
        self._stop_timeout = settings.shutdown_timeout

    async def start(self) -> None:
        """Build the parts, then open the doors."""
        agent_log.on_drop = self._count_dropped_line
        self.metrics.gauge(
            "uptime_seconds", lambda: time.monotonic() - self.started_at, "Seconds since the agent started."
        )
        await self.capture.start()
        await self.containers.open()
        if os.getpid() == 1:
            # Not before: a container that ended while PID 1 started again is a zombie of nobody's
            # until it is found again, and its exit code is still to be had.
            self.processes.watch_orphans()
        await self.followers.start()
        listeners = open_listeners(self.settings)
        self.server.listeners = listeners
        for listener in listeners:
            listener.start(self.loop, self.settings, self.metrics, self.server.accept)
            log.info("listening", address=listener.address, mode=listener.mode)
        if self.settings.metrics_listen:
            self._serve_metrics(self.settings.metrics_listen)

    def _serve_metrics(self, where: str) -> None:
        address = config.unix_address(where)
        self._metrics_endpoint = MetricsEndpoint(self.loop, self.metrics)
        self._metrics_listener = Listener(open_unix(address), where, "read-only", address.path)
        self._metrics_listener.start(self.loop, self.settings, self.metrics, self._metrics_endpoint.accept)
        log.info("serving metrics", address=where)

    def _count_dropped_line(self) -> None:
        self.metrics.add("log_lines_dropped")

    async def run(self) -> None:
        """Start, serve until somebody asks for the end, stop."""
        try:
            await self.start()
            self.notifier.ready(f"listening on {', '.join(each.address for each in self.server.listeners)}")
            self._feed_watchdog()
            await self._stop_asked.wait()
            self.notifier.stopping("stopping")
            log.info("stopping", action=self.action, timeout=self._stop_timeout)
        finally:
            try:
                await self.stop(self._stop_timeout)
            finally:
                # Whatever failed: threads that wait for work would keep the process from ending.
                self.lanes.close()

    def request_stop(self, action: str = "exit", timeout: float | None = None) -> bool:
        """Ask for the end: `exit`, `poweroff` or `reboot`; what runs has `timeout` seconds.

        False: it is ending already, and not that way.
        """
        if self._stop_asked.is_set():
            return self.action == action
        self.action = action
        if timeout is not None:
            self._stop_timeout = timeout
        self._stop_asked.set()
        return True

    async def stop(self, timeout: float) -> None:
        """Take all down again, whatever of it was built.  Running calls have `timeout` seconds.

        Where the machine ends, the containers have the same seconds, beside the calls: it
        is for them that the host gave a time.  Else they are stopped, if they are, after
        the calls have ended, and have `stop_timeout`.
        """
        deadline = self.loop.time() + timeout
        if self.action == "exit":
            await self.server.close(deadline)
        else:
            await asyncio.gather(self.server.close(deadline), self.containers.stop_all(timeout))
        await self.followers.close()
        await self.commands.close()
        await self.containers.close(
            stop=self.action != "exit" or self.settings.containers_at_exit == "stop",
            deadline=self.loop.time() + self.settings.stop_timeout,
        )
        await self.capture.close()
        await self.processes.close()
        if self._metrics_listener is not None:
            self._metrics_listener.close()
        if self._metrics_endpoint is not None:
            self._metrics_endpoint.close()
        if self._watchdog is not None:
            self._watchdog.cancel()

    def _feed_watchdog(self) -> None:
        # From the loop's own timer: when the loop hangs, so does this, which is the point.
        interval = self.notifier.watchdog_interval
        if interval:
            self.notifier.alive()
            self._watchdog = self.loop.call_later(interval, self._feed_watchdog)


# ------------------------------------------------------------------ the process


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `arcbox-agent`; returns its exit code, but as PID 1, which never ends."""
    if os.getpid() == 1:
        from arcbox_agent.agent.guest import init

        init.supervise(lambda: _main(arguments))
    code = _main(arguments)
    if hanging := _threads_left(0.0):
        # The interpreter would wait for them without end.
        log.error("ended with something under way that hangs", threads=", ".join(hanging))
        os._exit(code)
    return code


def _main(arguments: Sequence[str] | None) -> int:
    try:
        invocation = config.load(sys.argv[1:] if arguments is None else arguments)
    except ConfigError as error:
        write_stderr(f"arcbox-agent: {error}\n")
        return EXIT_USAGE
    if invocation.action == "help":
        sys.stdout.write(config.usage())
        return EXIT_OK
    if invocation.action == "version":
        sys.stdout.write(f"arcbox-agent {__version__}\n")
        return EXIT_OK
    if invocation.action == "check":
        sys.stdout.write(config.show(invocation.settings))
        return EXIT_OK
    return run(invocation.settings)


def run(settings: Settings) -> int:
    """Run an agent with these settings until it ends; returns the exit code."""
    agent_log.sink.level = LEVELS[settings.log_level]
    log.info("starting", version=__version__, pid=os.getpid(), state_dir=settings.state_dir)
    settings.init = settings.init or os.getpid() == 1
    if settings.init:
        from arcbox_agent.agent.guest import init

        init.prepare(settings)
    raise_descriptor_limit()
    set_oom_score_adj(settings.oom_score_adj)
    try:
        locks = directories.prepare(settings)
    except ConfigError as error:
        log.error("cannot start", reason=error)
        return EXIT_USAGE
    try:
        code, action = _run_loop(settings)
    finally:
        for lock in locks:
            os.close(lock)
    if action != "exit":
        return _end_machine(action, settings)
    return code


def _end_machine(action: str, settings: Settings) -> int:
    from arcbox_agent.agent.guest import power

    try:
        power.perform(action, settings.init)
    except (OSError, RequestError) as error:
        log.error("cannot end the machine", action=action, error=error)
        return EXIT_FAILED


def _run_loop(settings: Settings) -> tuple[int, str]:
    """Exit code, and what is to happen next: Agent.action."""
    loop = uvloop.new_event_loop()
    loop.set_exception_handler(handle_loop_exception)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(_serve(loop, settings))
    except ConfigError as error:
        log.error("cannot start", reason=error)
        return EXIT_USAGE, "exit"
    except Exception as error:
        log.exception("the agent failed", error)
        return EXIT_FAILED, "exit"
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        # Not shutdown_default_executor: it waits for ever where a file system hangs, and in one thread
        # more, which there may not be.  Agent.run has closed the lanes.
        _threads_left(budget.THREADS_ENDED)
        asyncio.set_event_loop(None)
        loop.close()


def _threads_left(patience: float) -> list[str]:
    """Waits for threads to end what they do; the names of those that do not."""
    deadline = time.monotonic() + patience
    others = [each for each in threading.enumerate() if each is not threading.current_thread() and not each.daemon]
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [thread.name for thread in others if thread.is_alive()]


async def _serve(loop: AbstractEventLoop, settings: Settings) -> tuple[int, str]:
    agent = Agent(settings)
    watch_signals(loop, agent)
    try:
        await agent.run()
    except Exception as error:
        if agent.action == "exit":
            raise
        # The machine ends all the same: whoever asked for that was told that it would.
        log.exception("the agent failed while it ended", error)
        return EXIT_FAILED, agent.action
    log.info("stopped")
    return EXIT_OK, agent.action


def watch_signals(loop: AbstractEventLoop, agent: Agent) -> None:
    """SIGTERM and SIGINT end the agent in order, and at once when they come again.

    For an init, and so for PID 1, they end the machine: SIGTERM powers off, and SIGINT,
    which is what the kernel makes of Ctrl-Alt-Del, reboots.
    """
    asked = False
    action_of = {signal.SIGTERM: "exit", signal.SIGINT: "exit"}
    if agent.settings.init:
        from arcbox_agent.agent.guest import init, power

        action_of = {signal.SIGTERM: "poweroff", signal.SIGINT: "reboot"}
        init.watch_reboot_keys()

    def end(number: signal.Signals) -> None:
        nonlocal asked
        if asked:
            log.warning("second signal: ending at once", signal=number.name)
            if agent.settings.init:
                power.end_of_machine(action_of[number])
            # Containers go on, and the next agent finds them: as after a crash.
            os._exit(128 + number)
        asked = True
        log.info("signal received", signal=number.name)
        agent.request_stop(action_of[number])

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    # A terminal that is closed, or a reload that somebody tries, is no reason to end.
    loop.add_signal_handler(
        signal.SIGHUP, lambda: log.info("SIGHUP ignored: restart the agent to read its settings again")
    )


#: Enough for max_connections, and for containers with three descriptors each.
DESCRIPTORS_WANTED = 65536


def raise_descriptor_limit() -> None:
    """A descriptor for each connection, FIFO and log: as many as the hard limit gives."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # PID 1 gets a hard limit of 4096 from the kernel, which it may raise.
    for wanted in (max(hard, DESCRIPTORS_WANTED), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return
        except (OSError, ValueError):
            continue  # an ordinary user may not


def set_oom_score_adj(value: int) -> None:
    """Make the kernel look elsewhere first when memory runs out, where that is allowed."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(value))
    except OSError as error:
        # Lowering it needs CAP_SYS_RESOURCE.
        log.debug("oom_score_adj stays as it is", error=error)

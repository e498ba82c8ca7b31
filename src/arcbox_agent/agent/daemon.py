"""The process: its settings, locks, event loop, signals and exit codes.

main -> settings -> directories and their lock -> event loop -> Agent.run
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
from arcbox_agent.agent.agent import Agent
from arcbox_agent.agent.config import budget, directories
from arcbox_agent.agent.observe import log as agent_log
from arcbox_agent.agent.observe.asyncio_log import handle_loop_exception
from arcbox_agent.agent.observe.log import LEVELS, Logger, write_stderr
from arcbox_agent.errors import ConfigError, RequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Sequence

    from arcbox_agent.agent.config.table import Settings

log = Logger("agent")

#: Exit codes: what a person should look at.
EXIT_OK = 0
EXIT_FAILED = 1  # the log says why
EXIT_USAGE = 2  # a setting is wrong: fix it, starting again does not help


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `arcbox-agent`; returns its exit code, but as PID 1, which never ends."""
    if os.getpid() == 1:
        from arcbox_agent.agent.guest import init

        init.supervise(lambda: _main(arguments))
    code = _main(arguments)
    if hanging := _threads_left(0.0):
        # The interpreter would wait for some of them without end.
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
        from arcbox_agent.agent.config.text import usage

        sys.stdout.write(usage())
        return EXIT_OK
    if invocation.action == "version":
        sys.stdout.write(f"arcbox-agent {__version__}\n")
        return EXIT_OK
    if invocation.action == "check":
        from arcbox_agent.agent.config.text import show

        sys.stdout.write(show(invocation.settings))
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
    others = [each for each in threading.enumerate() if each is not threading.current_thread()]
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
        with open("/proc/self/oom_score_adj", "w", encoding="utf-8") as file:
            file.write(str(value))
    except OSError as error:
        # Lowering it needs CAP_SYS_RESOURCE.
        log.debug("oom_score_adj stays as it is", error=error)

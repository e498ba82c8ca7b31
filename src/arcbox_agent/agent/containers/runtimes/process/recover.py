"""After a restart of the agent: the run that the former agent has left."""

from __future__ import annotations

import asyncio
import errno
import os
import time

from arcbox_agent._spawn import exit_status
from arcbox_agent.agent.config import budget
from arcbox_agent.agent.containers.record import STARTING
from arcbox_agent.agent.containers.runtimes.process import pid_file
from arcbox_agent.agent.containers.runtimes.process.held import Held
from arcbox_agent.agent.containers.runtimes.process.run import ProcessRun
from arcbox_agent.agent.containers.runtimes.protocol import NotStarted
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.processes.descendants import ProcessSession
from arcbox_agent.agent.processes.keeper import SHORT_OF
from arcbox_agent.agent.processes.status import ExitStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from arcbox_agent.agent.containers.output.capture import CaptureHandle
    from arcbox_agent.agent.containers.record import Record
    from arcbox_agent.agent.containers.runtimes.process.parts import Parts

log = Logger("containers")

#: Seconds between two attempts where descriptors are missing.
_PAUSE = 0.05


async def recover(parts: Parts, record: Record) -> ProcessRun | NotStarted:
    """Adopt the run of `record`.  OSError: it runs, and cannot be taken over."""
    deadline = time.monotonic() + budget.DESCRIPTORS
    while True:
        try:
            return await _recover(parts, record)
        except OSError as error:
            # The adoption of other containers takes more descriptors for a while than it keeps.
            if error.errno not in SHORT_OF or time.monotonic() > deadline:
                raise
        await asyncio.sleep(_PAUSE)


async def _recover(parts: Parts, record: Record) -> ProcessRun | NotStarted:
    path = parts.store.run_path(record.id)
    fds = await parts.keeper.fetch(record.id)
    try:
        if record.boot_id != parts.boot_id:
            return ProcessRun(parts, record, 0, 0, None, ProcessSession(), None)
        found = await _former_spawn(parts, record, os.path.join(path, pid_file.NAME))
        if found is None and record.state == STARTING:
            found = NotStarted("the agent was killed while it started the container")
        if isinstance(found, NotStarted):
            await parts.clean_up(record.id, parts.scopes.container(record.id))
            return found
        pid, start_time = found or (record.pid, record.start_time)
        handle = await _attach_again(parts, record, path, fds)
        held: Held | None = None
        try:
            held = Held(_fifos(record, path).values(), _master(fds))
            process = None
            if pid:
                process = parts.processes.adopt(pid, start_time, lambda pid: parts.keeper.exit_of(record.id, pid))
        except OSError:
            if held is not None:
                held.close()
            await parts.capture.forget(record.id)
            raise
        status = None
        if process is None:
            told = await parts.keeper.exit_of(record.id, pid)
            status = ExitStatus.of_wait_status(told) if told is not None else kept_status(fds)
        else:
            held.follow(process)
        parts.keeper.hold(record.id, held)
        if not fds and process is not None:
            # The keeper was killed while there was no agent.
            await _keep_again(parts, record, held)
        scope = parts.scopes.adopted_container(record.id, pid, start_time)
        # Without the keeper nobody held what was in its FIFOs, or its terminal.
        cut = process is None and not fds
        return ProcessRun(parts, record, pid, start_time, process, scope, handle, status, output_cut=cut)
    finally:
        for fd in fds:
            os.close(fd)


async def _former_spawn(parts: Parts, record: Record, path: str) -> tuple[int, int] | NotStarted | None:
    """What the pid file says.  A spawn that is under way is killed where it takes longer than FORMER_SPAWN."""
    give_up = time.monotonic() + budget.FORMER_SPAWN
    pause = 0.002
    while True:
        try:
            return await parts.lanes.disk(pid_file.read, path)
        except BlockingIOError:
            if time.monotonic() > give_up:
                break
        await asyncio.sleep(pause)
        pause = min(pause * 2, _PAUSE)
    log.error("a start of the former agent hangs, and is ended", container=record.id)
    await parts.lanes.disk(pid_file.kill, path)
    # A child that was born frozen has written nothing.
    await parts.lanes.signals.submit(record.id, parts.scopes.container(record.id).kill)
    return NotStarted("it hung in its start when the agent was killed, and was ended")


async def _keep_again(parts: Parts, record: Record, held: Held) -> None:
    try:
        await parts.keeper.keep(record.id, held.descriptors(), anew=True)
    except OSError as error:
        # The container goes on: this matters only if the agent is killed.
        log.error("what a container needs cannot be kept again", container=record.id, error=error)


def _fifos(record: Record, path: str) -> dict[str, str]:
    return {} if record.tty else {name: os.path.join(path, name) for name in ("stdout", "stderr")}


def _master(fds: Sequence[int]) -> int | None:
    return next((fd for fd in fds if _is_terminal_master(fd)), None)


async def _attach_again(parts: Parts, record: Record, path: str, fds: Sequence[int]) -> CaptureHandle | None:
    """Capture the output from where the former agent stood.  OSError: no descriptors are left for it."""
    master = _master(fds)
    try:
        if record.tty and master is None:
            raise FileNotFoundError(errno.ENOENT, "its terminal is gone")
        handle = parts.attach(record.id, _fifos(record, path), master)
    except OSError as error:
        if error.errno in SHORT_OF:
            raise
        log.error("the output of a container cannot be found again", container=record.id, error=error)
        return None
    try:
        await handle.ready()
    except OSError as error:
        if error.errno in SHORT_OF:
            await parts.capture.forget(record.id)
            raise
        # It concerns the log alone, or was logged already: the capture goes on trying.
    return handle


def kept_status(fds: Sequence[int]) -> ExitStatus | None:
    """How a process ended while there was no agent, from the pidfd in the keeper; None: it is not known."""
    for fd in fds:
        if "pidfd" in os.readlink(f"/proc/self/fd/{fd}"):
            try:
                status = exit_status(fd)
            except OSError:
                return None
            return ExitStatus.of_wait_status(status) if status is not None else None
    return None


def _is_terminal_master(fd: int) -> bool:
    return os.readlink(f"/proc/self/fd/{fd}").endswith("/ptmx")

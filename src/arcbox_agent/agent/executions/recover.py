"""After a restart of the agent: an execution that the former agent has left."""

from __future__ import annotations

import asyncio
import os
import time

from arcbox_agent.agent.config import budget
from arcbox_agent.agent.containers.runtimes.process import pid_file
from arcbox_agent.agent.containers.runtimes.process.recover import kept_status
from arcbox_agent.agent.containers.runtimes.protocol import NotStarted
from arcbox_agent.agent.executions import record as records
from arcbox_agent.agent.executions.execution import Execution
from arcbox_agent.agent.executions.prepare import own_output
from arcbox_agent.agent.executions.record import ENDED
from arcbox_agent.agent.executions.spools import Channels, Input, read_number
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.processes.cgroups import Cgroup
from arcbox_agent.agent.processes.descendants import ProcessSession
from arcbox_agent.agent.processes.scopes import end
from arcbox_agent.agent.processes.status import ExitStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from arcbox_agent.agent.executions.parts import Parts
    from arcbox_agent.agent.executions.record import Record

log = Logger("executions")

#: Seconds between two looks at a spawn of the former agent that is under way.
_PAUSE = 0.01


async def recover(parts: Parts, record: Record) -> Execution | None:
    """Take it over: it runs on, or its end is learnt from the keeper, or it ended and nobody knows how.

    None: its start was cut short before its program ran.  Nobody was told of it, and nothing of it stays.
    """
    execution = Execution(parts, record, None, None)
    if record.state == ENDED:
        execution.set_sizes(_sizes(parts, record))
        execution.ends.set_result(None)
        await _clean(parts, record)
        return execution
    fds = await parts.keeper.fetch(execution.key)
    try:
        if record.boot_id != parts.boot_id:
            execution.set_sizes(_sizes(parts, record))
            execution.finish(None, cut=True)
            return execution
        found = await _former_spawn(parts, record)
        if not isinstance(found, tuple):
            await _undo(parts, record)
            return None
        pid, start_time = found
        record.pid = pid
        record.started_ns = _written_at(parts.run(record.id, pid_file.NAME))
        if record.cgroup and os.path.isdir(record.cgroup):
            execution.scope = Cgroup(record.cgroup)
        else:
            execution.scope = ProcessSession(pid, start_time)
        execution.channels = channels = await parts.lanes.disk(_channels, parts, record, fds, execution)
        process = parts.processes.adopt(pid, start_time, lambda pid: parts.keeper.exit_of(execution.key, pid))
        parts.spooler.add(channels)
        parts.keeper.hold(execution.key, execution)
        if process is not None:
            execution.begin(process)
            if not fds:
                await parts.keeper.keep(execution.key, execution.descriptors(), anew=True)
            return execution
        told = await parts.keeper.exit_of(execution.key, pid)
        status = ExitStatus.of_wait_status(told) if told is not None else kept_status(fds)
        if status is not None:
            execution.end = pid, status.wait_status
        # Without the keeper nobody held what was in its FIFOs.
        execution.finish(status, cut=not fds)
        return execution
    finally:
        for fd in fds:
            os.close(fd)


async def _clean(parts: Parts, record: Record) -> None:
    """The former agent may have been killed between the end and this."""
    if not os.path.exists(parts.run(record.id)):
        return
    await parts.lanes.disk(records.remove, parts.run(record.id))
    if record.cgroup:
        await parts.lanes.removal.submit(record.container_id or None, Cgroup(record.cgroup).dissolve)


async def _undo(parts: Parts, record: Record) -> None:
    log.info("a start of the former agent was cut short, and is undone", execution=record.id)
    if record.cgroup:
        await parts.lanes.removal.submit(record.container_id or None, end, Cgroup(record.cgroup))
    for path in (parts.run(record.id), parts.state(record.id)):
        await parts.lanes.disk(records.remove, path)


async def _former_spawn(parts: Parts, record: Record) -> tuple[int, int] | NotStarted | None:
    """What the pid file says.  A spawn that is under way is killed where it takes longer than FORMER_SPAWN."""
    path = parts.run(record.id, pid_file.NAME)
    give_up = time.monotonic() + budget.FORMER_SPAWN
    while True:
        try:
            return await parts.lanes.disk(pid_file.read, path)
        except BlockingIOError:
            if time.monotonic() > give_up:
                break
        await asyncio.sleep(_PAUSE)
    log.error("a start of the former agent hangs, and is ended", execution=record.id)
    await parts.lanes.disk(pid_file.kill, path)
    return None


def _channels(parts: Parts, record: Record, fds: Sequence[int], execution: Execution) -> Channels:
    """What of its streams is still there.  For a thread."""
    names = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in fds}
    channels = Channels(record.id, [], None, execution.changed)
    spool = parts.state(record.id, "stdin")
    if record.tty:
        master = next((os.dup(fd) for fd, name in names.items() if name.endswith("/ptmx")), -1)
        channels.outputs.append(own_output(parts.state(record.id, "stdout"), "stdout", master, record))
        if record.open_stdin:
            channels.input = Input(spool, os.dup(master) if master >= 0 else -1, -1, True)
        return channels
    for name in ("stdout", "stderr"):
        channels.outputs.append(
            own_output(parts.state(record.id, name), name, _open_fifo(parts.run(record.id, name), os.O_RDONLY), record)
        )
    if record.open_stdin:
        writer = _open_fifo(parts.run(record.id, "stdin"), os.O_WRONLY)
        file = next((os.dup(fd) for fd, name in names.items() if name == spool), -1)
        if file < 0:
            # The keeper was killed too: how much of it the command has got is known to the last splice.
            file = os.open(spool, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            os.lseek(file, read_number(spool + ".at"), os.SEEK_SET)
        channels.input = Input(spool, writer, file, False)
    return channels


def _written_at(path: str) -> int:
    """When the child wrote its pid file: just before it ran its program."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _open_fifo(path: str, how: int) -> int:
    """-1: it is gone, or nobody has its other end."""
    try:
        return os.open(path, how | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return -1


def _sizes(parts: Parts, record: Record) -> list[tuple[str, int, int]]:
    """Of the spools of one that has ended."""
    found = []
    for name in ("stdout",) if record.tty else ("stdout", "stderr"):
        path = parts.state(record.id, name)
        try:
            end = os.stat(path).st_size
        except OSError:
            end = 0
        found.append((name, min(read_number(path + ".begin"), end), end))
    return found

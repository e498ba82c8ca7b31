"""Conditions that are looked at again and again, from 10 ms to 250 ms apart, until they hold."""

from __future__ import annotations

import asyncio
import os

from arcbox_agent.agent.forwards.dial import dial_tcp, dial_unix, system_error
from arcbox_agent.errors import BusyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from arcbox_agent.agent.forwards.dial import Address
    from arcbox_agent.agent.forwards.place import Place
    from arcbox_agent.agent.processes.lanes import Lanes

#: Seconds from one look to the next, at first and at most; and for one look.
FIRST_PAUSE, LAST_PAUSE = 0.01, 0.25
LOOK = 5.0

#: What os.stat tells of a file, as far as it changes with its content; None: there is none.
State = tuple[int, int, int, int, int] | None


class Told:
    """`last`: why the condition did not hold when it was looked at last."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = ""


async def until(look: Callable[[], Awaitable[str]], told: Told) -> None:
    """Until `look` returns nothing; else it returns why not yet."""
    pause = FIRST_PAUSE
    while True:
        try:
            async with asyncio.timeout(LOOK):
                reason = await look()
        except TimeoutError:
            reason = f"no answer within {LOOK:g} s"
        except BusyError as error:
            reason = error.message
        if not reason:
            return
        told.last = reason
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LAST_PAUSE)


async def until_accepts(lanes: Lanes, place: Place, address: Address, told: Told) -> None:
    """Until a connection to `address` is accepted; it is closed at once."""

    async def look() -> str:
        try:
            if address.path:
                sock = await dial_unix(lanes, place, address.path)
            else:
                sock = await dial_tcp(lanes, address.host, address.port)
        except OSError as error:
            return f"{address}: {system_error(error)}"
        sock.close()
        return ""

    await until(look, told)


async def until_file(lanes: Lanes, place: Place, path: str, changes: bool, told: Told) -> None:
    """Until there is a file at `path`; `changes`: until it is another, or its content is, or it is gone."""
    before: list[State] = []

    async def look() -> str:
        try:
            state = await lanes.spawn.submit(place.key, state_of, place, path)
        except OSError as error:
            return f"{path}: {system_error(error)}"
        if not changes:
            return "" if state is not None else f"{path}: there is no such file"
        if not before:
            before.append(state)
        return "" if state != before[0] else f"{path}: it has not changed"

    await until(look, told)


def state_of(place: Place, path: str) -> State:
    """For a thread.  OSError."""
    try:
        fd = place.open(path, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


async def until_ended(pid: int) -> None:
    """Until the process `pid` has ended; at once where there is none.  OSError."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)

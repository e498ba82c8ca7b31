"""The agent's side of the keeper (keeper_process.py): descriptors that outlive the agent.

A container's FIFOs and pidfd are handed to the keeper while the container runs, so
that what it wrote, and how it ended, are still there for the next agent when this
one is killed and the container ends before that is up.  Without a keeper (it could
not be started, somebody killed it) everything works, but for that.

The keeper is started when the first container is; it ends by itself when there is
neither an agent nor anything to keep.
"""

from __future__ import annotations

import array
import asyncio
import errno
import os
import select
import socket
import sys
from contextvars import Context

from arcbox_agent._spawn import SpawnError
from arcbox_agent.agent.config import budget
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.observe.rate import OncePerMinute
from arcbox_agent.agent.processes.spec import SpawnSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from arcbox_agent.agent.processes.children import Processes
    from arcbox_agent.agent.processes.lanes import Lanes

    T = TypeVar("T")

log = Logger("keeper")

#: How long after a keeper could not be started it is tried again; and where only descriptors
#: were missing, or memory, of which there may soon be some.
RETRY = 60.0
RETRY_SOON = 0.2
SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
#: While there are no descriptors to receive what is kept: how often, and how far apart, it is asked for again.
PAUSE = 0.05
ATTEMPTS = round(budget.KEEPER_FETCH / PAUSE)
MOST_EACH = 8
REPLY = 65536
#: Stands for a reply whose descriptors there was no room for.
CUT = b"cut"


class Keeper:
    """`path`: its socket, in the run directory."""

    def __init__(self, path: str, processes: Processes, lanes: Lanes) -> None:
        self._path = path
        self._processes = processes
        self._lanes = lanes
        self._socket: socket.socket | None = None
        self._starting = asyncio.Lock()
        self._not_before = 0.0
        self._full_log = OncePerMinute()
        self._missing_log = OncePerMinute()
        #: For a keeper that could not be reached yet: with which order each goes there.
        self._put_by: dict[str, tuple[bytes, list[int]]] = {}
        self._offering: asyncio.Task[None] | None = None

    async def start(self) -> list[str]:
        """Find the keeper of a former agent; the keys it has descriptors for, [] where there is none."""
        if not await self._in_thread(self._connect):
            return []
        reply, _ = await self._ask(b"l")
        return [key.decode(errors="replace") for key in reply.split(b"\0")[1:]]

    async def keep(self, key: str, fds: Sequence[int], *, anew: bool = False) -> None:
        """Hold these, besides what is held for `key` already, or instead of it (`anew`).

        They are taken over: closed here as soon as the keeper has them.  (Not duplicated, as
        there may be no descriptor left for that when it counts most.)
        """
        if anew:
            self._close_put_by(key)
        order, there = b"n" if anew else b"k", False
        try:
            there = await self._in_thread(self._is_there) or await self._start_one()
        finally:
            if not there:
                # Of no use if the agent is killed before there is a keeper; but not a moment longer.
                self._put_by.setdefault(key, (order, []))[1].extend(fds)
                if self._offering is None or self._offering.done():
                    self._offering = asyncio.get_running_loop().create_task(self._offer(), context=Context())
        if there:
            # What was put by goes with it: behind it, it would take its place.
            order, before = self._put_by.pop(key, (order, []))
            await self._hand_over(order + key.encode(), [*before, *fds])

    async def _hand_over(self, packet: bytes, fds: Sequence[int]) -> None:
        reply, _ = await self._ask(packet, fds)
        if reply == b"full":
            self._full_log.log(
                log.warning, "the keeper has no room for more descriptors", "also_refused", key=packet[1:].decode()
            )

    async def _offer(self) -> None:
        """Bring what was put by to a keeper as soon as one can be started."""
        loop = asyncio.get_running_loop()
        while self._put_by:
            await asyncio.sleep(max(RETRY_SOON, self._not_before - loop.time()))
            if await self._in_thread(self._is_there) or await self._start_one():
                while self._put_by:
                    key, (order, fds) = self._put_by.popitem()
                    await self._hand_over(order + key.encode(), fds)

    def _close_put_by(self, key: str) -> None:
        for fd in self._put_by.pop(key, (b"", ()))[1]:
            os.close(fd)

    async def fetch(self, key: str) -> list[int]:
        """What is held for `key`, as descriptors of the caller's own."""
        for _ in range(ATTEMPTS):
            if self._socket is None:
                return []
            reply, fds = await self._ask(b"g" + key.encode())
            if reply != CUT:
                return fds
            await asyncio.sleep(PAUSE)
        log.error("no descriptors to take over what is kept", key=key)
        return []

    async def drop(self, key: str) -> None:
        """Hold nothing for `key` any more."""
        self._close_put_by(key)
        if self._socket is not None:
            await self._ask(b"d" + key.encode())

    async def close(self) -> None:
        if self._offering is not None:
            self._offering.cancel()
        for key in list(self._put_by):
            self._close_put_by(key)
        # In the lane: behind the request that may still be under way.
        await self._in_thread(self._disconnect)

    # --------------------------------------------------------------- private

    async def _start_one(self) -> bool:
        async with self._starting:
            if self._socket is not None:
                return True
            now = asyncio.get_running_loop().time()
            if now < self._not_before:
                return False
            fds: list[int] = []
            try:
                # One that was only slow once still has what it keeps.
                if await self._in_thread(self._connect) and (await self._ask(b"l"))[0]:
                    return True
                # A copy of the script is run, not the package: that would import all of the agent's.
                script = os.path.join(os.path.dirname(__file__), "keeper_process.py")
                fds.append(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
                fds.append(os.dup(fds[0]))
                listener = await self._in_thread(self._listen)
                spec = SpawnSpec(
                    [sys.executable, "-ISE", script],
                    stdio=(listener, fds[0], fds[1]),
                    cwd="/",
                    # It holds some for each container, as the agent does.
                    own_limits=True,
                )
                fds.clear()  # the spawn closes them
                await self._processes.spawn(spec)
                if await self._in_thread(self._connect):
                    return True
                reason: object = "it does not answer"
            except (OSError, SpawnError) as error:
                reason = error
            finally:
                for fd in fds:
                    os.close(fd)
            soon = isinstance(reason, (OSError, SpawnError)) and reason.errno in SHORT_OF
            self._not_before = now + (RETRY_SOON / 2 if soon else RETRY)
            self._missing_log.log(
                log.error,
                "no keeper: output and exit codes may be lost where the agent is killed",
                "also_tried",
                reason=reason,
            )
            return False

    def _is_there(self) -> bool:
        """Not killed since: what it is handed would be lost with it."""
        if self._socket is None:
            return False
        poll = select.poll()
        poll.register(self._socket, 0)  # the end of its other side comes unasked
        if poll.poll(0):
            self._disconnect()
        return self._socket is not None

    def _listen(self) -> int:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass
            listener.bind(self._path)
            os.chmod(self._path, 0o600)
            listener.listen(8)
        except BaseException:
            listener.close()
            raise
        return listener.detach()

    def _connect(self) -> bool:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(budget.KEEPER_REPLY)
        try:
            connection.connect(self._path)
        except OSError:
            connection.close()
            return False
        self._socket = connection
        return True

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _ask(self, packet: bytes, fds: Sequence[int] = ()) -> tuple[bytes, list[int]]:
        """`fds` are closed in any case."""
        try:
            return await self._in_thread(lambda: self._exchange(packet, fds))
        except OSError as error:
            log.error("the keeper does not answer", error=error)
            return b"", []

    def _exchange(self, packet: bytes, fds: Sequence[int]) -> tuple[bytes, list[int]]:
        """In the thread."""
        try:
            connection = self._socket
            if connection is None:
                return b"", []
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            connection.sendmsg([packet], rights)
            reply, ancillary, flags, _ = connection.recvmsg(
                REPLY, socket.CMSG_SPACE(4 * MOST_EACH), socket.MSG_CMSG_CLOEXEC
            )
            if not reply:
                raise ConnectionResetError("the keeper is gone")
            came = array.array("i")
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    came.frombytes(data[: len(data) - len(data) % came.itemsize])
            if flags & socket.MSG_CTRUNC:
                # The descriptor table is full.  Some are no use without the others.
                for fd in came:
                    os.close(fd)
                return CUT, []
            return reply, list(came)
        except OSError:
            # Whatever it was: the next exchange could not tell which reply is its own.
            self._disconnect()
            raise
        finally:
            for fd in fds:
                os.close(fd)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        # Shielded: a call that is cancelled must not leave its descriptors or its reply behind.
        return await asyncio.shield(self._lanes.keeper(work))

"""The agent's side of the keeper (keeper_process.py), the parent of containers, which outlives the agent.

While a container runs, the keeper is its parent and holds its FIFOs and its pidfd.  If this agent
is killed, and the container ends before the next agent starts, its output and its exit status are
still there.  A keeper that is killed is replaced, and what it held is handed over to the next one.
Without a keeper, because it could not be started, output and exit status are lost where the agent
is killed, and all else works.

The agent starts the keeper with the first container.  The keeper ends by itself when there is
no agent and nothing to keep.  One of an older release keeps what it holds until that is over.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from contextvars import Context

from arcbox_agent import _spawn
from arcbox_agent._spawn import SpawnError
from arcbox_agent.agent.config import budget
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.observe.rate import OncePerMinute
from arcbox_agent.agent.processes.keeper_line import CUT, KeeperLine
from arcbox_agent.agent.processes.spec import SpawnSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol, TypeVar

    from arcbox_agent.agent.processes.children import Counter, Processes
    from arcbox_agent.agent.processes.lanes import Lanes

    class Held(Protocol):
        """What a keeper that replaces another one is given again."""

        #: The pid and the wait status, once it has ended.
        end: tuple[int, int] | None

        def descriptors(self) -> list[int]:
            """All of it, opened or duplicated: the caller's.  OSError: not all of it."""

        def close(self) -> None:
            """Nothing of it is kept any more."""

    T = TypeVar("T")

log = Logger("keeper")

#: Seconds until a start of the keeper that failed is tried again.  RETRY_SOON: it failed for want of
#: descriptors or memory, which may soon be free.
RETRY = 60.0
RETRY_SOON = 0.2
SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
#: Seconds between two attempts to fetch, and their number, while no descriptor is free to receive what is kept.
PAUSE = 0.05
ATTEMPTS = round(budget.KEEPER_FETCH / PAUSE)


class Keeper:
    """`path`: the keeper's socket, in the run directory; `former_path`: that of an older release's."""

    def __init__(
        self,
        path: str,
        processes: Processes,
        lanes: Lanes,
        metrics: Counter | None = None,
        former_path: str = "",
    ) -> None:
        #: Of the lane, and of spawns.
        self.line = KeeperLine(path)
        self._processes = processes
        self._lanes = lanes
        self._metrics = metrics
        #: The keeper of an older release, and the keys that it holds.
        self._former = Keeper(former_path, processes, lanes) if former_path else None
        self._former_keys: set[str] = set()
        #: What is kept, by key, for a keeper that replaces this one.
        self._held: dict[str, Held] = {}
        #: Changes with every keeper.
        self.generation = 0
        #: The keeper that answers: its number (0: none), and its pidfd (-1: none), which becomes readable when it ends.
        self._pid = 0
        self._pidfd = -1
        #: One change of what is kept at a time: what a killed keeper held, and what comes meanwhile.
        self._changing = asyncio.Lock()
        self._replacing: asyncio.Task[None] | None = None
        self._closed = False
        self._starting = asyncio.Lock()
        self._not_before = 0.0
        self._full_log = OncePerMinute()
        self._missing_log = OncePerMinute()
        #: What waits for a keeper: key -> the order to send, and the descriptors.
        self._put_by: dict[str, tuple[bytes, list[int]]] = {}
        self._offering: asyncio.Task[None] | None = None

    async def start(self) -> list[str]:
        """Connect to the keeper of a former agent.  Returns the keys that it holds; []: there is no keeper."""
        keys = []
        if self._former is not None:
            keys = await self._former.start()
            self._former_keys.update(keys)
            await self._end_former()
        if not await self._in_thread(self.line.connect):
            return keys
        reply, _ = await self._ask(b"l")
        await self._watch()
        return [*keys, *(key.decode(errors="replace") for key in reply.split(b"\0")[1:])]

    async def _end_former(self) -> None:
        if self._former is not None and not self._former_keys:
            await self._former.close()
            self._former = None

    @property
    def pid(self) -> int:
        """The keeper's; 0: there was none yet, or it is not known."""
        return self._pid

    def hold(self, key: str, held: Held) -> None:
        """Until `drop`, a keeper that replaces another one is given `held`."""
        self._held[key] = held

    async def keep(self, key: str, fds: Sequence[int], *, anew: bool = False) -> None:
        """Have the keeper hold `fds` for `key`, in addition to what it holds, or in its place (`anew`).

        It takes `fds` over and closes them once the keeper has them.  They are not duplicated,
        as there may be no descriptor left for that.
        """
        async with self._changing:
            await self._keep(key, fds, anew)

    async def _keep(self, key: str, fds: Sequence[int], anew: bool) -> None:
        if anew:
            self._close_put_by(key)
        order, there = b"n" if anew else b"k", False
        try:
            there = await self._in_thread(self.line.is_there) or await self._start_one()
        finally:
            if not there:
                # Until there is a keeper, a kill of the agent loses them.
                self._put_by.setdefault(key, (order, []))[1].extend(fds)
                if self._offering is None or self._offering.done():
                    self._offering = asyncio.get_running_loop().create_task(self._offer(), context=Context())
        if there:
            # What was put by is sent in the same request: sent later, it could replace these.
            order, before = self._put_by.pop(key, (order, []))
            await self._hand_over(order + key.encode(), [*before, *fds])

    async def _hand_over(self, packet: bytes, fds: Sequence[int]) -> None:
        reply, _ = await self._ask(packet, fds)
        if reply == b"full":
            self._full_log.log(
                log.warning, "the keeper has no room for more descriptors", "also_refused", key=packet[1:].decode()
            )

    async def _offer(self) -> None:
        """Send what was put by as soon as a keeper can be started."""
        loop = asyncio.get_running_loop()
        while self._put_by:
            await asyncio.sleep(max(RETRY_SOON, self._not_before - loop.time()))
            if await self._in_thread(self.line.is_there) or await self._start_one():
                while self._put_by:
                    key, (order, fds) = self._put_by.popitem()
                    await self._hand_over(order + key.encode(), fds)

    def _close_put_by(self, key: str) -> None:
        for fd in self._put_by.pop(key, (b"", ()))[1]:
            os.close(fd)

    async def fetch(self, key: str) -> list[int]:
        """What the keeper holds for `key`, as descriptors that the caller owns."""
        if self._former is not None and key in self._former_keys:
            return await self._former.fetch(key)
        for _ in range(ATTEMPTS):
            if not self.line.open:
                return []
            reply, fds = await self._ask(b"g" + key.encode())
            if reply != CUT:
                return fds
            await asyncio.sleep(PAUSE)
        log.error("no descriptors to take over what is kept", key=key)
        return []

    async def drop(self, key: str) -> None:
        """Hold nothing for `key` any more."""
        held = self._held.pop(key, None)
        if held is not None:
            held.close()
        if self._former is not None and key in self._former_keys:
            await self._former.drop(key)
            self._former_keys.discard(key)
            await self._end_former()
        async with self._changing:
            self._close_put_by(key)
            if self.line.open:
                await self._ask(b"d" + key.encode())

    async def exit_of(self, key: str, pid: int) -> int | None:
        """The wait status of a child of the keeper, which has ended; None: the keeper cannot tell."""
        if not self.line.open:
            return None
        reply, _ = await self._ask(b"e" + key.encode())
        words = reply.split()
        return int(words[2]) if len(words) == 3 and int(words[1]) == pid else None

    # --------------------------------------------------------- its end

    async def _watch(self) -> None:
        """Learn of the end of the keeper that answers."""
        reply, fds = await self._ask(b"i")
        words = reply.split()
        self._forget_pidfd()
        self.generation += 1
        self._processes.spawners.discard(self._pid)
        self._pid = int(words[1]) if len(words) == 2 else 0
        if self._pid:
            self._processes.spawners.add(self._pid)
        for fd in fds[1:]:
            os.close(fd)
        if fds:
            self._pidfd = fds[0]
            asyncio.get_running_loop().add_reader(self._pidfd, self._died)

    def _forget_pidfd(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _died(self) -> None:
        self._forget_pidfd()
        self._processes.spawners.discard(self._pid)
        if self._closed or not self._held:
            return  # one that has nothing to keep ends by itself
        if self._metrics is not None:
            self._metrics.add("keeper_deaths")
        log.warning("the keeper was killed: another one is given what it held", pid=self._pid, held=len(self._held))
        self._replacing = asyncio.get_running_loop().create_task(self._replace(), context=Context())

    async def _replace(self) -> None:
        for key in list(self._held):
            async with self._changing:
                held = self._held.get(key)
                if held is None:
                    continue
                try:
                    fds = held.descriptors()
                except OSError as error:
                    log.error("what a container needs cannot be kept again", container=key, error=error)
                    continue
                await self._keep(key, fds, anew=True)
                if held.end is not None and self.line.open:
                    await self._ask(b"x%b\0%d %d" % (key.encode(), *held.end))
        log.info("the next keeper has what the former one held", pid=self._pid, held=len(self._held))

    async def close(self) -> None:
        self._closed = True
        self._forget_pidfd()
        if self._replacing is not None:
            self._replacing.cancel()
        if self._former is not None:
            await self._former.close()
        if self._offering is not None:
            self._offering.cancel()
        for key in list(self._put_by):
            self._close_put_by(key)
        # In the lane, so after the request that may be under way.
        await self._in_thread(self.line.disconnect)

    # --------------------------------------------------------------- private

    async def _start_one(self) -> bool:
        async with self._starting:
            if self.line.open:
                return True
            now = asyncio.get_running_loop().time()
            if now < self._not_before:
                return False
            fds: list[int] = []
            try:
                # A keeper that was only slow still holds its descriptors.
                if await self._in_thread(self.line.connect) and (await self._ask(b"l"))[0]:
                    await self._watch()
                    return True
                # The script is run by its path: as a module of the package it would import the package.
                script = os.path.join(os.path.dirname(__file__), "keeper_process.py")
                compiled = _spawn.__file__
                fds.append(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
                fds.append(os.dup(fds[0]))
                listener = await self._in_thread(self.line.listen)
                spec = SpawnSpec(
                    [sys.executable, "-ISE", script, compiled],
                    stdio=(listener, fds[0], fds[1]),
                    cwd="/",
                    # It holds descriptors for each container, so it needs the agent's limits.
                    own_limits=True,
                )
                fds.clear()  # the spawn closes them
                await self._processes.spawn(spec)
                if await self._in_thread(self.line.connect):
                    await self._watch()
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

    async def _ask(self, packet: bytes, fds: Sequence[int] = ()) -> tuple[bytes, list[int]]:
        """One exchange, in the lane.  It closes `fds` in any case.  b"": the keeper did not answer."""
        try:
            return await self._in_thread(lambda: self.line.exchange(packet, fds))
        except OSError as error:
            log.error("the keeper does not answer", error=error)
            return b"", []

    async def _in_thread(self, work: Callable[[], T]) -> T:
        # Shielded: a cancelled call must leave neither open descriptors nor an unread reply.
        return await asyncio.shield(self._lanes.keeper(work))

"""The faults that the soak injects, each for a moment; and the clients that behave badly."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from arcbox_agent import wire
from tools.stress.agent import AgentProcess

#: A fault lasts at most so many seconds: far below any time-out of the clients.
LONGEST = 1.0


class Injuries:
    """`disk`: where the ballast goes that fills the disk of the state directory."""

    def __init__(self, agent: AgentProcess, disk: Path, choice: random.Random) -> None:
        self._agent = agent
        self._ballast = disk / "ballast"
        self._choice = choice
        #: Those that the machine, not the agent, is at fault for: calls may be refused meanwhile.
        self.refusing: dict[str, Callable[[], Awaitable[None]]] = {
            "full disk": self.full_disk,
            "no descriptors": self.no_descriptors,
        }
        self.silent: dict[str, Callable[[], Awaitable[None]]] = {
            "stopped": self.stopped,
            "garbage": self.garbage,
            "never reads": self.never_reads,
            "client killed": self.client_killed,
            "connections": self.connections,
        }

    def _moment(self) -> float:
        return self._choice.uniform(0.05, LONGEST)

    async def full_disk(self) -> None:
        """Not one byte is left where containers and logs are kept."""
        try:
            fd = os.open(self._ballast, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                while os.write(fd, bytes(1 << 16)):
                    pass
            except OSError:
                pass  # full
            finally:
                os.close(fd)
            await asyncio.sleep(self._moment())
        finally:
            self._ballast.unlink(missing_ok=True)

    async def no_descriptors(self) -> None:
        """Every new descriptor is refused to the agent."""
        pid = self._agent.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = max(map(int, os.listdir(f"/proc/{pid}/fd")), default=0)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(used + 1, limits[0]), limits[1]))
        try:
            await asyncio.sleep(self._moment())
        finally:
            if self._agent.running:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)

    async def stopped(self) -> None:
        """The whole agent stands still, as a guest that gets no CPU does."""
        self._agent.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(self._moment())
        finally:
            if self._agent.running:
                self._agent.signal(signal.SIGCONT)

    async def garbage(self) -> None:
        """Bytes that are no frames, from several connections."""
        for _ in range(10):
            async with self._raw() as (loop, connection):
                await loop.sock_sendall(connection, self._garbage())
                async with asyncio.timeout(0.1):
                    while await loop.sock_recv(connection, 65536):
                        pass

    def _garbage(self) -> bytes:
        choice = self._choice
        return choice.choice(
            (
                choice.randbytes(choice.randrange(1, 5000)),
                b"\xff\xff\xff\xff" + choice.randbytes(100),
                wire.encode_frame(0x0010, choice.randbytes(50)) + b"\x00\x00\x10",
                wire.encode_frame(0x7777, b"") * 20,
                b"\x00\x00\x00\x08",
            )
        )

    async def never_reads(self) -> None:
        """Pings for as long as they are taken; no reply is ever read."""
        async with self._raw() as (loop, connection), asyncio.timeout(self._moment()):
            while True:
                await loop.sock_sendall(connection, wire.encode_message(wire.PingRequest(message="x" * 500)) * 64)

    async def client_killed(self) -> None:
        """Clients that go away in the middle of a call, without a word."""
        async with self._raw() as (loop, connection):
            request = wire.ExecRequest(cmd=["/bin/sh", "-c", "while :; do echo gone; done"], stream=True)
            await loop.sock_sendall(connection, wire.encode_message(request))
            await loop.sock_recv(connection, 1000)
        async with self._raw() as (loop, connection):
            await loop.sock_sendall(connection, wire.encode_message(wire.ExecRequest(cmd=["/bin/sleep", "600"])))
            await asyncio.sleep(0.05)

    async def connections(self) -> None:
        """Many connections that do nothing."""
        held = []
        try:
            for _ in range(200):
                family, address = self._agent.peer
                connection = socket.socket(family)
                held.append(connection)
                connection.setblocking(False)
                # Under way, as vsock has it, or made at once: nothing waits for it.
                connection.connect_ex(address)
            await asyncio.sleep(self._moment())
        finally:
            for connection in held:
                connection.close()

    @asynccontextmanager
    async def _raw(self) -> AsyncIterator[tuple[asyncio.AbstractEventLoop, socket.socket]]:
        """A connection without our client.  That it is closed on us, or that time is up, is no fault."""
        loop = asyncio.get_running_loop()
        family, address = self._agent.peer
        with socket.socket(family) as connection:
            connection.setblocking(False)
            try:
                await loop.sock_connect(connection, address)
                yield loop, connection
            except (OSError, TimeoutError):
                pass

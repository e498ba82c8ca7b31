"""The rival of a follow's memory: the least that Python takes for a peer who waits for something.

    python waiting_server.py SOCKET

A server on uvloop.  Each connection has a protocol and a task of one coroutine that waits for a
future; nothing is read, nothing is looked for, nobody ever answers.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop


class Waiting(asyncio.Protocol):
    __slots__ = ("_task",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._task = asyncio.get_running_loop().create_task(_wait())

    def connection_lost(self, error: Exception | None) -> None:
        self._task.cancel()


async def _wait() -> None:
    await asyncio.get_running_loop().create_future()


async def main(path: str) -> None:
    server = await asyncio.get_running_loop().create_unix_server(Waiting, path, backlog=1024)
    await server.serve_forever()


uvloop.run(main(sys.argv[1]))

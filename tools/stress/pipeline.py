"""A connection that keeps many requests on the way and checks each reply in its turn.

It speaks frames, not calls: what is judged here is that replies come whole, in
order, in the version of their request and with its trace id.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from arcbox_agent import wire

#: Judges a reply; returns what is wrong with it, or None.
Check = Callable[[Any], str | None]


class Pipeline(asyncio.Protocol):
    """`version` 2 sends a trace id of its own with each request."""

    def __init__(self, name: str, version: Literal[1, 2], window: int) -> None:
        self.name = name
        self.version = version
        self.answered = 0
        self.faults: list[str] = []
        self.lost = asyncio.get_running_loop().create_future()
        self._decoder = wire.FrameDecoder(version=version)
        self._expected: deque[tuple[str | None, str, type | None, Check | None]] = deque()
        self._window = window
        self._room: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._sent = 0

    async def request(self, message: Any, reply: type | None, check: Check | None = None) -> None:
        """Send it as soon as fewer than `window` are on the way.

        `reply`: the class of the reply that must come, None: an Error.
        """
        while len(self._expected) >= self._window and not self.lost.done():
            self._room = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._room, self.lost], return_when=asyncio.FIRST_COMPLETED)
        if self.lost.done():
            raise ConnectionError(f"{self.name}: the agent closed the connection")
        trace = f"{self.name}-{self._sent}" if self.version == 2 else None
        self._sent += 1
        self._expected.append((trace, type(message).__name__, reply, check))
        assert self._transport is not None
        self._transport.write(wire.encode_message(message, trace))

    async def all_answered(self) -> None:
        while self._expected and not self.lost.done():
            self._room = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._room, self.lost], return_when=asyncio.FIRST_COMPLETED)
        if self._expected:
            self.faults.append(f"{self.name}: {len(self._expected)} requests were never answered")

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()

    # ---------------------------------------------------------------- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._decoder.feed(data)
        while (frame := self._decoder.next_frame()) is not None:
            self._judge(frame)
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(exc)

    def _judge(self, frame: Any) -> None:
        self.answered += 1
        if not self._expected:
            self.faults.append(f"{self.name}: a reply of type {frame.type:#x} that nobody asked for")
            return
        trace, request, reply, check = self._expected.popleft()
        where = f"{self.name}, reply {self.answered} (to {request})"
        if frame.trace_id != trace:
            self.faults.append(f"{where}: trace id {frame.trace_id!r} instead of {trace!r}")
        if frame.type == wire.Error.TYPE:
            error = wire.decode_error(frame.payload)
            if reply is not None:
                self.faults.append(f"{where}: error {error.code}: {error.message}")
            elif check is not None and (wrong := check(error)):
                self.faults.append(f"{where}: {wrong}")
            return
        if reply is None or frame.type != reply.TYPE:  # type: ignore[attr-defined]
            self.faults.append(f"{where}: a reply of type {frame.type:#x}")
            return
        if check is None:
            return
        # A LogEntry has another layout in version 2.
        layout = wire.message_class(frame.type, self.version)
        assert layout is not None
        if wrong := check(layout.decode(frame.payload)):
            self.faults.append(f"{where}: {wrong}")


async def connect(where: str | socket.socket, name: str, *, version: Literal[1, 2], window: int) -> Pipeline:
    """`where`: a unix socket's path, or a stream that is connected already."""
    loop = asyncio.get_running_loop()
    if isinstance(where, str):
        _, pipeline = await loop.create_unix_connection(lambda: Pipeline(name, version, window), where)
    else:
        where.setblocking(False)
        _, pipeline = await loop.create_connection(lambda: Pipeline(name, version, window), sock=where)
    return pipeline

"""A peer that speaks bytes: it needs none of the client, and can do what the client never would."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from arcbox_agent.wire import (
    AgentInfo,
    AgentInfoRequest,
    Frame,
    FrameDecoder,
    Message,
    decode_error,
    encode_message,
    message_class,
)
from tests.conftest import PATIENCE, RunningAgent

#: Only what hangs takes this long.


class Peer:
    """A connected socket and what it has received.  V2 where `trace_id` is given."""

    def __init__(self, path: Path | str, version: int = 1) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            # Blocking: with a time-out, a full backlog would be an error instead of a wait.
            self.socket.connect(str(path))
        except BaseException:
            self.socket.close()
            raise
        self.socket.settimeout(PATIENCE)
        self._decoder = FrameDecoder(version=2 if version == 2 else 1)

    def send(self, *messages: Message, trace_id: str | None = None) -> None:
        self.socket.sendall(b"".join(encode_message(message, trace_id) for message in messages))

    def send_bytes(self, data: bytes) -> None:
        self.socket.sendall(data)

    def frame(self) -> Frame:
        """The next frame; EOFError where the agent has closed."""
        while (frame := self._decoder.next_frame()) is None:
            data = self.socket.recv(1 << 18)
            if not data:
                raise EOFError
            self._decoder.feed(data)
        return frame

    def reply(self) -> Message:
        """The next frame's message; an Error frame too is one."""
        frame = self.frame()
        if frame.type == 0xFFFF:
            return decode_error(frame.payload)
        kind = message_class(frame.type, frame.version)
        assert kind is not None, f"unknown type {frame.type:#x}"
        return kind.decode(frame.payload)

    def ask(self, message: Message, trace_id: str | None = None) -> Message:
        self.send(message, trace_id=trace_id)
        return self.reply()

    def bytes_until_closed(self) -> bytes:
        """All that comes before the agent closes the connection."""
        received = bytearray()
        while True:
            try:
                data = self.socket.recv(1 << 18)
            except ConnectionResetError:
                # It closed with bytes of ours unread: what it sent before has arrived.
                return bytes(received)
            if not data:
                return bytes(received)
            received += data

    def is_closed_by_the_agent(self) -> bool:
        try:
            self.bytes_until_closed()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for what must come true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)


def info(agent: RunningAgent) -> AgentInfo:
    """What the agent says of itself, on a connection of its own."""
    with Peer(agent.socket_path) as peer:
        reply = peer.ask(AgentInfoRequest())
    assert isinstance(reply, AgentInfo)
    return reply


def only_peer(agent: RunningAgent) -> Peer:
    """A connection, when the agent has noticed that everybody else has gone."""
    peer = Peer(agent.socket_path)

    def alone() -> bool:
        reply = peer.ask(AgentInfoRequest())
        return isinstance(reply, AgentInfo) and reply.connections == 1

    eventually(alone, "nobody else is connected")
    return peer

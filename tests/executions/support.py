"""Executions by bytes on the wire: what a host library is not needed for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from arcbox_agent import wire
from tests.agent.peer import Peer

SHELL = ["/bin/sh", "-c"]

#: Options of an execution, and not of its command.
OWN = {"id", "open_stdin", "idempotency_key", "spool_limit", "wait_when_full", "keep_ms"}


#: What a test has opened: closed at its end (conftest.py).
OPEN: list[Peer] = []


def connect(path: Path, version: int = 1) -> Peer:
    peer = Peer(path, version)
    OPEN.append(peer)
    return peer


def start(peer: Peer, script: str, **options: Any) -> wire.Execution:
    """Start `script`; `tty`, `timeout_ms`, `env` ... are the command's, all else the execution's."""
    own = {name: options.pop(name) for name in list(options) if name in OWN}
    command = wire.ExecRequest(cmd=[*SHELL, script], **options)
    reply = peer.ask(wire.StartExecutionRequest(command=command, **own))
    assert isinstance(reply, wire.Execution), reply
    return reply


class Attached:
    """An attached client.  It grants what it takes, as a reader does that is never late."""

    def __init__(
        self,
        path: Path,
        id: str,
        *,
        stdout: int | None = 0,
        stderr: int | None = None,
        input: bool = False,
        window: int = 0,
        heartbeat_ms: int = 0,
        grant: bool = True,
        trace_id: str | None = None,
    ) -> None:
        cursors = {"stdout": stdout, "stderr": stderr}
        self.peer = connect(path, version=1 if trace_id is None else 2)
        self.window = window or 256 << 10
        self.grant = grant
        self.data = {name: bytearray() for name, cursor in cursors.items() if cursor is not None}
        self.cursors = {name: cursor for name, cursor in cursors.items() if cursor is not None}
        self.gaps: list[wire.StreamGap] = []
        self.over: set[str] = set()
        self.accepted = wire.StreamAccepted()
        self.end: wire.Message | None = None
        self.trace_id = trace_id
        wanted = [wire.StreamCursor(stream=name, cursor=cursor) for name, cursor in self.cursors.items()]
        self.peer.send(
            wire.AttachExecutionRequest(id=id, outputs=wanted, input=input, window=window, heartbeat_ms=heartbeat_ms),
            trace_id=trace_id,
        )
        self.first = self.peer.reply()

    def send(self, *messages: wire.Message) -> None:
        self.peer.send(*messages, trace_id=self.trace_id)

    def read(self, stream: str = "stdout") -> bytes:
        """What has come of it."""
        return bytes(self.data[stream])

    def step(self) -> wire.Message:
        """Take the next message."""
        message = self.peer.reply()
        if isinstance(message, wire.StreamOutput):
            assert message.cursor == self.cursors[message.stream], "bytes are lost or doubled"
            assert message.stream not in self.over
            self.data[message.stream] += message.data
            self._take(message.stream, len(message.data))
        elif isinstance(message, wire.StreamGap):
            assert message.cursor == self.cursors[message.stream]
            self.gaps.append(message)
            self._take(message.stream, message.bytes)
        elif isinstance(message, wire.StreamEnd):
            assert message.cursor == self.cursors[message.stream]
            self.over.add(message.stream)
        elif isinstance(message, wire.StreamAccepted):
            assert message.offset >= self.accepted.offset
            self.accepted = message
        elif not isinstance(message, wire.StreamAlive):
            self.end = message
        return message

    def _take(self, stream: str, size: int) -> None:
        self.cursors[stream] += size
        if self.grant:
            self.credit(stream)

    def credit(self, stream: str = "stdout") -> None:
        at = self.cursors[stream]
        self.send(wire.StreamCredit(stream=stream, taken=at, until=at + self.window))

    def until(self, what: Callable[[], bool]) -> None:
        while not what():
            assert self.end is None, self.end
            self.step()

    def run(self) -> wire.Execution:
        """Until the end, which it returns."""
        while self.end is None:
            self.step()
        assert isinstance(self.end, wire.Execution), self.end
        assert self.over == set(self.data), "the end came before the last byte"
        return self.end

    def close(self) -> None:
        self.peer.socket.close()

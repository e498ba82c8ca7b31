"""A server that answers as agent 0.0.1-alpha.1 does.

What was recorded of it is answered from the record; the rest (logs, and what becomes
of fields it does not know) as docs/protocol.md tells of it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from pathlib import Path

from arcbox_agent import wire
from arcbox_agent.wire import MessageType

from .servers import error, receive

RECORDED = json.loads((Path(__file__).parent.parent / "wire" / "alpha1.json").read_text())["exchanges"]

#: The container of the recorded exchanges.
CONTAINER = "66efc83d-74b4-47b9-871d-55d5f9941c00"

#: Its calls, and the fields of each that it does not skip.
_FIELDS: dict[int, tuple[str, ...]] = {
    MessageType.PING_REQUEST: ("message",),
    MessageType.GET_SYSTEM_INFO_REQUEST: (),
    MessageType.CREATE_CONTAINER_REQUEST: (
        "name", "image", "cmd", "entrypoint", "env", "working_dir", "user", "mounts", "tty",
    ),
    MessageType.START_CONTAINER_REQUEST: ("id",),
    MessageType.STOP_CONTAINER_REQUEST: ("id", "timeout"),
    MessageType.REMOVE_CONTAINER_REQUEST: ("id", "force"),
    MessageType.LIST_CONTAINERS_REQUEST: ("all",),
    MessageType.EXEC_REQUEST: ("container_id", "cmd", "env", "working_dir", "user", "tty"),
    MessageType.LOGS_REQUEST: (
        "container_id", "follow", "stdout", "stderr", "since", "until", "timestamps", "tail",
    ),
}  # fmt: skip

#: What is in the log of its container, and in the last so many lines of it.
LOG = b"one\n\ntwo"
EMPTY_TAIL = 7


class Alpha1:
    """The function `serve` is for `servers.server`; the record is gone through once."""

    def __init__(self) -> None:
        self._replies: dict[bytes, list[bytes]] = {}
        for exchange in RECORDED:
            if exchange["reply"] is not None:
                replies = self._replies.setdefault(bytes.fromhex(exchange["request"]), [])
                replies.append(bytes.fromhex(exchange["reply"]))

    def serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                (length,) = struct.unpack(">I", receive(connection, 4))
                body = receive(connection, length)
                (kind,) = struct.unpack(">I", body[:4])
                if kind not in _FIELDS:
                    return  # It hangs up without a word.
                connection.sendall(self._answer(kind, body[4:]))

    def _answer(self, kind: int, payload: bytes) -> bytes:
        if payload[:1] == b"\0":
            # The trace id of a V2 frame; field number 0 is illegal.
            text = b"invalid request: failed to decode Protobuf message: invalid tag value: 0"
            return error(400, text, trace=None)
        request_class = wire.message_class(kind, 1)
        assert request_class is not None
        sent = request_class.decode(payload)
        request = request_class(**{name: getattr(sent, name) for name in _FIELDS[kind]})
        if isinstance(request, wire.GetSystemInfoRequest):
            return wire.encode_message(wire.SystemInfo(hostname="alpha", cpu_count=1))
        if isinstance(request, wire.LogsRequest):
            if request.container_id == CONTAINER:
                if request.follow:
                    return b"".join(_entry(line) for line in LOG.split(b"\n") if line)
                return _entry(b"" if request.tail == EMPTY_TAIL else LOG)
            request = wire.LogsRequest(container_id=request.container_id)
        replies = self._replies[wire.encode_message(request)]
        return replies.pop(0) if len(replies) > 1 else replies[0]


def _entry(line: bytes) -> bytes:
    return wire.encode_message(wire.LogEntry(stream="stdout", data=line))

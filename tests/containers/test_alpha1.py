"""The exchanges recorded from 0.0.1-alpha.1, answered by a running agent as they were recorded."""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path
from typing import Any

from arcbox_agent import __version__, wire
from arcbox_agent.message_types import MessageType

EXCHANGES = json.loads((Path(__file__).parent.parent / "wire" / "alpha1.json").read_text())["exchanges"]

#: What differs by rights: the recorded id, its time of creation, the version in a pong.
RECORDED_ID = b"66efc83d-74b4-47b9-871d-55d5f9941c00"


def exchange(connection: socket.socket, request: bytes) -> bytes:
    connection.sendall(request)
    octets = b""
    while len(octets) < 4 or len(octets) < 4 + struct.unpack(">I", octets[:4])[0]:
        more = connection.recv(65536)
        assert more, "the agent closed the connection"
        octets += more
    return octets


def test_every_exchange_of_alpha1_is_answered_as_recorded(agent: Any) -> None:
    ours = RECORDED_ID
    answered = 0
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(agent.socket_path))
        for entry in EXCHANGES:
            request = bytes.fromhex(entry["request"]).replace(RECORDED_ID, ours)
            reply = exchange(connection, request)
            kind = struct.unpack(">I", reply[4:8])[0]
            if entry["reply"] is None:  # an unknown type: alpha.1 hangs up, ours answers 400 and lives
                assert kind == MessageType.ERROR
                assert struct.unpack(">i", reply[8:12])[0] == 400
                continue
            expected = bytes.fromhex(entry["reply"])
            what = entry["what"]
            assert kind == struct.unpack(">I", expected[4:8])[0], what
            if kind == MessageType.ERROR:
                # The code is theirs, and the text is theirs or says more.
                wanted = wire.decode_error(expected[8:])
                got = wire.decode_error(reply[8:])
                assert got.code == wanted.code, what
                if "failed to decode" not in wanted.message:
                    assert got.message.startswith(wanted.message.replace(RECORDED_ID.decode(), ours.decode())), what
            elif kind == MessageType.CREATE_CONTAINER_RESPONSE:
                assert len(reply) == len(expected) and reply[:10] == expected[:10]
                ours = reply[10:]
                assert len(ours) == 36 and ours[14:15] == b"4"
            elif kind == MessageType.PING_RESPONSE:
                assert wire.PingResponse.decode(reply[8:]) == wire.PingResponse(
                    message=wire.PingResponse.decode(expected[8:]).message, version=__version__
                )
            elif what == "list after stop":
                wanted_list = wire.ListContainersResponse.decode(expected[8:])
                got_list = wire.ListContainersResponse.decode(reply[8:])
                assert got_list.containers[0].created > 0
                wanted_list.containers[0].created = got_list.containers[0].created
                wanted_list.containers[0].id = ours.decode()
                assert got_list == wanted_list
                assert len(reply) == len(expected)
            else:
                assert reply == expected, what
            answered += 1
    assert answered == len(EXCHANGES) - 1

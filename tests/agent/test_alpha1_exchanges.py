"""Every exchange recorded from agent 0.0.1-alpha.1, replayed in order on one agent.

The reply is the same bytes but for version, ids, times and, in an Error, a text that
may say more.  One connection carries all of them: alpha.1 closed it at an unknown
type, and ours lives.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent.wire import CreateContainerResponse, Error, ListContainersResponse, PingResponse
from tests.agent.peer import Peer
from tests.conftest import RunningAgent, StartAgent

RECORDED = json.loads((Path(__file__).parent.parent / "wire" / "alpha1.json").read_text())["exchanges"]

#: alpha.1's build called itself so.
THEIR_VERSION, OUR_VERSION = "0.1.0", "0.1.0"


class Replay:
    """The exchanges on one connection; the recorded container id stands for ours."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.their_id = b""
        self.our_id = b""

    def exchange(self, recorded: dict[str, Any]) -> tuple[bytes, bytes | None]:
        """(our reply, the recorded one), payloads behind their types, ids made ours."""
        self.peer.send_bytes(self._ours(bytes.fromhex(recorded["request"])))
        frame = self.peer.frame()
        reply = struct.pack(">I", frame.type) + frame.payload
        if recorded["reply"] is None:
            return reply, None
        expected = bytes.fromhex(recorded["reply"])
        (length,) = struct.unpack_from(">I", expected)
        assert length == len(expected) - 4
        if recorded["what"] == "create":
            self.their_id = CreateContainerResponse.decode(expected[8:]).id.encode()
            self.our_id = CreateContainerResponse.decode(frame.payload).id.encode()
            assert len(self.our_id) == len(self.their_id) == 36
        return reply, self._ours(expected[4:])

    def _ours(self, data: bytes) -> bytes:
        # Of the same length, so no length changes with it.
        return data.replace(self.their_id, self.our_id) if self.their_id else data


def without_times(reply: bytes) -> bytes:
    """A list's bytes with the times of creation set to 0, which is to say left out."""
    containers = ListContainersResponse.decode(reply[4:])
    for container in containers.containers:
        container.created = 0
    return reply[:4] + containers.encode()


def test_every_exchange_of_alpha1_is_answered_as_recorded(start_agent: StartAgent) -> None:
    agent: RunningAgent = start_agent()
    with Peer(agent.socket_path) as peer:
        replay = Replay(peer)
        for recorded in RECORDED:
            what = recorded["what"]
            reply, expected = replay.exchange(recorded)
            if expected is None:
                error = Error.decode(reply[4:])
                assert reply[:4] == b"\0\0\xff\xff", what
                assert error.code == 400, what
            elif expected[:4] == b"\0\0\xff\xff":
                assert_same_error(reply, expected, what)
            elif expected[:4] == b"\0\0\x10\x14":
                assert without_times(reply) == without_times(expected), what
            else:
                assert reply == expected, what


def assert_same_error(reply: bytes, expected: bytes, what: str) -> None:
    assert reply[:4] == expected[:4], what
    # i32 code, u32 length, text.
    assert reply[4:8] == expected[4:8], what
    ours, theirs = reply[12:].decode(), expected[12:].decode()
    # How a payload is broken may be said in other words, and only that.
    theirs = theirs.removesuffix("buffer underflow").removesuffix("invalid string value: data is not UTF-8 encoded")
    assert ours.startswith(theirs), what
    assert int.from_bytes(reply[8:12], "big") == len(reply) - 12, what


def test_the_record_is_whole() -> None:
    assert len(RECORDED) == 31
    assert THEIR_VERSION == OUR_VERSION
    assert PingResponse.decode(bytes.fromhex(RECORDED[0]["reply"])[8:]).version == THEIR_VERSION


@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_exchanges_without_a_container_in_pieces_of_any_size(start_agent: StartAgent, size: int) -> None:
    agent: RunningAgent = start_agent()
    requests = b"".join(bytes.fromhex(each["request"]) for each in RECORDED[:10])
    with Peer(agent.socket_path) as peer:
        for at in range(0, len(requests), size):
            peer.send_bytes(requests[at : at + size])
        for recorded in RECORDED[:10]:
            frame = peer.frame()
            reply = struct.pack(">I", frame.type) + frame.payload
            if recorded["reply"] is None:
                assert Error.decode(frame.payload).code == 400
            elif frame.type == 0xFFFF:
                assert_same_error(reply, bytes.fromhex(recorded["reply"])[4:], recorded["what"])
            else:
                assert reply == bytes.fromhex(recorded["reply"])[4:], recorded["what"]

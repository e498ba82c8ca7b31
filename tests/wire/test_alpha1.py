"""The exchanges recorded from the agent 0.0.1-alpha.1, byte for byte."""

from __future__ import annotations

import json
import pathlib
from typing import Literal

import pytest

from arcbox_agent import wire
from arcbox_agent.wire import MessageType

EXCHANGES = json.loads(pathlib.Path(__file__).with_name("alpha1.json").read_text())["exchanges"]

#: Payloads that alpha.1 refused to parse.
BROKEN = {"ping, payload cut short", "ping, string not utf-8"}


def frames(data: bytes, version: Literal[1, 2] | None) -> list[wire.Frame]:
    decoder = wire.FrameDecoder(version=version)
    decoder.feed(data)
    decoder.eof()
    found = []
    while (frame := decoder.next_frame()) is not None:
        found.append(frame)
    return found


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: exchange["what"])
def test_a_recorded_request_is_understood(exchange: dict[str, str]) -> None:
    for frame in frames(bytes.fromhex(exchange["request"]), None):
        assert frame.version == 1
        assert frame.trace_id is None
        cls = wire.message_class(frame.type)
        if "unknown type" in exchange["what"]:
            assert cls is None
            continue
        assert cls is not None
        if exchange["what"] in BROKEN:
            with pytest.raises(wire.DecodeError, match=r"^PingRequest\.message: "):
                cls.decode(frame.payload)
        else:
            cls.decode(frame.payload)


@pytest.mark.parametrize("exchange", [e for e in EXCHANGES if e["reply"]], ids=lambda exchange: exchange["what"])
def test_a_recorded_reply_is_written_with_the_same_bytes(exchange: dict[str, str]) -> None:
    reply = bytes.fromhex(exchange["reply"])
    again = b""
    for frame in frames(reply, 1):
        cls = wire.message_class(frame.type)
        assert cls is not None
        again += wire.encode_message(cls.decode(frame.payload))
    assert again == reply


def test_the_recorded_error_is_code_and_message() -> None:
    (exchange,) = [e for e in EXCHANGES if e["what"] == "ping, payload cut short"]
    (frame,) = frames(bytes.fromhex(exchange["reply"]), 1)
    assert frame.type == MessageType.ERROR
    error = wire.decode_error(frame.payload)
    assert error.code == 400
    assert error.message == (
        "invalid request: failed to decode Protobuf message: PingRequest.message: buffer underflow"
    )

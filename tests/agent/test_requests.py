"""What a peer gets for what it sends: each case by its bytes."""

from __future__ import annotations

import os

import pytest

from arcbox_agent.wire import (
    MAX_FRAME_SIZE,
    AgentInfo,
    AgentInfoRequest,
    CreateContainerRequest,
    CreateContainerResponse,
    Empty,
    Error,
    ExecOutput,
    ExecRequest,
    GetSystemInfoRequest,
    KillContainerRequest,
    LogEntryV2,
    LogsRequest,
    MessageType,
    PauseContainerRequest,
    PingRequest,
    PingResponse,
    StartContainerRequest,
    SystemInfo,
    WaitContainerRequest,
    WaitContainerResponse,
    encode_frame,
    encode_message,
    message_class,
)
from tests.agent.peer import Peer
from tests.conftest import RunningAgent, StartAgent

VERSION = "0.1.0"


def test_a_ping_is_answered_in_the_version_it_came_in(agent: RunningAgent) -> None:
    with Peer(agent.socket_path) as peer:
        peer.send_bytes(bytes.fromhex("0000000a000000010a0470696e67"))
        assert peer.socket.recv(99).hex() == "00000017000010010a0a706f6e673a2070696e671205302e312e30"
        # V2: trace id "t-1".
        peer.send_bytes(bytes.fromhex("0000000f00000001" + "0003742d31" + "0a0470696e67"))
        assert (
            peer.socket.recv(99).hex() == "0000001c00001001" + "0003742d31" + "0a0a706f6e673a2070696e671205302e312e30"
        )


def test_an_empty_trace_id_is_still_v2(agent: RunningAgent) -> None:
    with Peer(agent.socket_path) as peer:
        peer.send_bytes(bytes.fromhex("00000006000000010000"))
        assert peer.socket.recv(99).hex() == "00000013000010010000" + "0a04706f6e67" + "1205302e312e30"


def test_a_ping_that_asks_for_detail_is_told_the_calls_there_are(agent: RunningAgent) -> None:
    with Peer(agent.socket_path) as peer:
        reply = peer.ask(PingRequest(message="x", detail=True))
        assert isinstance(reply, PingResponse)
        assert (reply.message, reply.version) == ("pong: x", VERSION)
        info = peer.ask(AgentInfoRequest())
        assert isinstance(info, AgentInfo)
        assert reply.features == info.features
        assert "wait_container" in reply.features
        # Alpha.1's hosts do not ask, and get the bytes they always got.
        assert peer.ask(PingRequest(message="x")) == PingResponse(message="pong: x", version=VERSION)


def test_a_ping_with_the_hosts_time_is_answered_too(agent: RunningAgent) -> None:
    import time

    with Peer(agent.socket_path) as peer:
        reply = peer.ask(PingRequest(message="x", timestamp_secs=int(time.time())))
    assert reply == PingResponse(message="pong: x", version=VERSION)


def test_system_info_does_not_look_at_its_payload(agent: RunningAgent) -> None:
    with Peer(agent.socket_path) as peer:
        peer.send_bytes(encode_frame(0x0002, b"\xff\xff\xff"))
        assert isinstance(peer.reply(), SystemInfo)


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        ("0000000500007777" + "78", "invalid request: unknown message type: 0x00007777"),
        ("0000000400001001", "invalid request: unexpected message type: PingResponse"),
        ("0000000400000000", "invalid request: unexpected message type: Empty"),
        ("000000040000ffff", "invalid request: unexpected message type: Error"),
        ("0000000400001021", "invalid request: unexpected message type: LogEntry"),
    ],
)
def test_what_is_no_request_gets_400_and_the_connection_lives(agent: RunningAgent, frame: str, text: str) -> None:
    with Peer(agent.socket_path) as peer:
        peer.send_bytes(bytes.fromhex(frame))
        assert peer.reply() == Error(code=400, message=text)
        assert peer.ask(PingRequest()) == PingResponse(message="pong", version=VERSION)


def test_a_request_that_is_known_but_not_served_says_so(agent: RunningAgent) -> None:
    with Peer(agent.socket_path) as peer:
        assert peer.ask(PauseContainerRequest()) == Error(
            code=400, message="invalid request: this agent does not serve PauseContainerRequest"
        )


@pytest.mark.parametrize("payload", [b"\x0a\x10abc", b"\x0a\x01\xff", b"\x00", b"\x0a"])
def test_a_payload_that_does_not_parse_gets_400_and_the_connection_lives(agent: RunningAgent, payload: bytes) -> None:
    with Peer(agent.socket_path) as peer:
        # Behind another field, so that no byte below 0x08 makes it a V2 frame.
        peer.send_bytes(encode_frame(0x0001, b"\x0a\x01x" + payload))
        reply = peer.reply()
        assert isinstance(reply, Error)
        assert reply.code == 400
        assert reply.message.startswith("invalid request: failed to decode Protobuf message: PingRequest")
        assert peer.ask(PingRequest()) == PingResponse(message="pong", version=VERSION)


def test_an_error_comes_in_the_version_and_with_the_trace_id_of_its_request(agent: RunningAgent) -> None:
    with Peer(agent.socket_path, version=2) as peer:
        peer.send(PauseContainerRequest(), trace_id="trace-é")
        frame = peer.frame()
        assert (frame.type, frame.trace_id) == (0xFFFF, "trace-é")


def test_an_error_that_repeats_what_was_sent_is_no_longer_than_a_person_reads(agent: RunningAgent) -> None:
    id = "x" * (MAX_FRAME_SIZE - 30)
    with Peer(agent.socket_path) as peer:
        for request in (KillContainerRequest(id=id), ExecRequest(cmd=["true"], container_id=id)):
            reply = peer.ask(request)
            assert isinstance(reply, Error)
            assert (reply.code, reply.message) == (404, f"container not found: {id}"[: 8 << 10] + "...")


def test_a_trace_id_that_is_not_utf_8_is_echoed_by_every_kind_of_reply(agent: RunningAgent) -> None:
    trace = os.fsdecode(b"\xff\xfe")
    with Peer(agent.socket_path, version=2) as peer:
        created = peer.ask(CreateContainerRequest(cmd=["echo", "a"]), trace)
        assert isinstance(created, CreateContainerResponse)
        id = created.id
        requests = [
            (PingRequest(), PingResponse),
            (ExecRequest(cmd=["echo", "a"]), ExecOutput),
            (StartContainerRequest(id=id), Empty),
            (WaitContainerRequest(id=id), WaitContainerResponse),
            (LogsRequest(container_id=id), LogEntryV2),
        ]
        for request, kind in requests:
            peer.send(request, trace_id=trace)
            frame = peer.frame()
            assert (message_class(frame.type, 2), frame.trace_id) == (kind, trace)
        streams = (ExecRequest(cmd=["echo", "a"], stream=True), LogsRequest(container_id=id, stream=True))
        for stream in streams:
            peer.send(stream, PingRequest(), trace_id=trace)
            frames = [peer.frame(), peer.frame(), peer.frame()]
            assert {frame.trace_id for frame in frames} == {trace}
            assert frames[-1].type == MessageType.PING_RESPONSE


@pytest.mark.parametrize(
    ("stream", "text"),
    [
        ("00000003", "invalid frame: frame length 3 is below the minimum of 4"),
        ("01000001", "invalid frame: frame length 16777217 is above the limit of 16777216"),
        ("ffffffff", "invalid frame: frame length 4294967295 is above the limit of 16777216"),
    ],
)
def test_a_broken_frame_gets_400_and_is_closed_after_what_is_owed(agent: RunningAgent, stream: str, text: str) -> None:
    ping = encode_message(PingRequest(message="a"))
    with Peer(agent.socket_path) as peer:
        peer.send_bytes(ping + encode_message(GetSystemInfoRequest()) + ping + bytes.fromhex(stream) + ping)
        assert peer.reply() == PingResponse(message="pong: a", version=VERSION)
        assert isinstance(peer.reply(), SystemInfo)
        assert peer.reply() == PingResponse(message="pong: a", version=VERSION)
        assert peer.reply() == Error(code=400, message=text)
        with pytest.raises((EOFError, ConnectionResetError)):
            peer.reply()


def test_a_frame_that_ends_with_the_stream_is_broken(agent: RunningAgent) -> None:
    with Peer(agent.socket_path) as peer:
        peer.send_bytes(encode_message(PingRequest(message="a")) + b"\0\0\0\x0a\0\0")
        peer.socket.shutdown(1)
        assert peer.reply() == PingResponse(message="pong: a", version=VERSION)
        assert peer.reply() == Error(code=400, message="invalid frame: stream ended after 6 of a frame's 14 bytes")
        assert peer.is_closed_by_the_agent()


def test_the_longest_frame_is_accepted_and_one_byte_more_is_not(start_agent: StartAgent) -> None:
    agent = start_agent(max_frame_size="64KiB")
    # length = 4 (type) + 1 (tag) + 3 (its size) + text
    text = "x" * ((64 << 10) - 8)
    with Peer(agent.socket_path) as peer:
        assert peer.ask(PingRequest(message=text)) == PingResponse(message="pong: " + text, version=VERSION)
        peer.send(PingRequest(message=text + "x"))
        assert peer.reply() == Error(code=400, message="invalid frame: frame length 65537 is above the limit of 65536")


def test_a_reply_that_no_frame_can_hold_is_an_error_that_says_so(start_agent: StartAgent) -> None:
    agent = start_agent(max_frame_size="64KiB")
    with Peer(agent.socket_path) as peer:
        reply = peer.ask(ExecRequest(cmd=["head", "-c", "70000", "/dev/zero"]))
        assert reply == Error(
            code=500,
            message="the reply is 70018 bytes long, more than max_frame_size, 65536: ask for less, or for a stream",
        )
        assert peer.ask(PingRequest()) == PingResponse(message="pong", version=VERSION)


def test_requests_that_come_byte_by_byte_are_answered(agent: RunningAgent) -> None:
    stream = b"".join(
        encode_message(message, trace_id)
        for message, trace_id in (
            (PingRequest(message="one"), "t"),
            (AgentInfoRequest(), "t"),
            (PingRequest(message="two"), "t"),
        )
    )
    with Peer(agent.socket_path, version=2) as peer:
        for i in range(len(stream)):
            peer.send_bytes(stream[i : i + 1])
        assert peer.reply() == PingResponse(message="pong: one", version=VERSION)
        assert isinstance(peer.reply(), AgentInfo)
        assert peer.reply() == PingResponse(message="pong: two", version=VERSION)


def test_replies_come_in_order_however_many_requests_one_send_brings(agent: RunningAgent) -> None:
    requests: list[PingRequest | AgentInfoRequest] = []
    for i in range(20_000):
        requests.append(PingRequest(message=str(i)))
        if i % 7 == 0:
            requests.append(AgentInfoRequest())
    with Peer(agent.socket_path) as peer:
        import threading

        sender = threading.Thread(target=lambda: peer.send(*requests))
        sender.start()
        for i in range(20_000):
            assert peer.reply() == PingResponse(message=f"pong: {i}", version=VERSION)
            if i % 7 == 0:
                assert isinstance(peer.reply(), AgentInfo)
        sender.join()


def test_replies_in_one_read_may_mix_versions(agent: RunningAgent) -> None:
    with Peer(agent.socket_path) as peer:
        peer.send_bytes(
            encode_message(PingRequest()) + encode_message(PingRequest(), "t") + encode_message(PingRequest())
        )
        v1 = "00000011000010010a04706f6e671205302e312e30"
        v2 = "00000014000010010001740a04706f6e671205302e312e30"
        expected = bytes.fromhex(v1 + v2 + v1)
        received = b""
        while len(received) < len(expected):
            received += peer.socket.recv(999)
        assert received == expected

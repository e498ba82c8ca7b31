"""Duplex calls: messages that follow a request and belong to it, by a real Server over a real socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent.agent.config.access import Access
from arcbox_agent.agent.config.table import Settings
from arcbox_agent.agent.metrics import Metrics
from arcbox_agent.agent.observe.memory import Memory
from arcbox_agent.agent.serving.call import Call
from arcbox_agent.agent.serving.route import Route
from arcbox_agent.agent.serving.server import Server
from arcbox_agent.agent.serving.sockets import open_listeners
from arcbox_agent.message_types import MessageType
from arcbox_agent.wire import (
    AttachInput,
    AttachRequest,
    Error,
    ExecOutput,
    ListContainersRequest,
    PingRequest,
    PingResponse,
    RuntimeStatusRequest,
    encode_frame,
    encode_message,
)
from tests.agent.peer import Peer


class Attach:
    """Echoes its input in pieces; the reply tells all of it.  It takes nothing while `go` is not set."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.taken = 0
        self.stop_after = 1 << 62

    async def run(self, request: AttachRequest, call: Call) -> ExecOutput:
        whole = bytearray()
        await self.go.wait()
        while self.taken < self.stop_after and (message := await call.receive()) is not None:
            assert isinstance(message, AttachInput)
            self.taken += 1
            whole += message.data
            if request.container_id == "echo":
                await call.send(ExecOutput(stream="stdout", data=message.data))
        return ExecOutput(stream="stdout", data=bytes(whole), done=True)

    async def slow(self, request: RuntimeStatusRequest, call: Call) -> PingResponse:
        await self.go.wait()
        return PingResponse(message="slow")


def ping(request: PingRequest, call: Call) -> PingResponse:
    return PingResponse(message=f"pong: {request.message}" if request.message else "pong", version="1")


def no_inputs(request: None, call: Call) -> Any:
    async def work() -> Any:
        await call.receive()

    return work()


@pytest.fixture
def serve(tmp_path: Path, run_async: Any) -> Callable[..., dict[str, int]]:
    """`serve(talk, **settings)`: runs `talk(path, attach, loop)` in a thread beside a server; returns the counters."""

    def run(talk: Callable[[Path, Attach, asyncio.AbstractEventLoop], None], **options: Any) -> dict[str, int]:
        async def main() -> dict[str, int]:
            settings = Settings(listen=[f"unix:{tmp_path}/s"], **options)
            metrics = Metrics()
            loop = asyncio.get_running_loop()
            attach = Attach()
            routes: dict[int, Route] = {
                MessageType.ATTACH_REQUEST: Route(
                    attach.run, AttachRequest, Access.EXEC, {MessageType.ATTACH_INPUT: AttachInput}
                ),
                MessageType.RUNTIME_STATUS_REQUEST: Route(attach.slow, RuntimeStatusRequest, Access.READ),
                MessageType.PING_REQUEST: Route(ping, PingRequest, Access.READ),
                MessageType.LIST_CONTAINERS_REQUEST: Route(no_inputs, ListContainersRequest, Access.READ),
            }
            server = Server(settings, metrics, "1", routes, Memory())
            (listener,) = open_listeners(settings, {})
            listener.start(loop, settings, metrics, server.accept)
            try:
                await asyncio.to_thread(talk, tmp_path / "s", attach, loop)
            finally:
                await listener.close()
                await server.close(loop.time() + 5)
            return metrics.counters

        counters: dict[str, int] = run_async(main())
        return counters

    return run


def inputs(*pieces: bytes, trace_id: str | None = None) -> bytes:
    return b"".join(encode_message(AttachInput(data=piece), trace_id) for piece in pieces)


def test_what_follows_the_request_reaches_the_call_and_its_end_is_the_peers(serve: Any) -> None:
    def talk(path: Path, attach: Attach, loop: asyncio.AbstractEventLoop) -> None:
        with Peer(path) as peer:
            peer.send(AttachRequest(container_id="echo"))
            for piece in (b"a", b"bc"):
                peer.send(AttachInput(data=piece))
                assert peer.reply() == ExecOutput(stream="stdout", data=piece)
            peer.socket.shutdown(socket.SHUT_WR)
            assert peer.reply() == ExecOutput(stream="stdout", data=b"abc", done=True)
            assert peer.is_closed_by_the_agent()

    serve(talk)


@pytest.mark.parametrize("max_pipelined", [1, 2, 1000])
def test_what_comes_in_one_read_with_the_request_and_the_end_is_all_of_it_the_calls(
    serve: Any, max_pipelined: int
) -> None:
    pieces = [bytes([i % 256]) * 3 for i in range(300)]

    def talk(path: Path, attach: Attach, loop: asyncio.AbstractEventLoop) -> None:
        with Peer(path) as peer:
            peer.send_bytes(encode_message(AttachRequest()) + inputs(*pieces))
            peer.socket.shutdown(socket.SHUT_WR)
            assert peer.reply() == ExecOutput(stream="stdout", data=b"".join(pieces), done=True)
            assert peer.is_closed_by_the_agent()

    serve(talk, max_pipelined=max_pipelined)


def test_a_request_that_comes_meanwhile_waits_for_its_turn_and_the_input_behind_it_does_not(serve: Any) -> None:
    def talk(path: Path, attach: Attach, loop: asyncio.AbstractEventLoop) -> None:
        attach.stop_after = 2
        with Peer(path, version=2) as peer:
            peer.send(AttachRequest(container_id="echo"), trace_id="first")
            peer.send_bytes(inputs(b"a", trace_id="first"))
            peer.send(PingRequest(message="x"), trace_id="second")
            peer.send_bytes(inputs(b"b", trace_id="first"))
            frames = [peer.frame() for _ in range(4)]
            assert [frame.trace_id for frame in frames] == ["first", "first", "first", "second"]
            assert ExecOutput.decode(frames[2].payload) == ExecOutput(stream="stdout", data=b"ab", done=True)
            assert PingResponse.decode(frames[3].payload) == PingResponse(message="pong: x", version="1")

    serve(talk)


def test_input_that_comes_when_the_call_has_ended_is_dropped_and_the_next_call_gets_its_own(serve: Any) -> None:
    def talk(path: Path, attach: Attach, loop: asyncio.AbstractEventLoop) -> None:
        attach.stop_after = 1
        with Peer(path) as peer:
            peer.send_bytes(encode_message(AttachRequest()) + inputs(b"a", b"late"))
            assert peer.reply() == ExecOutput(stream="stdout", data=b"a", done=True)
            peer.send_bytes(inputs(b"later"))
            peer.send(PingRequest())
            assert peer.reply() == PingResponse(message="pong", version="1")
            attach.taken = 0
            peer.send_bytes(encode_message(AttachRequest()) + inputs(b"b"))
            assert peer.reply() == ExecOutput(stream="stdout", data=b"b", done=True)

    assert serve(talk)["requests"] == 3


def test_input_without_any_call_is_refused(serve: Any) -> None:
    def talk(path: Path, attach: Attach, loop: asyncio.AbstractEventLoop) -> None:
        with Peer(path) as peer:
            reply = peer.ask(AttachInput(data=b"a"))
            assert reply == Error(code=400, message="invalid request: unexpected message type: AttachInput")

    serve(talk)


@pytest.mark.parametrize("bound", ["max_pipelined", "max_queued_bytes"])
def test_input_that_nobody_takes_stops_the_reading_and_none_is_lost(serve: Any, bound: str) -> None:
    options = {"max_pipelined": 10} if bound == "max_pipelined" else {"max_queued_bytes": 64 << 10}

    def talk(path: Path, attach: Attach, loop: asyncio.AbstractEventLoop) -> None:
        attach.go.clear()
        piece = encode_message(AttachInput(data=b"x" * 10000))
        with Peer(path) as peer:
            peer.send(AttachRequest())
            peer.socket.settimeout(1.0)
            sent = 0
            with pytest.raises(TimeoutError):
                while True:
                    sent += peer.socket.send(memoryview(piece)[sent % len(piece) :])
                    assert sent < 64 << 20, "the agent takes without end"
            peer.socket.settimeout(60)
            assert attach.taken == 0
            loop.call_soon_threadsafe(attach.go.set)
            if sent % len(piece):
                peer.send_bytes(piece[sent % len(piece) :])
            peer.socket.shutdown(socket.SHUT_WR)
            reply = peer.reply()
            assert isinstance(reply, ExecOutput)
            assert len(reply.data) == -(-sent // len(piece)) * 10000

    counters = serve(talk, max_frame_size=64 << 20, **options)
    assert counters["bound_pipelined"] >= 1


def test_a_call_that_begins_while_the_connection_is_paused_gets_its_input(serve: Any) -> None:
    def talk(path: Path, attach: Attach, loop: asyncio.AbstractEventLoop) -> None:
        attach.go.clear()
        attach.stop_after = 1
        with Peer(path) as peer:
            # Behind the slow one, two requests fill the inbox; what follows them is not read then.
            peer.send(RuntimeStatusRequest())
            peer.send_bytes(encode_message(AttachRequest()) + encode_message(PingRequest()) + inputs(b"a"))
            loop.call_soon_threadsafe(attach.go.set)
            assert peer.reply() == PingResponse(message="slow")
            assert peer.reply() == ExecOutput(stream="stdout", data=b"a", done=True)
            assert peer.reply() == PingResponse(message="pong", version="1")

    serve(talk, max_pipelined=2)


def test_input_cut_off_in_the_middle_of_a_frame_is_an_error_and_no_end(serve: Any) -> None:
    def talk(path: Path, attach: Attach, loop: asyncio.AbstractEventLoop) -> None:
        with Peer(path) as peer:
            peer.send_bytes(encode_message(AttachRequest()) + inputs(b"a") + inputs(b"bcd")[:-1])
            peer.socket.shutdown(socket.SHUT_WR)
            reply = peer.reply()
            assert isinstance(reply, Error)
            assert (reply.code, reply.message.startswith("invalid frame: ")) == (400, True)

    assert serve(talk)["handler_failures"] == 0


def test_input_that_cannot_be_decoded_is_an_error_of_the_call(serve: Any) -> None:
    def talk(path: Path, attach: Attach, loop: asyncio.AbstractEventLoop) -> None:
        with Peer(path) as peer:
            peer.send_bytes(encode_message(AttachRequest()) + encode_frame(MessageType.ATTACH_INPUT, b"\x0f"))
            reply = peer.reply()
            assert isinstance(reply, Error)
            assert (reply.code, "failed to decode" in reply.message) == (400, True)
            assert peer.ask(PingRequest()) == PingResponse(message="pong", version="1")

    serve(talk)


def test_a_call_that_waits_for_input_ends_with_its_peer(serve: Any) -> None:
    def talk(path: Path, attach: Attach, loop: asyncio.AbstractEventLoop) -> None:
        with Peer(path) as peer:
            peer.send(AttachRequest(container_id="echo"), AttachInput(data=b"a"))
            assert peer.reply() == ExecOutput(stream="stdout", data=b"a")
        with Peer(path) as peer:
            assert peer.ask(PingRequest()) == PingResponse(message="pong", version="1")

    serve(talk)


def test_a_call_without_inputs_cannot_receive(serve: Any, capfd: pytest.CaptureFixture[str]) -> None:
    def talk(path: Path, attach: Attach, loop: asyncio.AbstractEventLoop) -> None:
        with Peer(path) as peer:
            reply = peer.ask(ListContainersRequest())
            assert isinstance(reply, Error)
            assert "the route of this call has no inputs" in reply.message

    serve(talk)
    assert "request failed" in capfd.readouterr().err

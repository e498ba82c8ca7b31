"""A handler with a fault in it: its request is answered, its trace is logged, and the agent lives."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent.agent.config.access import Access
from arcbox_agent.agent.config.table import Settings
from arcbox_agent.agent.metrics import Metrics
from arcbox_agent.agent.observe.memory import Memory
from arcbox_agent.agent.serving.route import Route
from arcbox_agent.agent.serving.server import Server
from arcbox_agent.agent.serving.sockets import open_listeners
from arcbox_agent.message_types import MessageType
from arcbox_agent.wire import (
    Error,
    ListContainersRequest,
    Message,
    PingRequest,
    PingResponse,
    RuntimeStatusRequest,
    encode_frame,
    encode_message,
)
from tests.agent.peer import Peer


def fails_at_once(request: Any, call: Any) -> Any:
    raise KeyError("a fault")


async def fails_later(request: Any, call: Any) -> Any:
    await asyncio.sleep(0.01)
    raise KeyError("a fault")


def answers_what_it_must_not(request: Any, call: Any) -> Any:
    return PingResponse(version=5)  # type: ignore[arg-type]


ROUTES: dict[int, Route] = {
    MessageType.LIST_CONTAINERS_REQUEST: Route(fails_at_once, ListContainersRequest, Access.READ),
    MessageType.RUNTIME_STATUS_REQUEST: Route(fails_later, RuntimeStatusRequest, Access.READ),
    MessageType.GET_SYSTEM_INFO_REQUEST: Route(answers_what_it_must_not, None, Access.READ),
}


@pytest.mark.parametrize("kind", ROUTES)
def test_its_request_gets_500_and_the_connection_lives(
    kind: MessageType, tmp_path: Path, run_async: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    faulty = encode_frame(kind, b"", "a trace")

    def talk() -> tuple[Message, Message]:
        with Peer(tmp_path / "s", version=2) as peer:
            peer.send_bytes(faulty + encode_message(PingRequest(message="next"), "another"))
            return peer.reply(), peer.reply()

    async def main() -> tuple[tuple[Message, Message], int]:
        settings = Settings(listen=[f"unix:{tmp_path}/s"])
        metrics = Metrics()
        loop = asyncio.get_running_loop()
        server = Server(settings, metrics, "1", ROUTES, Memory())
        (listener,) = open_listeners(settings, {})
        listener.start(loop, settings, metrics, server.accept)
        replies = await asyncio.to_thread(talk)
        await listener.close()
        await server.close(loop.time() + 5)
        return replies, metrics.counters["handler_failures"]

    (refused, after), failures = run_async(main())
    assert isinstance(refused, Error)
    assert refused.code == 500
    assert refused.message.startswith("internal error: ")
    assert refused.message.endswith("; the agent's log has the trace")
    assert after == PingResponse(message="pong: next", version="1")
    assert failures == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "request failed" in line]
    assert "Traceback" in line and 'trace="a trace"' in line

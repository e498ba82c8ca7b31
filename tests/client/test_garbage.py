"""Whatever a peer sends, a call ends with an error that says whose fault it is, and costs one connection."""

from __future__ import annotations

import asyncio
import socket

from hypothesis import given, settings
from hypothesis import strategies as st

import arcbox_agent
from arcbox_agent.errors import ConnectError, RequestError, TransportError, WireError

from .servers import ERROR, PONG, answer_pings, frame, pong, read_request, server, text

TRACE = "0123"

#: Bytes that are nothing, and bytes that are nearly a reply.
ANSWERS = st.binary(max_size=64) | st.builds(
    lambda type, payload, trace, cut: frame(type, payload, trace)[:cut],
    st.sampled_from([PONG, ERROR, 0, 0x1021]),
    st.binary(max_size=32) | st.just(text(1, b"pong")),
    st.sampled_from([TRACE.encode(), b"", b"\xff", None]),
    st.integers(0, 64),
)


@settings(max_examples=150, deadline=None)
@given(answer=ANSWERS)
def test_any_answer_is_a_reply_or_an_error(answer: bytes) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(pong(read_request(connection)))
        read_request(connection)
        connection.sendall(answer)

    async def main(address: str) -> None:
        async with asyncio.timeout(60), arcbox_agent.connect(address, trace_id=TRACE) as client:
            try:
                # Not a ping, which would be sent again where the connection is lost.
                await client.call(arcbox_agent.wire.PingRequest(), arcbox_agent.wire.PingResponse)
            except (WireError, TransportError, RequestError) as error:
                assert not isinstance(error, ConnectError)
            assert (await client.ping()).message == "pong"

    with server(serve, answer_pings) as agent:
        asyncio.run(main(agent.address))

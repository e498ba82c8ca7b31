"""`connect`: from an address to a client whose agent has answered.

async with connect("vsock://3:1024", wait=30) as client: ...
client = await connect("unix:///run/arcbox-agent.sock")
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Literal

from arcbox_agent.address import parse_address
from arcbox_agent.client.client import Client
from arcbox_agent.client.connection import Connection, open_connection
from arcbox_agent.client.transport import is_lasting
from arcbox_agent.errors import CallTimeoutError, ConnectError, ConnectionLostError
from arcbox_agent.wire import MAX_FRAME_SIZE

if TYPE_CHECKING:
    from types import TracebackType

DEFAULT_TIMEOUT = 30.0
DEFAULT_OUTPUT_LIMIT = 64 * 1024 * 1024

#: Seconds between two tries of `wait`: at first, and at most.
FIRST_PAUSE, LAST_PAUSE = 0.02, 0.5

#: Seconds for one try of `wait`, so that one try does not use up all of the time: a
#: hypervisor's socket accepts before the guest is up, and never answers that connection.
MAX_TRY = 5.0

#: A frame with a longer trace id could be taken for V1: see docs/protocol.md.
MAX_TRACE_ID = 2047


def new_trace_id() -> str:
    return secrets.token_hex(6)


def connect(
    address: str,
    *,
    timeout: float | None = DEFAULT_TIMEOUT,
    wait: float = 0.0,
    frame_version: Literal[1, 2] | None = None,
    trace_id: str | Callable[[], str] = new_trace_id,
    max_connections: int = 8,
    max_streams: int = 64,
    max_tunnels: int = 1024,
    output_limit: int = DEFAULT_OUTPUT_LIMIT,
    max_frame_size: int = MAX_FRAME_SIZE,
) -> Connecting:
    """Connect to the agent at `address`: `async with` the result, or await it, for a client.

    `timeout`: seconds for each call that has none of its own; None: no limit.
    `wait`: seconds to keep trying while a guest boots.
    `frame_version`: 2, with a trace id in each frame that the agent's log repeats, or 1,
    for agents of 2025; None: 2, and 1 if the agent does not know 2.
    `trace_id`: one trace id for all calls, or a function that makes one for each.
    `max_connections`: how many connections short calls may use at a time.
    `max_streams`: how many calls may run at a time that take long (follows, commands,
    waits), each on a connection of its own.
    `max_tunnels`: how many connections may be forwarded at a time, each on one of its own.
    `output_limit`: how many bytes of output `exec` keeps.
    `max_frame_size`: bytes of the largest frame that is sent or accepted.

    Raises AddressError; awaiting it raises ConnectError or CallTimeoutError.
    """
    if frame_version not in (None, 1, 2):
        raise ValueError(f"frame_version is 1 or 2, not {frame_version!r}")
    where = parse_address(address)

    async def dial(version: Literal[1, 2]) -> Connection:
        return await open_connection(where, version=version, max_frame_size=max_frame_size)

    def make_client() -> Client:
        return Client(
            dial,
            timeout=timeout,
            versions=(2, 1) if frame_version is None else (frame_version,),
            trace_id=_checked(trace_id),
            max_connections=max_connections,
            max_streams=max_streams,
            max_tunnels=max_tunnels,
            output_limit=output_limit,
            max_frame_size=max_frame_size,
        )

    return Connecting(str(where), make_client, timeout=timeout, wait=wait)


def _checked(trace_id: str | Callable[[], str]) -> Callable[[], str]:
    def checked() -> str:
        value = trace_id if isinstance(trace_id, str) else trace_id()
        if len(value.encode()) > MAX_TRACE_ID:
            raise ValueError(f"a trace id has at most {MAX_TRACE_ID} bytes, not {len(value.encode())}")
        return value

    return checked


class Connecting:
    """The result of `connect`, which gives a client when it is awaited or entered."""

    def __init__(
        self,
        address: str,
        make_client: Callable[[], Client],
        *,
        timeout: float | None,
        wait: float,
    ) -> None:
        self._address = address
        self._make_client = make_client
        self._timeout = timeout
        self._wait = wait
        self._client: Client | None = None

    def __await__(self) -> Generator[None, None, Client]:
        return self._connect().__await__()

    async def __aenter__(self) -> Client:
        self._client = await self._connect()
        return self._client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _connect(self) -> Client:
        client = self._make_client()
        try:
            if self._wait > 0:
                await self._until_it_answers(client)
            else:
                await self._answer(client, self._timeout)
        except BaseException:
            await client.aclose()
            raise
        return client

    async def _answer(self, client: Client, seconds: float | None) -> None:
        """Wait for the answer to a first ping; a hypervisor accepts connections without an agent."""
        try:
            await client._reach(timeout=seconds)
        except ConnectionLostError as error:
            raise ConnectError(
                self._address,
                "the connection was closed before the first reply: if the agent does not let this "
                "user or cid in, its log says so",
            ) from error

    async def _until_it_answers(self, client: Client) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait
        pause = FIRST_PAUSE
        last: Exception
        while True:
            left = deadline - loop.time()
            try:
                await self._answer(client, max(0.05, min(left, MAX_TRY)))
                return
            except ConnectError as error:
                if is_lasting(error):
                    raise
                last, reason = error, error.reason
            except CallTimeoutError as error:
                last, reason = error, "it accepts connections and does not reply"
            if loop.time() + pause >= deadline:
                raise ConnectError(self._address, f"{reason} (tried for {self._wait:g} s)") from last
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LAST_PAUSE)

"""Serves `GET /metrics` for Prometheus on a unix socket: HTTP/1.0, one request each.

Deliberately the least that a scraper needs: no keep-alive, no header is looked at, a
request is bounded in size and in time.
"""

from __future__ import annotations

from asyncio import Protocol

from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.observe.rate import OncePerMinute
from arcbox_agent.agent.serving.listeners import lose

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from asyncio import AbstractEventLoop, TimerHandle, Transport
    from collections.abc import Coroutine
    from typing import Any

    from arcbox_agent.agent.metrics import Metrics
    from arcbox_agent.agent.serving.listeners import Listener

log = Logger("metrics")

MAX_REQUEST = 8 << 10
TIMEOUT = 5.0

#: The most scrapers at one time; more are closed at once.
MAX_SCRAPERS = 16

_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class MetricsEndpoint:
    """The scrapers that are connected."""

    def __init__(self, loop: AbstractEventLoop, metrics: Metrics) -> None:
        self.loop = loop
        self.metrics = metrics
        self.scrapers: set[_Scraper] = set()
        self._refused_log = OncePerMinute()

    def accept(
        self, sock: socket.socket, peer: str, owner: str, listener: Listener
    ) -> Coroutine[Any, Any, None] | None:
        if len(self.scrapers) >= MAX_SCRAPERS:
            self._refused_log.log(
                log.warning, "scraper refused: too many", "also_refused", peer=peer, most=MAX_SCRAPERS
            )
            sock.close()
            return None
        scraper = _Scraper(self)
        self.scrapers.add(scraper)
        return scraper.join(sock)

    def close(self) -> None:
        for scraper in list(self.scrapers):
            scraper.abort()


class _Scraper(Protocol):
    """One HTTP request and its reply."""

    def __init__(self, endpoint: MetricsEndpoint) -> None:
        self._endpoint = endpoint
        self._request = b""
        self._answered = False
        self._transport: Transport | None = None
        self._timer: TimerHandle | None = None

    async def join(self, sock: socket.socket) -> None:
        try:
            await self._endpoint.loop.connect_accepted_socket(lambda: self, sock)
        except OSError as error:
            lose(sock, self, error)

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._timer = self._endpoint.loop.call_later(TIMEOUT, self.abort)

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return
        self._request += data
        if b"\r\n\r\n" in self._request or b"\n\n" in self._request:
            self._answer()
        elif len(self._request) > MAX_REQUEST:
            self._reply("431 Request Header Fields Too Large", "the request is too long\n")

    def _answer(self) -> None:
        method, _, rest = self._request.partition(b"\n")[0].partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            self._reply("405 Method Not Allowed", "only GET\n")
        elif path != b"/metrics":
            self._reply("404 Not Found", "only /metrics\n")
        else:
            self._reply("200 OK", self._endpoint.metrics.prometheus(), body=method == b"GET")

    def _reply(self, status: str, text: str, body: bool = True) -> None:
        self._answered = True
        content = text.encode()
        head = f"HTTP/1.0 {status}\r\nContent-Type: {_TYPE}\r\nContent-Length: {len(content)}\r\n\r\n"
        assert self._transport is not None
        self._transport.write(head.encode() + (content if body else b""))
        self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._endpoint.scrapers.discard(self)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

"""From a frame to its reply: the route, whether the peer may take it, the handler, the errors.

It knows no connection and keeps nothing of a request.
"""

from __future__ import annotations

from types import CoroutineType

from arcbox_agent.agent.config.access import NEEDS
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.errors import (
    AgentFailedError,
    BadRequestError,
    DecodeError,
    ForbiddenError,
    FrameError,
    RequestError,
    TooManyItemsError,
)
from arcbox_agent.wire import encode_error, encode_message, message_class

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from typing import Any

    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.agent.serving.route import Route
    from arcbox_agent.wire import Frame, Message

    Handling = Coroutine[Any, Any, Message | None]

log = Logger("connection")

#: The longest text of an Error, in characters.
ERROR_TEXT = 8 << 10


class Dispatch:
    """`max_frame_size`: of a reply, in bytes.  `admit`: raises where a request of so many bytes must wait."""

    __slots__ = ("_admit", "_counters", "_max_frame_size", "routes")

    def __init__(
        self,
        routes: Mapping[int, Route],
        counters: dict[str, int],
        max_frame_size: int,
        admit: Callable[[int], None],
    ) -> None:
        self.routes = routes
        self._admit = admit
        self._counters = counters
        self._max_frame_size = max_frame_size

    def answer(self, frame: Frame, call: Call) -> bytes | Handling:
        """The reply as a frame, or the coroutine that will give it as a message."""
        try:
            route = self.routes.get(frame.type)
            if route is None:
                raise BadRequestError(_unroutable(frame.type))
            if route.access not in call.allowed:
                self._counters["requests_refused_mode"] += 1
                raise ForbiddenError(
                    f"this listener does not allow {NEEDS[route.access]}: its mode refuses {_name(frame.type)}"
                )
            self._admit(len(frame.payload))
            request = route.request.decode(frame.payload) if route.request is not None else None
            reply = route.handler(request, call)
            if type(reply) is CoroutineType:
                call.charged = len(frame.payload)
                return reply
            return self.encode(reply, call.trace_id)
        except Exception as error:
            return self.error(error, call.trace_id)

    def encode(self, reply: Message, trace_id: str | None) -> bytes:
        """The reply as a frame.  AgentFailedError: it is larger than one may be."""
        out = encode_message(reply, trace_id)
        # The peer's limit is its own affair, but it is hardly above ours.
        if len(out) - 4 > self._max_frame_size:
            raise AgentFailedError(
                f"the reply is {len(out) - 4} bytes long, more than max_frame_size, {self._max_frame_size}: "
                "ask for less, or for a stream"
            )
        return out

    def error(self, error: Exception, trace_id: str | None) -> bytes:
        """The Error frame for what a handler, or the way to it, raised."""
        counters = self._counters
        counters["requests_failed"] += 1
        if isinstance(error, RequestError):
            code, text = error.code, error.message
        elif isinstance(error, TooManyItemsError):
            code, text = 400, f"invalid request: {error}"
        elif isinstance(error, DecodeError):
            code, text = 400, f"invalid request: failed to decode Protobuf message: {error}"
        elif isinstance(error, FrameError):  # what a call's input ended with
            code, text = 400, f"invalid frame: {error}"
        else:
            counters["handler_failures"] += 1
            log.exception("request failed", error)
            code, text = 500, f"internal error: {error!r}; the agent's log has the trace"
        if len(text) > ERROR_TEXT:
            # It repeats what the peer sent, which may be as long as a frame.
            text = f"{text[:ERROR_TEXT]}..."
        log.debug("request refused", code=code, reason=text)
        return encode_error(code, text, trace_id)


def _name(type: int) -> str:
    known = message_class(type)
    return known.__name__ if known is not None else f"0x{type:08X}"


def _unroutable(type: int) -> str:
    known = message_class(type)
    if known is None:
        return f"invalid request: unknown message type: 0x{type:08X}"
    if known.__name__.endswith("Request"):
        return f"invalid request: this agent does not serve {known.__name__}"
    return f"invalid request: unexpected message type: {known.__name__}"

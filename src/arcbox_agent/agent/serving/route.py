"""How one type of request is answered."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from arcbox_agent.agent.config.access import Access
    from arcbox_agent.wire import Message


class Route:
    """`handler`: takes the request and its Call; returns the reply, or a coroutine for it.

    A coroutine runs as the one task of its connection: the connection's next request waits
    for it, and no other connection does.  `request`: the class that the payload is decoded
    as; None: the payload is not looked at, and the handler gets None.  `access`: what the
    listener must grant.

    `inputs`: type number -> class of the messages that a peer may send while the call runs,
    and that belong to it (see Call.receive); not empty: the call is a duplex one, and its
    handler is a coroutine.
    """

    __slots__ = ("access", "handler", "inputs", "request")

    def __init__(
        self,
        handler: Callable[..., Any],
        request: type[Message] | None,
        access: Access,
        inputs: Mapping[int, type[Message]] | None = None,
    ) -> None:
        self.handler = handler
        self.request = request
        self.access = access
        self.inputs = inputs

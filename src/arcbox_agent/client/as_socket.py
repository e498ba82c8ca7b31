"""A connection into the guest as a socket of the operating system, for code without an event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

from arcbox_agent.client.forwarding import End
from arcbox_agent.client.tunnel import Tunnel


async def as_socket(opening: Coroutine[Any, Any, Tunnel]) -> socket.socket:
    """One end of a pair, blocking; the loop passes on what goes through the other one."""
    tunnel = await opening
    ours, theirs = socket.socketpair()
    local, there = End(), End()
    local.join(there)
    try:
        ours.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: local, sock=ours)
    except BaseException:
        tunnel.abort()
        ours.close()
        theirs.close()
        raise
    # Only now: what comes has somewhere to go.
    tunnel.start(there)
    return theirs

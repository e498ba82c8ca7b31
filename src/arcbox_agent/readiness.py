"""Waits for a descriptor, for the agent and its clients."""

from __future__ import annotations

import asyncio


async def until_writable(fd: int) -> None:
    """Wait until the event loop reports the descriptor as writable.

    The descriptor of a transport is the transport's to watch: give a duplicate.
    """
    loop = asyncio.get_running_loop()
    writable: asyncio.Future[None] = loop.create_future()

    def on_writable() -> None:
        if not writable.done():
            writable.set_result(None)

    loop.add_writer(fd, on_writable)
    try:
        await writable
    finally:
        loop.remove_writer(fd)

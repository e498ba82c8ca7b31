"""Waits for a descriptor, for the agent and its clients."""

from __future__ import annotations

import asyncio


async def until_writable(fd: int) -> None:
    """Wait until the event loop reports the descriptor as writable.

    The descriptor of a transport is the transport's to watch: give a duplicate.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(fd, _set, ready)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


async def until_readable(fd: int) -> None:
    """Wait until the event loop reports the descriptor as readable, or its other end as gone."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _set, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)

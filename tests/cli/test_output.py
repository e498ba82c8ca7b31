"""What arcboxctl writes to a pipe, and what its event loop does meanwhile."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from arcbox_agent.cli.output_stream import OutputStream
from tests.conftest import PATIENCE

#: More than a pipe holds.
MUCH = os.urandom(1 << 20)


def test_a_full_pipe_never_blocks_the_event_loop(run_async: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    loop_ran = threading.Event()
    reader, writer = os.pipe()
    received = bytearray()

    def read() -> None:
        # A loop that is blocked in write(2) sets nothing; it is let go, and the test fails.
        loop_ran.wait(5)
        received.extend(b"" if loop_ran.is_set() else b"blocked")
        while chunk := os.read(reader, 1 << 16):
            received.extend(chunk)

    async def main() -> None:
        thread = threading.Thread(target=read)
        thread.start()
        try:
            writing = asyncio.create_task(OutputStream().write(writer, MUCH))
            await asyncio.sleep(0.05)
            assert not writing.done()
            loop_ran.set()
            await asyncio.wait_for(writing, PATIENCE)
        finally:
            os.close(writer)
            await asyncio.to_thread(thread.join)
            os.close(reader)
        assert received[:7] != b"blocked"
        assert received == MUCH

    run_async(main())

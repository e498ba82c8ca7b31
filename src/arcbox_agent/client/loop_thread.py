"""A thread with an event loop, for code that has none."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from arcbox_agent.errors import ConnectionLostError

T = TypeVar("T")


class LoopThread:
    """A thread that runs an event loop until `stop`."""

    def __init__(self) -> None:
        # A forked process has only the thread that forked: nothing would ever run on this loop.
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._stopped = False
        self._last: asyncio.Task[None] | None = None
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        # A daemon thread does not keep the interpreter from ending when a client was not
        # closed; the client's finaliser stops the thread then.
        self._thread = threading.Thread(target=self._serve, args=(started,), name="arcbox-agent-client", daemon=True)
        self._thread.start()
        started.wait()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of `coroutine`, run on the loop.

        Ctrl-C, or any other exception raised in this thread meanwhile, cancels the coroutine.
        """
        if self._process != os.getpid():
            coroutine.close()
            raise ConnectionLostError("the client belongs to the process that this one was forked from: connect anew")
        with self._lock:
            if self._stopped:
                coroutine.close()
                raise ConnectionLostError("the client was closed")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            # Only `stop` cancels what runs on the loop.
            raise ConnectionLostError("the client was closed") from None
        except BaseException:
            future.cancel()
            raise

    def stop(self, last: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Run `last`, then end the loop and the thread.  Later calls of `run` are refused."""
        if self._process != os.getpid():
            return  # The connections belong to the process that forked.
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            self._loop.call_soon_threadsafe(self._end, last)
        # The garbage collector may run a client's finaliser in any thread, and a thread
        # cannot join itself.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _end(self, last: Callable[[], Coroutine[Any, Any, None]] | None) -> None:
        if last is None:
            self._loop.stop()
        else:
            self._last = self._loop.create_task(last())
            self._last.add_done_callback(lambda _: self._loop.stop())

    def _serve(self, started: threading.Event) -> None:
        loop = self._loop
        asyncio.set_event_loop(loop)
        loop.call_soon(started.set)
        try:
            loop.run_forever()
            # Tasks that still run are cancelled, and their callers get the error.
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks))
        finally:
            loop.close()

"""Captures what containers write: one thread for all of them.

The thread lives in the compiled pump (`_capture.pyx`), which holds no
interpreter lock while it works; so neither the event loop nor a slow disk of
one request stops a container.  What is rare (a container begins, ends, its log
cannot be written) is done here, in that thread, between two runs of the pump.

Nothing is fsynced: a log survives the agent's death, and a power failure may
cost its last seconds, as with every container runtime.  An fsync a line would
cost a thousand times the line.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections import deque
from typing import TYPE_CHECKING

from arcbox_agent._capture import CaptureLog, Pump, Source
from arcbox_agent.agent.log import Logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_agent.agent.config import Settings
    from arcbox_agent.agent.metrics import Metrics

log = Logger("capture")

#: What a container may write while the pump is busy elsewhere.  Over
#: fs.pipe-user-pages-soft, or fs.pipe-max-size, less is granted.
PIPE_SIZES = (1 << 20, 1 << 18, 1 << 16)


class CaptureHandle:
    """The capture of one run of a container."""

    __slots__ = ("_capture", "_closed", "_error", "_finished", "_log", "_ready", "_reported", "_sources", "_timer", "id")

    def __init__(self, capture: Capture, container_id: str) -> None:
        self.id = container_id
        self._capture = capture
        self._sources: list[Source] = []
        self._log: CaptureLog | None = None
        self._ready = capture._loop.create_future()
        self._finished: asyncio.Future[bool] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._error: OSError | None = None
        self._reported = 0

    @property
    def lag(self) -> int:
        """Bytes the container has written and its log does not have yet."""
        return sum(source.lag for source in self._sources)

    async def ready(self) -> None:
        """Wait until what is written goes into the log.  OSError: it cannot be set up."""
        await asyncio.shield(self._ready)
        if self._error is not None:
            raise self._error

    async def finish(self, timeout: float) -> bool:
        """Bring the rest of the output into the log, and close.  For when the processes are gone.

        True: all of it, to the end.  False: something still holds the output
        open, or the log cannot be written, and `timeout` seconds have passed.
        """
        if self._finished is None:
            self._finished = self._capture._loop.create_future()
            self._timer = self._capture._loop.call_later(timeout, self._capture._order, self._capture._cut, self)
            self._capture._order(self._capture._finish, self)
        return await asyncio.shield(self._finished)


class Capture:
    """Every container's output on its way into its log."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._pump = Pump()
        self._orders: deque[tuple[Callable[[CaptureHandle], None], CaptureHandle]] = deque()
        self._handles: dict[str, CaptureHandle] = {}
        self._owners: dict[Source, CaptureHandle] = {}  # the thread's own
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        metrics.gauge("captured_bytes", lambda: self._pump.bytes, "Bytes captured from containers.")
        metrics.gauge("capture_dropped_bytes", lambda: self._pump.dropped, "Bytes lost to full disks.")
        metrics.gauge("log_rotations", lambda: self._pump.rotations, "Rotations of containers' logs.")
        metrics.gauge("log_lag_bytes", self.lag, "Bytes written by containers and not yet in a log.")

    def lag(self) -> int:
        """Bytes that containers have written and their logs do not have yet."""
        return sum(handle.lag for handle in list(self._handles.values()))

    async def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Stop.  Containers that go on write into their FIFOs; the next agent takes it from there."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopping = True
        self._pump.wake()
        await self._loop.run_in_executor(None, thread.join)

    def attach(
        self, container_id: str, log_path: str, run_dir: str, fifos: dict[str, str], pty: int | None = None
    ) -> CaptureHandle:
        """Capture what comes out of `fifos` (`stdout`, `stderr`: path), or of a terminal's master `pty`.

        Call it before the process is spawned, and again after a restart of the
        agent: it goes on where the last capture stood.  The FIFOs are opened at
        once; the log is opened by the capture's thread (see CaptureHandle.ready).
        `pty` is duplicated, and made non-blocking.
        """
        opened: list[tuple[str, int, bool]] = []
        try:
            for name, path in fifos.items():
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
                opened.append((name, fd, False))
                _widen(fd)
            if pty is not None:
                fd = fcntl.fcntl(pty, fcntl.F_DUPFD_CLOEXEC, 3)
                opened.append(("stdout", fd, True))
                os.set_blocking(fd, False)
        except BaseException:
            for _, fd, _ in opened:
                os.close(fd)
            raise
        handle = CaptureHandle(self, container_id)
        self._handles[container_id] = handle

        def begin(handle: CaptureHandle) -> None:
            self._begin(handle, log_path, run_dir, opened)

        self._order(begin, handle)
        return handle

    # ---- all below runs in the capture's thread, but _order and _settle

    def _order(self, what: Callable[[CaptureHandle], None], handle: CaptureHandle) -> None:
        self._orders.append((what, handle))
        self._pump.wake()

    def _run(self) -> None:
        while not self._stopping:
            while self._orders:
                what, handle = self._orders.popleft()
                try:
                    what(handle)
                except Exception as error:
                    log.exception("capture failed", error, container=handle.id)
            for source in self._pump.run():
                owner = self._owners.get(source)
                if owner is not None and owner._finished is not None:
                    self._finish(owner)
            self._report()

    def _begin(
        self, handle: CaptureHandle, log_path: str, run_dir: str, opened: list[tuple[str, int, bool]]
    ) -> None:
        try:
            os.makedirs(os.path.dirname(log_path), mode=0o700, exist_ok=True)
            output = handle._log = CaptureLog(log_path, self._settings.log_max_size, self._settings.log_max_files)
            try:
                output.open()
            except OSError as error:
                # The container goes on, and the pump tries again; what is lost is counted.
                log.error("log cannot be opened", container=handle.id, reason=error)
                handle._error = error
            while opened:
                name, fd, pty = opened[0]
                source = Source(output, name, fd, os.path.join(run_dir, f"{name}.spool"), pty)
                opened.pop(0)  # the descriptor is the source's now
                source.recover()
                handle._sources.append(source)
                self._owners[source] = handle
                self._pump.add(source)
        except (OSError, ValueError) as error:
            log.error("output cannot be captured", container=handle.id, reason=error)
            handle._error = error if isinstance(error, OSError) else OSError(str(error))
            for _, fd, _ in opened:
                os.close(fd)
        self._settle(handle._ready, True)

    def _finish(self, handle: CaptureHandle) -> None:
        """Complete if everything was seen and written; else the pump goes on."""
        if handle._closed:
            return
        done = handle._error is None or bool(handle._sources)
        for source in handle._sources:
            self._pump.drain(source)
            if not (source.ended and self._pump.flush(source)):
                done = False
        if done:
            self._close(handle, True)

    def _cut(self, handle: CaptureHandle) -> None:
        """The time given to `finish` is over."""
        if handle._closed:
            return
        for source in handle._sources:
            self._pump.drain(source)
            if not self._pump.flush(source):
                log.error(
                    "output stays in the spool",
                    container=handle.id,
                    bytes=source.pending,
                    spool=source.spool_path,
                    reason=os.strerror(source.log.error) if source.log.error else "more comes",
                )
        self._close(handle, False)

    def _close(self, handle: CaptureHandle, complete: bool) -> None:
        handle._closed = True
        for source in handle._sources:
            self._pump.remove(source)
            self._owners.pop(source, None)
            # What could not be written is kept, for the container's next run to begin with.
            if source.pending == 0 and source.lost == 0:
                try:
                    os.unlink(source.spool_path)
                except FileNotFoundError:
                    pass
            source.close()
        if handle._log is not None:
            handle._log.close()
        if handle._finished is not None:
            self._settle(handle._finished, complete)

    def _report(self) -> None:
        for handle in set(self._owners.values()):
            output = handle._log
            if output is None or output.error == handle._reported:
                continue
            handle._reported = output.error
            if output.error:
                log.error(
                    "log cannot be written: make room, or make it writable",
                    container=handle.id,
                    path=output.path,
                    reason=os.strerror(output.error),
                )
            else:
                log.info("log can be written again", container=handle.id)

    def _settle(self, future: asyncio.Future[bool], value: bool) -> None:
        def settle() -> None:
            if not future.done():
                future.set_result(value)
            for key, handle in list(self._handles.items()):
                if handle._finished is future:
                    del self._handles[key]
                    if handle._timer is not None:
                        handle._timer.cancel()

        try:
            self._loop.call_soon_threadsafe(settle)
        except RuntimeError:
            pass  # the loop is closed: nobody waits


def _widen(fifo: int) -> None:
    for size in PIPE_SIZES:
        try:
            fcntl.fcntl(fifo, fcntl.F_SETPIPE_SZ, size)
            return
        except OSError:
            continue

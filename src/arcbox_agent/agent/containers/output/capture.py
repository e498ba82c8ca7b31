"""Captures what containers write: one thread for all of them.

The thread lives in the compiled pump (`_pump.pyx`), which holds no
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

from arcbox_agent._log_file import CaptureLog
from arcbox_agent._log_history import LogHistory
from arcbox_agent._pump import Pump, Source
from arcbox_agent.agent.config import budget
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.processes.pipes import widen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.metrics import Metrics

log = Logger("capture")

#: What a container may write while the pump is busy elsewhere.  Over
#: fs.pipe-user-pages-soft, or fs.pipe-max-size, less is granted.
PIPE_SIZES = (1 << 20, 1 << 18, 1 << 16)


class CaptureHandle:
    """The capture of one run of a container."""

    __slots__ = (
        "_capture",
        "_closed",
        "_error",
        "_finished",
        "_log",
        "_ready",
        "_reported",
        "_sources",
        "_timer",
        "id",
    )

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

        True: all of it, to the end.  False: `timeout` seconds have passed, and
        something still holds the output open, or the log cannot be written.  In
        the latter case what waits is written as soon as there is room: by this
        capture, or by the one of the container's next run, or by the next agent's.
        """
        if self._finished is None:
            self._finished = self._capture._loop.create_future()
            self._timer = self._capture._loop.call_later(timeout, self._capture._order, self._capture._cut, self)
            self._capture._order(self._capture._finish, self)
        return await asyncio.shield(self._finished)


class Hold:
    """A reader that must not lose a line: while it is behind, the log is not rotated and the container waits.

    `release` ends it, and must be called.
    """

    __slots__ = ("_history", "_inode", "_wake")

    def __init__(self, history: LogHistory, wake: Callable[[], None]) -> None:
        self._history = history
        self._wake = wake
        self._inode = 0
        history.hold(self)

    def come_to(self, inode: int) -> None:
        """The reader reads this file of the log."""
        if inode != self._inode:
            self._inode = inode
            if self._history.hold_from(self, inode):
                self._wake()

    def release(self) -> None:
        self._history.release(self)
        self._wake()


class Capture:
    """Every container's output on its way into its log."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._pump = Pump()
        self._orders: deque[tuple[Callable[[CaptureHandle], None], CaptureHandle]] = deque()
        self._handles: dict[str, CaptureHandle] = {}
        #: By container, until it is removed.
        self._histories: dict[str, LogHistory] = {}
        # The thread's own: whose each source is, and those whose processes are gone, but whose
        # output is not all in the log.
        self._owners: dict[Source, CaptureHandle] = {}
        self._ending: dict[str, CaptureHandle] = {}
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        #: The thread's last word.
        self._ended: asyncio.Future[bool] = self._loop.create_future()
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
        if not (await asyncio.wait((self._ended,), timeout=budget.CAPTURE_ENDED))[0]:
            log.error("the disk of the logs hangs: what is on its way is left to the next agent")
            return
        thread.join()

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
                widen(fd, PIPE_SIZES)
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
        history = self.history(container_id)
        self._order(lambda handle: self._begin(handle, log_path, run_dir, opened, history), handle)
        return handle

    def attach_rest(self, container_id: str, log_path: str, run_dir: str) -> None:
        """Bring into the log what waited for room in it when a former agent ended; the run itself is over."""
        names = [name for name in ("stdout", "stderr") if os.path.exists(_spool(run_dir, name))]
        if not names:
            return
        handle = CaptureHandle(self, container_id)
        self._handles[container_id] = handle
        history = self.history(container_id)

        def begin(handle: CaptureHandle) -> None:
            self._begin(handle, log_path, run_dir, [(name, -1, False) for name in names], history)
            if handle._sources:
                self._ending[handle.id] = handle
                self._finish(handle)
            else:
                self._close(handle, False)

        self._order(begin, handle)

    def history(self, container_id: str) -> LogHistory:
        """What the container's log has held, and who holds it."""
        history = self._histories.get(container_id)
        if history is None:
            history = self._histories[container_id] = LogHistory()
        return history

    def hold(self, container_id: str) -> Hold:
        """Let the container wait rather than lose what is written from now on, until the reader has come to it."""
        return Hold(self.history(container_id), self._pump.wake)

    async def forget(self, container_id: str) -> None:
        """The container is removed: what still waits for room in its log does so in vain."""
        self._histories.pop(container_id, None)
        handle = self._handles.get(container_id)
        if handle is None:
            return
        done: asyncio.Future[bool] = self._loop.create_future()

        def close(handle: CaptureHandle) -> None:
            try:
                self._close(handle, False)
            finally:
                self._settle(done, True)

        self._order(close, handle)
        await done

    # ---- all below runs in the capture's thread, but _order

    def _order(self, what: Callable[[CaptureHandle], None], handle: CaptureHandle) -> None:
        self._orders.append((what, handle))
        self._pump.wake()

    def _run(self) -> None:
        try:
            while not self._stopping:
                while self._orders:
                    self._carry_out(*self._orders.popleft())
                self._pump.run()
                for handle in list(self._ending.values()):
                    self._carry_out(self._finish, handle)
                self._report()
        finally:
            self._settle(self._ended, True)

    def _carry_out(self, what: Callable[[CaptureHandle], None], handle: CaptureHandle) -> None:
        try:
            what(handle)
        except Exception as error:  # of one container: the others' output goes on
            log.exception("capture failed", error, container=handle.id)

    def _begin(
        self,
        handle: CaptureHandle,
        log_path: str,
        run_dir: str,
        opened: list[tuple[str, int, bool]],
        history: LogHistory,
    ) -> None:
        before = self._ending.get(handle.id)
        if before is not None:
            # What of it waits for room is in the spool, with which this one begins.
            self._close(before, False)
        try:
            os.makedirs(os.path.dirname(log_path), mode=0o700, exist_ok=True)
            output = handle._log = CaptureLog(
                log_path, self._settings.log_max_size, self._settings.log_max_files, history
            )
            try:
                output.open()
            except OSError as error:
                # The container goes on, and the pump tries again; what is lost is counted.
                log.error("log cannot be opened", container=handle.id, reason=error)
                handle._error = error
            while opened:
                name, fd, pty = opened[0]
                source = Source(output, name, fd, _spool(run_dir, name), pty)
                opened.pop(0)  # the descriptor is the source's now
                try:
                    source.recover()
                except BaseException:
                    # Now: the traceback of the error keeps the source, and so its descriptors, for a while.
                    source.close()
                    raise
                handle._sources.append(source)
                self._owners[source] = handle
                self._pump.add(source)
                if before is not None:
                    self._pump.flush(source)  # a line that the run before did not end ends with that
        except Exception as error:  # a start waits for the answer
            log.error("output cannot be captured", container=handle.id, reason=error)
            handle._error = error if isinstance(error, OSError) else OSError(str(error))
            for _, fd, _ in opened:
                if fd >= 0:
                    os.close(fd)
        self._settle(handle._ready, True)

    def _finish(self, handle: CaptureHandle) -> None:
        """Complete if everything was seen and written; else the pump goes on."""
        if handle._closed:
            return
        self._ending[handle.id] = handle
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
        self._finish(handle)
        if handle._closed:
            return
        if handle._log is not None and handle._sources and all(source.ended for source in handle._sources):
            log.error(
                "the end of a container's output waits for room in its log",
                container=handle.id,
                bytes=sum(source.pending + source.lost for source in handle._sources),
                reason=os.strerror(handle._log.error),
            )
            self._answer(handle, False)
            return
        for source in handle._sources:
            if not source.ended:
                log.error("the output is held open by what cannot be ended", container=handle.id, stream=source.name)
                self._pump.flush(source)
        self._close(handle, False)

    def _close(self, handle: CaptureHandle, complete: bool) -> None:
        if handle._closed:
            return
        handle._closed = True
        if self._ending.get(handle.id) is handle:
            del self._ending[handle.id]
        for source in handle._sources:
            self._pump.remove(source)
            self._owners.pop(source, None)
            # What could not be written is kept, for the container's next run to begin with.
            if source.pending == 0 and source.lost == 0:
                try:
                    os.unlink(source.spool_path)
                except FileNotFoundError:
                    pass
                except OSError as error:  # the container has ended all the same
                    log.error("a spool cannot be removed", container=handle.id, path=source.spool_path, error=error)
            source.close()
        if handle._log is not None:
            handle._log.close()
        self._answer(handle, complete)

    def _answer(self, handle: CaptureHandle, complete: bool) -> None:
        """Tell whoever waits for `finish`; and the loop, that nothing of a closed one is left."""

        def answer() -> None:
            if handle._finished is not None and not handle._finished.done():
                handle._finished.set_result(complete)
            if handle._timer is not None:
                handle._timer.cancel()
            if handle._closed and self._handles.get(handle.id) is handle:
                del self._handles[handle.id]

        self._in_loop(answer)

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
        self._in_loop(lambda: None if future.done() else future.set_result(value))

    def _in_loop(self, what: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(what)
        except RuntimeError:
            pass  # the loop is closed: nobody waits


def _spool(run_dir: str, name: str) -> str:
    return os.path.join(run_dir, f"{name}.spool")

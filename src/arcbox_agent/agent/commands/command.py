"""A running command, and when its output is over.

A command ends when its process ends, though a grandchild may still hold its output open:
what the process wrote itself is read (`owed`), and then whatever comes without a pause
(COMMAND_QUIET), for a bounded time (COMMAND_CHATTER) and up to CHATTER_BYTES.  While it is a
helper (processes/helpers.py) that holds the output open, the bounds are those of `late_output`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select

from arcbox_agent.agent.config import budget
from arcbox_agent.agent.processes.helpers import HELPERS, LATE_IN_ALL, file_id, holders
from arcbox_agent.agent.processes.pipes import readable_bytes, widen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from arcbox_agent.agent.containers.runtimes.protocol import CommandHost
    from arcbox_agent.agent.processes.children import Process
    from arcbox_agent.agent.processes.lanes import Lanes
    from arcbox_agent.agent.processes.ready import Ready
    from arcbox_agent.agent.processes.scopes import Scope
    from arcbox_agent.agent.processes.status import ExitStatus

#: After the process has ended and all it wrote itself is read: how much may still come from
#: others that hold its output open.
CHATTER_BYTES = 1 << 20

#: What a command may write while nobody reads, once it has written anything.
PIPE_SIZES = (1 << 20, 1 << 18)

#: The most that one piece of a pipe holds.
PIECE = 1 << 20

#: Pieces without a wait after which the other tasks of the loop get their turn.
TURN = 8

#: Seconds between two looks whether a command has opened its terminal again, which no process has open.
REOPENED = 0.05


class CommandOutput:
    """Our end of one stream of a command's output: a pipe, or the master of a terminal.

    `size`: bytes of the present piece; see Command.next.
    """

    __slots__ = ("fd", "name", "owed", "size")

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        self.size = 0
        #: Bytes that the process itself left in it when it ended, and that are not read yet.
        self.owed = 0

    def read_into(self, room: memoryview) -> int | None:
        """Bytes read; 0: the end; None: there is nothing at present."""
        try:
            return os.readv(self.fd, [room])
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.EIO:
                return 0  # a terminal whose other side is closed
            raise

    def waiting(self) -> int | None:
        """Bytes that can be read from a pipe, PIECE at most; 0: its end; None: there is nothing at present."""
        size = readable_bytes(self.fd)
        if size:
            return min(size, PIECE)
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        for _, events in poll.poll(0):
            if events & select.POLLHUP and not events & select.POLLIN:
                return 0
        return None

    def note_owed(self) -> None:
        try:
            self.owed = readable_bytes(self.fd)
        except OSError:
            self.owed = 0  # a terminal that is closed

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Command:
    """One command that runs.

    `timed_out`: its time is over, and it is being killed.  `left`: its client needs nothing of it any
    more.  `terminal`: its output is a terminal, whose `next` needs a `room`.  `readers`: our ends
    of its output, by the name of the stream.  `late_output`: the setting.  `output_cut`: its output
    was left though something still held it open.
    """

    __slots__ = (
        "_chatter",
        "_ended_at",
        "_given_up",
        "_got_any",
        "_helped_at",
        "_hung_up",
        "_lanes",
        "_last_read",
        "_late",
        "_loop",
        "_outputs",
        "_pieces",
        "_ready",
        "_round",
        "_typed",
        "_wakes",
        "_wide",
        "host",
        "left",
        "output_cut",
        "process",
        "scope",
        "terminal",
        "timed_out",
    )

    def __init__(
        self,
        process: Process,
        host: CommandHost,
        scope: Scope,
        readers: Mapping[str, int],
        typed: bytes,
        terminal: bool,
        lanes: Lanes,
        ready: Ready,
        late_output: float,
    ) -> None:
        self.process = process
        self.host = host
        self.scope = scope
        self.terminal = terminal
        self.timed_out = False
        self.left = False
        self.output_cut = False
        #: No more helper was seen.
        self._given_up = False
        self._lanes = lanes
        self._ready = ready
        self._late = late_output
        #: When a helper was last seen.
        self._helped_at = float("-inf")
        self._loop = asyncio.get_running_loop()
        self._outputs = [CommandOutput(name, fd) for name, fd in readers.items()]
        #: What is still to be typed at its terminal.
        self._typed = memoryview(typed)
        #: Outputs that have not had their turn in the present round, the next one last.
        self._round = self._outputs[::-1]
        self._got_any = False
        #: Its pipes have their size.  A command that says nothing needs no more than they have at first.
        self._wide = terminal
        #: Since the other tasks of the loop had their turn.
        self._pieces = 0
        self._last_read = self._loop.time()
        #: No process had the terminal open when it was last read.
        self._hung_up = False
        self._wakes: asyncio.Future[None] | None = None
        self._ended_at: float | None = None
        #: Bytes that came after the end of the process, from others.
        self._chatter = 0
        process.ended.add_done_callback(self._ended)

    async def next(self, room: memoryview | None = None) -> CommandOutput | None:
        """Wait for the next piece of output; None: the output is over.

        The piece is the first `size` bytes of `room`; without a room they wait in the output's
        pipe, and the caller takes exactly them out of it before it asks again.
        """
        while True:
            while self._round:
                output = self._round.pop()
                size = output.waiting() if room is None else output.read_into(room)
                if size:
                    if not self._wide:
                        self._widen()
                    if self._ended_at is not None:
                        self._chatter += max(0, size - output.owed)
                    output.owed = max(0, output.owed - size)
                    output.size = size
                    self._got_any = True
                    self._pieces += 1
                    return output
                if size is None:
                    output.owed = 0  # there is no more in it than there was
                elif self.terminal and self._ended_at is None:
                    # The command may open /dev/tty again, and closing our side would send it SIGHUP
                    # where it is only about to exit.
                    self._hung_up = True
                else:
                    self._outputs.remove(output)
                    self._close(output)
            self._type()
            if not self._outputs or not await self._more():
                return None
            self._round = self._outputs[::-1]

    def _widen(self) -> None:
        self._wide = True
        for output in self._outputs:
            widen(output.fd, PIPE_SIZES)

    async def _more(self) -> bool:
        """After a round: wait until the next one is worth it.  False: the output is over."""
        got_any, self._got_any = self._got_any, False
        if got_any:
            self._last_read = self._loop.time()
            if self._pieces >= TURN:
                self._pieces = 0
                await asyncio.sleep(0)
        if self._ended_at is None:
            if not got_any:
                await self._wait_for_something(None)
            return True
        if any(output.owed for output in self._outputs):
            return True
        since = max(self._last_read, self._ended_at)
        now = self._loop.time()
        left = min(since + budget.COMMAND_QUIET, self._ended_at + budget.COMMAND_CHATTER) - now
        if left <= 0 or self._chatter > CHATTER_BYTES:
            if self._given_up:
                self.output_cut = True
                return False
            late = now > min(since + self._late, self._ended_at + self._late * LATE_IN_ALL)
            if late or not await self._is_helped():
                # Once more: the last helper may have ended just before that look, and left something.
                self._given_up = True
                return True
            left = budget.COMMAND_QUIET
        if not got_any:
            await self._wait_for_something(left)
        return True

    async def _is_helped(self) -> bool:
        """Whether a helper holds the output open, or did so a moment ago."""
        if self.terminal:
            return False  # whatever reads and writes for it ended with its session
        now = self._loop.time()
        if now - self._helped_at < budget.COMMAND_QUIET:
            return True
        try:
            outputs = [file_id(output.fd) for output in self._outputs]
            helped = await self._lanes.signals.submit(
                self.host.key, lambda: holders(self.scope.pids(), outputs) == HELPERS
            )
        except OSError:
            return False  # no descriptor is left to look with
        if helped:
            self._helped_at = now
        return helped

    def _ended(self, ended: asyncio.Future[ExitStatus]) -> None:
        if ended.cancelled():
            return  # the agent ends first
        self._ended_at = self._loop.time()
        for output in self._outputs:
            output.note_owed()
        self._wake()

    def close_outputs(self) -> None:
        for output in self._outputs:
            self._close(output)
        self._outputs.clear()
        self._round.clear()

    def _close(self, output: CommandOutput) -> None:
        self._ready.forget(output.fd)
        output.close()

    async def _wait_for_something(self, timeout: float | None) -> None:
        """Until an output has something, the terminal takes something, or the process ends."""
        loop = self._loop
        self._wakes = loop.create_future()
        fds = [output.fd for output in self._outputs]
        if self._hung_up:
            # Its descriptor is readable all the time.
            self._hung_up, fds, timeout = False, [], REOPENED
        timer = loop.call_later(timeout, self._wake) if timeout is not None else None
        # While the client does not read, nor do we: so each wakes once, and not until it is read.
        for fd in fds:
            self._ready.once(fd, self._wake)
        writer = fds[0] if fds and self._typed else -1
        if writer >= 0:
            loop.add_writer(writer, self._wake)
        try:
            await self._wakes
        finally:
            if writer >= 0:
                loop.remove_writer(writer)
            if timer is not None:
                timer.cancel()
            self._wakes = None

    def _wake(self) -> None:
        if self._wakes is not None and not self._wakes.done():
            self._wakes.set_result(None)

    def _type(self) -> None:
        while self._typed and self._outputs:
            try:
                self._typed = self._typed[os.write(self._outputs[0].fd, self._typed) :]
            except BlockingIOError:
                return
            except OSError:
                self._typed = memoryview(b"")

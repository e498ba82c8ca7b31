"""The spools of executions: what they wrote and have yet to read, in files, and the thread that fills them.

    FIFO or terminal --splice--> STATE_DIR/executions/ID/stdout       a cursor is an offset in this file
    client --pwrite--> STATE_DIR/executions/ID/stdin --splice--> FIFO or terminal

The front of a spool is given back by punching a hole, so a cursor stays an offset in the file for
good.  `NAME.begin` says where the hole ends, and is written first.

A killed agent loses no byte and doubles none.  An output's splice takes bytes out of the FIFO as it puts them
into the file, whose size is the count of what was taken.  An input's splice moves the position of an open
file that the keeper holds too, so the kernel's own count survives the agent.  A terminal cannot be spliced:
what is said there holds but for the moment of the kill.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import threading
import time
from collections import deque

from arcbox_agent._guest import punch
from arcbox_agent.agent.config import budget
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.observe.rate import OncePerMinute
from arcbox_agent.agent.processes.pipes import readable_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

log = Logger("executions")

#: Bytes that are moved at once, and how often before others have their turn.
TAKE = 1 << 20
TURNS = 8
#: A terminal gives, and takes, a few kilobytes at once.
TERMINAL_TAKE = 64 << 10
#: The front of a spool is given back in pieces of this size: a multiple of every file system's block.
HOLE = 1 << 16
#: Bytes of input that may wait for a command that does not read.
INPUT_ROOM = 1 << 20
#: A FIFO refers to the pages of what was spliced into it: so much behind the position of an input is kept.
REFERRED = 2 << 20
#: Consumed input is given back when there is so much of it.
CONSUMED = 8 << 20
#: Typed at a terminal it ends the input.
END_OF_TRANSMISSION = b"\x04"
#: Seconds between two tries of what a full disk did not take, and between two looks at a terminal that nobody has open.
AGAIN = 0.05
#: Errors of a disk that may take more later.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)


class Output:
    """One output on its way into its spool.  The thread's, but for what a reader may read: `begin`, `end`, `over`.

    `floor`: what a reader has taken, up to which the front may go; None: the oldest goes when the spool is full.
    """

    __slots__ = (
        "begin",
        "blocked",
        "cut",
        "end",
        "fd",
        "file",
        "floor",
        "last",
        "limit",
        "name",
        "over",
        "path",
        "terminal",
    )

    def __init__(self, path: str, name: str, fd: int, limit: int, terminal: bool) -> None:
        """`fd`: the FIFO's reading end or the terminal's master, non-blocking; -1: it is gone.  It is this object's."""
        self.fd = fd
        self.name = name
        self.path = path
        self.limit = max(limit, 4 * HOLE)
        self.terminal = terminal
        self.floor: int | None = None
        self.over = fd < 0
        #: Its process has ended: a terminal that nobody has open is not opened again.
        self.last = False
        #: What it has now is the last, though something holds it open.
        self.cut = False
        #: Why nothing is taken at present: "" | "full" | "disk" | "closed" (a terminal that nobody has open).
        self.blocked = ""
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self.end = os.fstat(self.file).st_size
        self.begin = min(read_number(path + ".begin"), self.end)

    @property
    def kept(self) -> int:
        return self.end - self.begin

    def room(self) -> int:
        """How much may be taken now; 0: the command waits."""
        if self.floor is None:
            return self.limit
        return max(0, self.limit - (self.end - max(self.begin, self.floor)))

    def take(self) -> bool:
        """Move what there is; whether there may be more.  OSError: the disk does not take it."""
        most = min(self.room(), TERMINAL_TAKE if self.terminal else TAKE)
        if not most:
            self.blocked = "full"
            return False
        try:
            if self.terminal:
                octets = os.read(self.fd, most)
                taken = len(octets)
                self._write(octets)
            else:
                taken = os.splice(
                    self.fd, self.file, most, offset_dst=self.end, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
                )
        except BlockingIOError:
            self.blocked = ""
            self.over = self.cut
            return False
        except OSError as error:
            if not self.terminal or error.errno != errno.EIO:
                raise
            # No process has the terminal open; its command may open it again.
            self.blocked = "closed"
            self.over = self.last
            return False
        self.blocked = ""
        if not taken:
            self.over = True
            return False
        self.end += taken
        self._shorten()
        return True

    def _write(self, octets: bytes) -> None:
        rest, at = memoryview(octets), self.end
        while rest:
            try:
                n = os.pwrite(self.file, rest, at)
            except OSError as error:
                # What was read from a terminal has no other place: the oldest goes for it.
                if error.errno not in FULL or not self._drop(self.begin + max(HOLE, self.kept // 2)):
                    raise
                continue
            rest, at = rest[n:], at + n

    def _shorten(self) -> None:
        """Give back what is over the limit, and may go."""
        over = self.end - self.limit
        if over > self.begin:
            self._drop(over + HOLE - 1 if self.floor is None else min(over, self.floor))

    def make_room(self) -> bool:
        """The disk is full: give back the oldest half, where that may go; whether any went."""
        half = self.begin + self.kept // 2
        return self._drop(half if self.floor is None else min(half, self.floor))

    def _drop(self, to: int) -> bool:
        """Give back what is before `to`, in whole pieces; whether there was one."""
        to = min(to, self.end) // HOLE * HOLE
        if to <= self.begin:
            return False
        write_number(self.path + ".begin", to)
        hole, self.begin = self.begin, to
        try:
            punch(self.file, hole, to - hole)
        except OSError:
            return False  # this file system cannot: its disk is given back at the end
        return True

    def owed(self) -> int:
        """Bytes that wait in the FIFO or the terminal."""
        try:
            return readable_bytes(self.fd) if self.fd >= 0 and not self.over else 0
        except OSError:
            return 0

    def close(self) -> None:
        for fd in (self.fd, self.file):
            if fd >= 0:
                os.close(fd)
        self.fd = self.file = -1


class Input:
    """One input on its way to its command.  The thread's, but for `put`, `end_at`, and what a client is told.

    `accepted`: what was taken from clients, and survives the agent.  `target`: where its end is; -1: not known yet.
    """

    __slots__ = (
        "_holes_to",
        "_pending",
        "accepted",
        "fd",
        "file",
        "over",
        "path",
        "queued",
        "target",
        "terminal",
        "waits",
    )

    def __init__(self, path: str, fd: int, file: int, terminal: bool) -> None:
        """`fd`: the FIFO's writing end or the terminal's master, non-blocking; `file`: the spool.  Both are its own."""
        self.path = path
        self.fd = fd
        self.file = file
        self.terminal = terminal
        self._pending: deque[bytes] = deque()
        self.accepted = read_number(path + ".at") if terminal else os.fstat(file).st_size
        self.target = read_number(path + ".end", -1)
        #: The end has reached the command, or nobody reads it.
        self.over = fd < 0
        self.waits = False
        self._holes_to = 0
        #: The loop's: what was put, accepted or not.
        self.queued = self.accepted

    def until(self) -> int:
        """How far a client may send."""
        if self.terminal:
            return self.accepted + TERMINAL_TAKE
        try:
            return os.lseek(self.file, 0, os.SEEK_CUR) + INPUT_ROOM
        except OSError:
            return self.queued  # it is closed

    def put(self, octets: bytes) -> None:
        """From the loop: behind what was put before.  Its sender has room for it (see Execution.write)."""
        self.queued += len(octets)
        self._pending.append(octets)

    def end_at(self, target: int) -> None:
        """From the loop: the input ends there."""
        self._pending.append(b"")
        self.target = target

    @property
    def closed(self) -> bool:
        """It has its end, or nobody reads it any more: more is of no use."""
        return self.over or self._at_end()

    @property
    def waiting(self) -> bool:
        """Whether there is something to be moved."""
        return not self.over and bool(self._pending or self._at_end() or (not self.terminal and self._unread()))

    def _unread(self) -> int:
        return self.accepted - os.lseek(self.file, 0, os.SEEK_CUR)

    def _at_end(self) -> bool:
        return 0 <= self.target <= self.accepted

    def move(self) -> bool:
        """Move what there is; whether the command must read before there is more to do.  OSError: the disk is full."""
        try:
            full = self._type() if self.terminal else self._splice()
        except BrokenPipeError:
            self.lose()
            return False
        if not full and self._at_end() and not self._pending:
            self.lose()
        return full

    def _type(self) -> bool:
        while self._pending:
            octets = self._pending[0]
            try:
                n = os.write(self.fd, octets[:TERMINAL_TAKE] or END_OF_TRANSMISSION)
            except BlockingIOError:
                return True
            except OSError:
                raise BrokenPipeError from None  # nobody has the terminal open
            if octets:
                self.accepted += n
                write_number(self.path + ".at", self.accepted)
                if n < len(octets):
                    self._pending[0] = octets[n:]
                    continue
            self._pending.popleft()
        return False

    def _splice(self) -> bool:
        while self._pending:
            octets = self._pending[0]
            while octets:
                n = os.pwrite(self.file, octets, self.accepted)
                self.accepted += n
                octets = self._pending[0] = octets[n:]
            self._pending.popleft()
            if self.target >= 0:
                write_number(self.path + ".end", self.target)
        while self._unread():
            try:
                os.splice(self.file, self.fd, TAKE, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                return True
        self._give_back()
        return False

    def _give_back(self) -> None:
        holes = (self.accepted - REFERRED) // HOLE * HOLE
        if holes - self._holes_to >= CONSUMED:
            try:
                punch(self.file, self._holes_to, holes - self._holes_to)
            except OSError:
                pass  # given back at the end
            self._holes_to = holes

    def lose(self) -> None:
        """It has reached its end, or nobody reads it any more."""
        self.over = True
        self.waits = False
        self._pending.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        for fd in (self.fd, self.file):
            if fd >= 0:
                os.close(fd)
        self.fd = self.file = -1
        self.over = True


class Channels:
    """The inputs and outputs of one execution, as the thread has them.  `changed`: called in the loop."""

    __slots__ = ("changed", "closing", "id", "input", "outputs", "released")

    def __init__(self, id: str, outputs: list[Output], input: Input | None, changed: Callable[[], None]) -> None:
        self.id = id
        self.outputs = outputs
        self.input = input
        self.changed = changed
        #: Resolved when the thread has let go of it.
        self.released: asyncio.Future[None] | None = None
        self.closing = False

    @property
    def over(self) -> bool:
        """No more output comes."""
        return all(output.over for output in self.outputs)

    def close(self) -> None:
        for output in self.outputs:
            output.close()
        if self.input is not None:
            self.input.close()


class Spooler:
    """The thread that moves all bytes of all executions."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread: threading.Thread | None = None
        self._epoll: select.epoll | None = None
        self._wake_fd = -1
        self._orders: deque[tuple[Callable[[Channels], None], Channels]] = deque()
        #: The thread's own: channels by the descriptor that is watched for them, and those that must be tried again.
        self._watched: dict[int, tuple[Channels, Output | None]] = {}
        self._again: set[Channels] = set()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._stopping = False
        #: Changed channels that the loop has yet to be told of.
        self._news: set[Channels] = set()
        self._telling = False
        self._full_log = OncePerMinute()

    def _start(self) -> None:
        if self._thread is None:
            self._epoll = select.epoll()
            self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._epoll.register(self._wake_fd, select.EPOLLIN)
            self._thread = threading.Thread(target=self._run, name="spools", daemon=True)
            self._thread.start()

    def add(self, channels: Channels) -> None:
        """Move the bytes of `channels` from now on.  OSError: no thread or descriptor is left for that."""
        self._start()
        self._order(self._begin, channels)

    def move(self, channels: Channels) -> None:
        """There is something new for the thread: input, room, or the end of its processes."""
        self._order(self._move, channels)

    async def release(self, channels: Channels) -> None:
        """Let go of `channels`, which are closed."""
        if self._thread is None or self._stopping:
            channels.close()
            return
        channels.released = self._loop.create_future()
        self._order(self._release, channels)
        await channels.released

    async def close(self) -> None:
        """Stop.  Commands go on, and wait where a FIFO is full; the next agent takes it from there."""
        thread = self._thread
        if thread is None:
            return
        self._stopping = True
        self._wake()
        if not (await asyncio.wait((self._ended,), timeout=budget.CAPTURE_ENDED))[0]:
            log.error("the disk of the spools hangs: what is on its way is left to the next agent")
            return
        thread.join()

    # ------------------------------------------------------------ the thread

    def _order(self, what: Callable[[Channels], None], channels: Channels) -> None:
        self._orders.append((what, channels))
        self._wake()

    def _wake(self) -> None:
        if self._wake_fd >= 0:
            os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        assert self._epoll is not None
        again_at = 0.0
        try:
            while not self._stopping:
                ready = self._epoll.poll(AGAIN if self._again else None, 64)
                for fd, events in ready:
                    if fd == self._wake_fd:
                        os.eventfd_read(fd)
                        continue
                    found = self._watched.get(fd)
                    if found is None:
                        continue
                    channels, output = found
                    if output is not None:
                        self._carry_out(self._take, channels, output)
                    elif events & (select.EPOLLERR | select.EPOLLHUP):
                        self._carry_out(self._lose_reader, channels)
                    else:
                        self._carry_out(self._feed, channels)
                while self._orders:
                    what, channels = self._orders.popleft()
                    self._carry_out(what, channels)
                if self._again and time.monotonic() >= again_at:
                    again_at = time.monotonic() + AGAIN
                    again, self._again = self._again, set()
                    for channels in again:
                        self._carry_out(self._move, channels)
                self._tell()
        finally:
            self._settle(self._ended)

    def _carry_out(self, what: Callable[..., None], channels: Channels, *rest: Output) -> None:
        try:
            what(channels, *rest)
        except OSError as error:
            self._disk(channels, error)
        except Exception as error:  # of one execution: the others go on
            log.exception("a spool failed", error, execution=channels.id)

    def _disk(self, channels: Channels, error: OSError) -> None:
        """The command waits until the disk takes more."""
        if error.errno in FULL:
            for output in channels.outputs:
                if output.make_room():
                    break
        self._again.add(channels)
        self._full_log.log(
            log.error,
            "what an execution writes or reads cannot be spooled: it waits",
            "also_waiting",
            execution=channels.id,
            reason=error.strerror,
        )

    def _begin(self, channels: Channels) -> None:
        for output in channels.outputs:
            if not output.over:
                self._watch_output(output, channels)
        if channels.input is not None and not channels.input.over:
            self._watch_input(channels.input, channels)
        self._move(channels)

    def _watch_output(self, output: Output, channels: Channels) -> None:
        """Wait for its bytes.  A terminal that nobody has open, or a FIFO without a writer, is ready all the time."""
        assert self._epoll is not None
        wanted = not (output.over or output.blocked)
        if wanted and output.fd not in self._watched:
            self._epoll.register(output.fd, select.EPOLLIN)
            self._watched[output.fd] = channels, output
        elif not wanted and output.fd in self._watched:
            self._epoll.unregister(output.fd)
            del self._watched[output.fd]

    def _watch_input(self, stdin: Input, channels: Channels) -> None:
        """Wait for room, where something waits for it; and in any case for the end of who reads it."""
        assert self._epoll is not None
        events = select.EPOLLOUT if stdin.waits else 0
        if stdin.fd in self._watched:
            self._epoll.modify(stdin.fd, events)
        else:
            self._epoll.register(stdin.fd, events)
            self._watched[stdin.fd] = channels, None

    def _take(self, channels: Channels, output: Output) -> None:
        if output.over or channels.closing:
            return
        before, turns = output.end, TURNS
        try:
            while output.take() and turns:
                turns -= 1
        except OSError:
            output.blocked = "disk"
            raise
        finally:
            if output.end != before or output.over:
                self._news.add(channels)
            if output.blocked == "closed":
                self._again.add(channels)
            self._watch_output(output, channels)

    def _feed(self, channels: Channels) -> None:
        stdin = channels.input
        if stdin is None or stdin.over or channels.closing or not (stdin.waiting or stdin.waits):
            return
        fd, waited, stdin.waits = stdin.fd, stdin.waits, False
        try:
            stdin.waits = stdin.move()
        finally:
            if stdin.fd != fd:
                self._watched.pop(fd, None)  # it is closed, and with that no longer watched
            elif stdin.waits != waited and not stdin.over:
                self._watch_input(stdin, channels)
            self._news.add(channels)

    def _lose_reader(self, channels: Channels) -> None:
        """Nobody reads the input any more."""
        if channels.input is not None and not channels.closing:
            self._watched.pop(channels.input.fd, None)
            channels.input.lose()
            self._news.add(channels)

    def _move(self, channels: Channels) -> None:
        if channels.closing:
            return
        for output in channels.outputs:
            if not output.over:
                output.blocked = ""
                self._take(channels, output)
        self._feed(channels)

    def _release(self, channels: Channels) -> None:
        channels.closing = True
        self._again.discard(channels)
        for fd in [fd for fd, (whose, _) in self._watched.items() if whose is channels]:
            assert self._epoll is not None
            self._epoll.unregister(fd)
            del self._watched[fd]
        channels.close()
        if channels.released is not None:
            self._settle(channels.released)

    def _tell(self) -> None:
        if self._news and not self._telling:
            self._telling = True
            self._loop_call(self._told)

    def _told(self) -> None:
        self._telling = False
        while self._news:
            try:
                channels = self._news.pop()
            except KeyError:
                return
            channels.changed()

    def _settle(self, future: asyncio.Future[None]) -> None:
        self._loop_call(lambda: None if future.done() else future.set_result(None))

    def _loop_call(self, what: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(what)
        except RuntimeError:
            pass  # the loop is closed: nobody waits


def read_number(path: str, default: int = 0) -> int:
    try:
        with open(path, "rb") as file:
            octets = file.read(8)
    except FileNotFoundError:
        return default
    return int.from_bytes(octets, "little") if len(octets) == 8 else default


def write_number(path: str, number: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.pwrite(fd, number.to_bytes(8, "little"), 0)
    finally:
        os.close(fd)

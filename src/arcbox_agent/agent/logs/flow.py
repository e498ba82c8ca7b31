"""One reader and one encoding of a log, for all followers that want the same of it.

    file --Cursor--> Flow --batches--> Follow, Follow, Follow ... --> connections

A flow keeps a batch until every member has taken it, and at most RING_LIMIT bytes of
them.  A member that has not taken the oldest batch by then must leave the flow, with a
cursor where it stands (see Member.leave).  So a slow follower delays nobody else.
"""

from __future__ import annotations

import asyncio

from arcbox_agent.agent.logs.cursor import BLOCKED, END, Cursor
from arcbox_agent.agent.logs.inotify import Changes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from arcbox_agent.agent.logs.cursor import Read
    from arcbox_agent.agent.logs.inotify import Inotify, Watch
    from arcbox_agent.logs.files import LogFile
else:
    Protocol = object

RING_LIMIT = 1 << 20

#: Bytes of the batches of all flows together: over it a flow with more to keep lets its slow members go.
RINGS_LIMIT = 8 << 20


class Rings:
    """What all flows keep together, in bytes."""

    __slots__ = ("kept",)

    def __init__(self) -> None:
        self.kept = 0


class Member(Protocol):
    """A follower as its flow sees it."""

    #: The number of the batch that it takes next.
    number: int

    def leave(self, cursor: Cursor) -> None:
        """It was too slow: it leaves the flow and reads on from `cursor`, which is its own."""


class Batch:
    """Encoded entries, and the place in the log where they begin."""

    __slots__ = ("data", "start", "waiting")

    def __init__(self, data: bytes, start: Cursor | None, waiting: int) -> None:
        self.data = data
        #: None: every member is sure to take it, so none will have to read it again.
        self.start = start
        #: Members that have not taken it.
        self.waiting = waiting


class Flow:
    """See the module."""

    __slots__ = (
        "_busy",
        "_inotify",
        "_loop",
        "_name_watch",
        "_next_watch",
        "_next_watched",
        "_progress",
        "_rings",
        "_watch",
        "_watched",
        "batches",
        "changes",
        "cursor",
        "first",
        "kept",
        "key",
        "members",
        "users",
    )  # fmt: skip

    def __init__(
        self,
        key: tuple[Any, ...],
        cursor: Cursor,
        inotify: Inotify,
        loop: asyncio.AbstractEventLoop,
        rings: Rings,
    ) -> None:
        self.key = key
        self._rings = rings
        self.cursor = cursor
        # Lists: most flows have one member, and an empty set or deque is larger than all the rest.
        self.members: list[Member] = []
        self.batches: list[Batch] = []
        #: The number of batches[0].
        self.first = 0
        #: Bytes in `batches`.
        self.kept = 0
        #: Follows that use it: its members, and those that read alone until they catch up.
        self.users = 0
        self.changes = Changes(loop)
        self._loop = loop
        self._inotify = inotify
        #: The read in a thread, while there is one.
        self._busy: asyncio.Future[tuple[Read, Any]] | None = None
        #: Whether the last read in a thread left more to do at once.
        self._progress = False
        # The watches begin before the first read, so no write falls between the two.
        self._name_watch = inotify.watch_name(cursor.path, self.changes)
        self._watch: Watch | None = None
        self._next_watch: Watch | None = None
        self._watched: LogFile | None = None
        self._next_watched: LogFile | None = None
        self._watch_files()

    def close(self) -> None:
        for watch in (self._name_watch, self._watch, self._next_watch):
            if watch is not None:
                self._inotify.drop(watch)
        self._watch = self._next_watch = None
        self._watched = self._next_watched = self.cursor.file = self.cursor.next_file = None  # closes them
        self.batches.clear()
        self._count(-self.kept)
        self._rings = Rings()  # a read that a thread has not ended yet is nobody's
        self.changes.tell()

    def _count(self, size: int) -> None:
        self.kept += size
        self._rings.kept += size

    def _watch_files(self) -> bool:
        """Watch the cursor's file, and the next one if the cursor waits for it.

        True: a watch has begun, and what was written before it has not been looked for yet.
        """
        cursor = self.cursor
        begun = False
        if self._watched is not cursor.file:
            if self._watch is not None:
                self._inotify.drop(self._watch)
            self._watched = cursor.file
            self._watch = None
            if cursor.file is not None:
                self._watch = self._inotify.watch_file(cursor.file.fd, self.changes)
                begun = True
        awaited, before = cursor.next_file, self._next_watched
        if awaited is None or before is None or (awaited.device, awaited.inode) != (before.device, before.inode):
            if self._next_watch is not None:
                self._inotify.drop(self._next_watch)
                self._next_watch = None
            if awaited is not None:
                self._next_watch = self._inotify.watch_file(awaited.fd, self.changes)
                begun = True
        self._next_watched = awaited
        return begun

    # -------------------------------------------------------------- reading

    async def advance(self, member: Member | None = None) -> bool:
        """Read the next batch, for `member` that has taken all others; False: there is nothing more for now."""
        if await self.settled():
            return True
        # The only member takes the batch at once, so nobody will have to read it again.
        alone = member is not None and len(self.members) == 1
        start = None if alone or not self.members else self.cursor.fork()
        status, output = self.cursor.read(nowait=True)
        if status is BLOCKED:
            # A thread waits for the disk, for all members, even if the one that asked goes away.
            if start is None and self.members:
                start = self.cursor.fork()  # others may join before the batch is taken
            read = self._busy = self._loop.run_in_executor(None, self.cursor.read)
            read.add_done_callback(lambda read: self._read_in_thread(read, start))
            await asyncio.shield(read)
            return self._progress
        return self._took(status, output, start)

    async def settled(self) -> bool:
        """Wait while a thread moves the cursor; whether one did."""
        if self._busy is None:
            return False
        if self._busy.done():
            # Its callback runs in the loop's next iteration; awaiting the future would not wait for that.
            await asyncio.sleep(0)
        else:
            await asyncio.shield(self._busy)
        return True

    def _read_in_thread(self, read: asyncio.Future[tuple[Read, Any]], start: Cursor | None) -> None:
        self._busy = None
        if not read.cancelled() and read.exception() is None:
            self._progress = self._took(*read.result(), start)

    def _took(self, status: Read, output: Any, start: Cursor | None) -> bool:
        """Keep what the cursor has read; whether there may be more at once."""
        if output:
            self._keep(Batch(output, start, len(self.members)))
        return self._watch_files() or bool(output) or status is not END

    # -------------------------------------------------------------- members

    def join(self, member: Member) -> None:
        """From the next batch on."""
        member.number = self.first + len(self.batches)
        self.members.append(member)

    def part(self, member: Member) -> None:
        """A member leaves, and the batches that it has not taken no longer wait for it."""
        self.members.remove(member)
        self.changes.drop_done()
        for index in range(member.number - self.first, len(self.batches)):
            self.batches[index].waiting -= 1
        self._drop_taken()

    def take(self, member: Member) -> bytes | None:
        """The member's next batch; where it is the only member, what can be read at once, of which no batch is kept.

        None: call `advance`.
        """
        batches = self.batches
        index = member.number - self.first
        if index < len(batches):
            batch = batches[index]
            member.number += 1
            batch.waiting -= 1
            self._drop_taken()
            return batch.data
        if self._busy is not None or len(self.members) != 1 or batches:
            return None
        cursor = self.cursor
        status, output = cursor.read(nowait=True)
        moved = cursor.file is not self._watched or cursor.next_file is not self._next_watched
        begun = moved and self._watch_files()
        if not output and (status is not END or begun):
            return None
        return output  # type: ignore[no-any-return]

    def has_taken_all(self, member: Member) -> bool:
        return member.number - self.first >= len(self.batches)

    def _keep(self, batch: Batch) -> None:
        self.batches.append(batch)
        self._count(len(batch.data))
        while (self.kept > RING_LIMIT or self._rings.kept > RINGS_LIMIT) and len(self.batches) > 1:
            oldest = self.batches[0]
            for member in [each for each in self.members if each.number == self.first]:
                assert oldest.start is not None
                member.leave(oldest.start.fork())
            self._drop_taken()
        self.changes.tell()

    def _drop_taken(self) -> None:
        while self.batches and self.batches[0].waiting <= 0:
            self._count(-len(self.batches.pop(0).data))
            self.first += 1

"""One inotify instance for all follows; polling where the kernel gives none.

The kernel has one watch per inode, and adding it twice gives the same number.  So each
number has a list of Watch objects.  An event says only that something may have changed:
whoever waits for changes looks for itself.
"""

from __future__ import annotations

import os

from arcbox_agent import _inotify
from arcbox_agent.agent.observe.log import Logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future, TimerHandle

log = Logger("logs")

_FILE = _inotify.MODIFY | _inotify.ATTRIB | _inotify.MOVE_SELF | _inotify.DELETE_SELF
_DIRECTORY = _inotify.CREATE | _inotify.MOVED_TO | _inotify.ONLYDIR
_BUFFER = 65536
#: Seconds between two looks where there is no inotify.
POLL_INTERVAL = 0.1


class Changes:
    """Counts what may have changed, and wakes who waits for it.

    A change while nobody waits is found by its `number`: whoever read compares it before it waits.
    """

    __slots__ = ("_loop", "number", "waiters")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self.number = 0
        # A list: most have one waiter, and an empty set or deque is larger than all the rest.
        self.waiters: list[Future[None]] = []

    def tell(self) -> None:
        """Wake every waiter, and let whoever is about to wait look again."""
        self.number += 1
        waiters = self.waiters
        if waiters:
            self.waiters = []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def next(self) -> Future[None]:
        """Done at the next change.  (No coroutine: each of thousands would hold a frame.)"""
        waiter = self._loop.create_future()
        self.waiters.append(waiter)
        return waiter

    def drop_done(self) -> None:
        """Forget the waiters that were cancelled."""
        self.waiters = [waiter for waiter in self.waiters if not waiter.done()]


class Watch:
    """Those who wait for changes of one file or name."""

    __slots__ = ("changes", "name", "number")

    def __init__(self, number: int, name: bytes, changes: Changes) -> None:
        self.number = number  # -1: polled
        self.name = name  # in a directory; empty: the watched file itself
        self.changes = changes


class Inotify:
    """Watches files and names in directories, and tells of their changes on the loop."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._fd = -1
        self._files: dict[int, list[Watch]] = {}
        self._names: dict[int, dict[bytes, list[Watch]]] = {}
        self._polled: set[Watch] = set()
        self._timer: TimerHandle | None = None
        self._warned = False

    @property
    def polled(self) -> int:
        """Watches that are served by polling."""
        return len(self._polled)

    def start(self) -> None:
        try:
            self._fd = _inotify.init()
        except OSError as error:
            self._fall_back(error)
            return
        self._loop.add_reader(self._fd, self._readable)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._files.clear()
        self._names.clear()
        self._polled.clear()

    def watch_file(self, fd: int, changes: Changes) -> Watch:
        """Watch an open file, whatever its path is by now."""
        watch = Watch(self._add(f"/proc/self/fd/{fd}", _FILE), b"", changes)
        if watch.number < 0:
            self._poll(watch)
        else:
            self._files.setdefault(watch.number, []).append(watch)
        return watch

    def watch_name(self, path: str, changes: Changes) -> Watch:
        """Watch for a file that is made at a path, or moved there."""
        directory, name = os.path.split(path)
        watch = Watch(self._add(directory or ".", _DIRECTORY), os.fsencode(name), changes)
        if watch.number < 0:
            self._poll(watch)
        else:
            self._names.setdefault(watch.number, {}).setdefault(watch.name, []).append(watch)
        return watch

    def drop(self, watch: Watch) -> None:
        if watch.number < 0:
            self._polled.discard(watch)
            return
        if watch.name:
            names = self._names.get(watch.number, {})
            watches = names.get(watch.name, [])
        else:
            watches = self._files.get(watch.number, [])
        if watch not in watches:
            return  # the kernel removed the watch with its file
        watches.remove(watch)
        if watches:
            return
        if watch.name:
            del names[watch.name]
            if names:
                return
            del self._names[watch.number]
        else:
            del self._files[watch.number]
        _inotify.remove_watch(self._fd, watch.number)

    def _add(self, path: str, mask: int) -> int:
        if self._fd < 0:
            return -1
        try:
            return _inotify.add_watch(self._fd, path, mask)
        except FileNotFoundError:
            return -1  # a directory yet to be made
        except OSError as error:
            self._fall_back(error)
            return -1

    def _fall_back(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "inotify is not available, logs are followed by polling; "
                "fs.inotify.max_user_instances and max_user_watches may be too low",
                reason=error,
                interval=POLL_INTERVAL,
            )

    def _poll(self, watch: Watch) -> None:
        self._polled.add(watch)
        if self._timer is None:
            self._timer = self._loop.call_later(POLL_INTERVAL, self._tick)

    def _tick(self) -> None:
        self._timer = None
        for watch in list(self._polled):
            watch.changes.tell()
        if self._polled:
            self._timer = self._loop.call_later(POLL_INTERVAL, self._tick)

    def _readable(self) -> None:
        try:
            plain, named = _inotify.parse(os.read(self._fd, _BUFFER))
        except BlockingIOError:
            return
        for number, mask in plain.items():
            if number < 0:
                # The kernel's queue overflowed and events are lost: everything may have changed.
                self._tell_all()
                return
            watches = self._files.get(number)
            if watches is not None:
                for watch in tuple(watches):
                    watch.changes.tell()
                if mask & _inotify.IGNORED:
                    self._files.pop(number, None)
            elif mask & _inotify.IGNORED:
                # The directory was removed: its names are polled from now on.
                for waiting in self._names.pop(number, {}).values():
                    for watch in waiting:
                        watch.number = -1
                        self._poll(watch)
        for number, _, name in named:
            for watch in tuple(self._names.get(number, {}).get(name, ())):
                watch.changes.tell()

    def _tell_all(self) -> None:
        every = [watch for watches in self._files.values() for watch in watches]
        every += [watch for names in self._names.values() for watches in names.values() for watch in watches]
        for watch in every:
            watch.changes.tell()

"""The records on disk.  Each has a file of its own, and a crash leaves its old content or its new one.

    STATE_DIR/containers/ID.json           a record
    STATE_DIR/containers/ID.json.tmp       a record that is being written; one left by a crash is removed
    STATE_DIR/containers/ID.json.damaged   a file that held no record, set aside
    STATE_DIR/logs/ID.log, ID.log.*        its output (ID.log.new: of a rotation that was cut short)
    STATE_DIR/volumes/NAME/                volumes; they outlive containers
    RUN_DIR/containers/ID/                 FIFOs and pid file of a running one

Every method may wait for the disk, so it belongs in a thread.
"""

from __future__ import annotations

import os
import stat

from arcbox_agent.agent.containers.ids import is_id
from arcbox_agent.agent.containers.record import Record, RecordError
from arcbox_agent.agent.observe.log import Logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = Logger("containers")

#: The most bytes of a record, which has some kilobytes.  The agent never wrote a larger one.
MAX_RECORD = 16 << 20

#: Damaged records of one container that are kept, each under a name of its own.
MOST_DAMAGED = 100

_SUFFIX = ".json"
_DAMAGED = _SUFFIX + ".damaged"


class Store:
    """The records, and the files that belong to containers."""

    def __init__(self, state_dir: str, run_dir: str) -> None:
        self.records_dir = os.path.join(state_dir, "containers")
        self.logs_dir = os.path.join(state_dir, "logs")
        self.volumes_dir = os.path.join(state_dir, "volumes")
        self.run_dir = os.path.join(run_dir, "containers")
        self._directory_fd = -1

    def __del__(self) -> None:
        # Here, because a thread may still write until the last reference is gone.
        if self._directory_fd >= 0:
            os.close(self._directory_fd)

    def log_path(self, id: str) -> str:
        return os.path.join(self.logs_dir, id + ".log")

    def run_path(self, id: str) -> str:
        return os.path.join(self.run_dir, id)

    def prepare(self) -> None:
        for path in (self.records_dir, self.logs_dir, self.volumes_dir, self.run_dir):
            os.makedirs(path, mode=0o700, exist_ok=True)
        # It stays open: the sync of a record that was renamed must not fail for want of a descriptor.
        self._directory_fd = os.open(self.records_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def load(self) -> list[Record]:
        """All records.  A file that holds none is set aside and logged, and so is a second one of the same name."""
        records: list[Record] = []
        used: set[str] = set()
        for file in sorted(os.listdir(self.records_dir)):
            path = os.path.join(self.records_dir, file)
            if file.endswith(_SUFFIX + ".tmp"):
                self._remove_unfinished(path)
                continue
            if not file.endswith(_SUFFIX):
                continue
            try:
                record = Record.decode(_read(path), file.removesuffix(_SUFFIX))
                names = {record.id, record.name} - {""}
                if names & used:
                    raise RecordError("its id or name is that of another container")
            except (OSError, RecordError) as error:
                _set_aside(path, error)
                continue
            used |= names
            records.append(record)
        return records

    def _remove_unfinished(self, path: str) -> None:
        try:
            os.unlink(path)
        except OSError as error:  # a directory of that name is none of the agent's: it harms nobody
            log.error("what is left of a write cannot be removed", path=path, error=error)

    def write(self, record: Record, durable: bool = True) -> None:
        """Replace the record on disk.  `durable`: a power failure does not bring the former one back.

        `record` is a copy, which does not change meanwhile.
        """
        octets = record.encode()
        path = os.path.join(self.records_dir, record.id + _SUFFIX)
        temporary = path + ".tmp"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                rest = memoryview(octets)
                while rest:
                    rest = rest[os.write(fd, rest) :]
                # Even if not durable: without it some file systems (XFS) have an empty file after a
                # power failure, neither the former record nor this one.
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, path)
        except OSError:
            try:
                os.unlink(temporary)
            except OSError:
                pass
            raise
        if durable:
            self._sync_directory()

    def remove(self, id: str) -> None:
        """Remove all that belongs to a record, and the record last: after a crash the removal can be repeated."""
        _remove_tree(self.run_path(id))
        for name in os.listdir(self.logs_dir):
            if _owner_of_log(name) == id:
                os.unlink(os.path.join(self.logs_dir, name))
        try:
            os.unlink(os.path.join(self.records_dir, id + _SUFFIX))
        except FileNotFoundError:
            return
        self._sync_directory()

    def sweep(self, known: Iterable[str]) -> None:
        """Remove run directories and logs that belong to no record.

        The logs of a record that was set aside stay, as the record may be repaired.
        """
        keep = set(known)
        keep.update(name.partition(_DAMAGED)[0] for name in os.listdir(self.records_dir) if _DAMAGED in name)
        for name in os.listdir(self.run_dir):
            if name not in keep:
                _sweep_away("removing what a container left", os.path.join(self.run_dir, name), _remove_tree)
        for name in os.listdir(self.logs_dir):
            id = _owner_of_log(name)
            if id is not None and id not in keep:
                _sweep_away(
                    "removing the log of a container that is gone", os.path.join(self.logs_dir, name), os.unlink
                )

    def _sync_directory(self) -> None:
        os.fsync(self._directory_fd)


def _remove_tree(path: str) -> None:
    """Remove a directory and all in it.  (An import of shutil would load three compressors.)"""
    try:
        with os.scandir(path) as found:
            entries = list(found)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            _remove_tree(entry.path)
        else:
            os.unlink(entry.path)
    os.rmdir(path)


def _sweep_away(what: str, path: str, remove: Callable[[str], None]) -> None:
    log.info(what, path=path)
    try:
        remove(path)
    except OSError as error:  # the containers that there are can be served all the same
        log.error("it cannot be removed", path=path, error=error)


def _owner_of_log(name: str) -> str | None:
    """The id in the name of a log, a rotated log or a log of a rotation that was cut short; None: another file."""
    head, _, place = name.rpartition(".")
    base = head if place.isdigit() or place == "new" else name
    id = base.removesuffix(".log")
    return id if id != base and is_id(id) else None


def _read(path: str) -> bytes:
    """The content of a record's file.  RecordError: it is no file, or too large for one."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise RecordError("not a regular file")
        with open(fd, "rb", closefd=False) as file:
            octets = file.read(MAX_RECORD + 1)
    finally:
        os.close(fd)
    if len(octets) > MAX_RECORD:
        raise RecordError(f"larger than {MAX_RECORD} bytes")
    return octets


def _set_aside(path: str, error: Exception) -> None:
    """Give a file another name under which it is no record.  One that was set aside before stays."""
    for number in range(1, MOST_DAMAGED):
        aside = f"{path}.damaged" + (f".{number}" if number > 1 else "")
        if not os.path.lexists(aside):
            break
    log.error("a container's record is damaged and set aside", path=aside, error=error)
    try:
        os.rename(path, aside)
    except OSError as failure:
        log.error("a damaged record cannot be set aside", path=path, error=failure)

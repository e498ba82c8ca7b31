"""The records on disk: each in a file of its own, written so that a crash leaves the old one or the new.

    STATE_DIR/containers/ID.json           a record
    STATE_DIR/containers/ID.json.tmp       one being written; of a crash: removed
    STATE_DIR/containers/ID.json.damaged   set aside: it held no record
    STATE_DIR/logs/ID.log, ID.log.*        its output (ID.log.new: of a rotation that was cut short)
    STATE_DIR/volumes/NAME/                volumes; they outlive containers
    RUN_DIR/containers/ID/                 FIFOs and pid file of a running one

All of it blocks, for a disk: call it in a thread.
"""

from __future__ import annotations

import os

from arcbox_agent.agent.containers.ids import is_id
from arcbox_agent.agent.containers.record import Record, RecordError
from arcbox_agent.agent.observe.log import Logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = Logger("containers")

#: A record is some kilobytes.  What is larger was not written here.
MAX_RECORD = 16 << 20

_SUFFIX = ".json"


class Store:
    """The records, and the files that belong to containers."""

    def __init__(self, state_dir: str, run_dir: str) -> None:
        self.records_dir = os.path.join(state_dir, "containers")
        self.logs_dir = os.path.join(state_dir, "logs")
        self.volumes_dir = os.path.join(state_dir, "volumes")
        self.run_dir = os.path.join(run_dir, "containers")
        self._directory_fd = -1

    def __del__(self) -> None:
        # Not before the last thread that writes is done.
        if self._directory_fd >= 0:
            os.close(self._directory_fd)

    def log_path(self, id: str) -> str:
        return os.path.join(self.logs_dir, id + ".log")

    def run_path(self, id: str) -> str:
        return os.path.join(self.run_dir, id)

    def prepare(self) -> None:
        for path in (self.records_dir, self.logs_dir, self.volumes_dir, self.run_dir):
            os.makedirs(path, mode=0o700, exist_ok=True)
        # Kept: to sync a record that has its name already must not fail for want of a descriptor.
        self._directory_fd = os.open(self.records_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def load(self) -> list[Record]:
        """All records.  A file that holds none is set aside and logged."""
        records = []
        for name in sorted(os.listdir(self.records_dir)):
            path = os.path.join(self.records_dir, name)
            if name.endswith(_SUFFIX + ".tmp"):
                os.unlink(path)
                continue
            if not name.endswith(_SUFFIX):
                continue
            try:
                records.append(Record.decode(_read(path), name.removesuffix(_SUFFIX)))
            except (OSError, RecordError) as error:
                log.error("a container's record is damaged and set aside", path=path + ".damaged", error=error)
                try:
                    os.replace(path, path + ".damaged")
                except OSError as failure:
                    log.error("a damaged record cannot be set aside", path=path, error=failure)
        return records

    def write(self, record: Record, octets: bytes, durable: bool = True) -> None:
        """Replace the record by `octets`; `durable`: not to be the former one again after a power failure.

        `octets` were encoded by the caller, in the loop, where the record cannot change.
        """
        path = os.path.join(self.records_dir, record.id + _SUFFIX)
        temporary = path + ".tmp"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                rest = memoryview(octets)
                while rest:
                    rest = rest[os.write(fd, rest) :]
                # In any case: else some file systems (XFS) have an empty file after a power failure,
                # neither the former record nor this one.
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
        """The record and all that belongs to it; the record last, so that a crash can go on here."""
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
        """Removes what belongs to no record: run directories, and logs.

        Not the logs of a record that was set aside: somebody may yet repair it.
        """
        keep = set(known)
        damaged = _SUFFIX + ".damaged"
        keep.update(name.removesuffix(damaged) for name in os.listdir(self.records_dir) if name.endswith(damaged))
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
    """A directory of ours and all in it.  (shutil would bring three compressors along.)"""
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
    except OSError as error:  # no reason not to serve the containers that there are
        log.error("it cannot be removed", path=path, error=error)


def _owner_of_log(name: str) -> str | None:
    """The container whose log, rotated log, or log in the making (a rotation cut short) a file of that name is."""
    head, _, place = name.rpartition(".")
    base = head if place.isdigit() or place == "new" else name
    id = base.removesuffix(".log")
    return id if id != base and is_id(id) else None


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    with open(fd, "rb") as file:
        octets = file.read(MAX_RECORD + 1)
    if len(octets) > MAX_RECORD:
        raise RecordError(f"larger than {MAX_RECORD} bytes")
    return octets

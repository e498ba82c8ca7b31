"""What is on disk of an execution.

    STATE_DIR/executions/ID/request       the StartExecutionRequest, without its id and its key
    STATE_DIR/executions/ID/record        one JSON object, the same fields in memory
    STATE_DIR/executions/ID/stdout, ...   the spools (spools.py)
    RUN_DIR/executions/ID/                FIFOs and pid file of one that runs

A record is written before the spawn and at the end: what lies between, the next agent learns from the pid
file and from the keeper.  Nothing is fsynced, as no execution outlives a power failure.
"""

from __future__ import annotations

import os
import stat

from arcbox_agent.agent.containers.ids import is_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FORMAT = 1

#: The most bytes of a record: its command may have a megabyte.
MAX_RECORD = 16 << 20

RUNNING, ENDED = "running", "ended"

#: Every field but `id`: its type on disk, and its default.
FIELDS: dict[str, tuple[type, Any]] = {
    "key": (str, ""),
    "container_id": (str, ""),
    "cmd": (list, []),
    "user": (str, ""),
    "tty": (bool, False),
    "open_stdin": (bool, False),
    "spool_limit": (int, 0),
    "wait_when_full": (bool, False),
    "keep_ms": (int, 0),
    "state": (str, RUNNING),
    "boot_id": (str, ""),
    # The path of its cgroup; empty: it has none.
    "cgroup": (str, ""),
    "created_ns": (int, 0),
    "started_ns": (int, 0),
    "ended_ns": (int, 0),
    # When its time is over, on CLOCK_BOOTTIME; 0: never.
    "deadline_ns": (int, 0),
    "pid": (int, 0),
    "cause": (str, ""),
    "exit_code": (int, 0),
    "signal": (int, 0),
    "output_cut": (bool, False),
    "cpu_ns": (int, 0),
    "peak_memory": (int, 0),
    # Of the input, once it has ended.
    "input_offset": (int, 0),
}


class RecordError(ValueError):
    """A file does not hold a record."""


class Record:
    """See the module."""

    __slots__ = ("id", *FIELDS)

    if TYPE_CHECKING:
        key: str
        container_id: str
        cmd: list[str]
        user: str
        tty: bool
        open_stdin: bool
        spool_limit: int
        wait_when_full: bool
        keep_ms: int
        state: str
        boot_id: str
        cgroup: str
        created_ns: int
        started_ns: int
        ended_ns: int
        deadline_ns: int
        pid: int
        cause: str
        exit_code: int
        signal: int
        output_cut: bool
        cpu_ns: int
        peak_memory: int
        input_offset: int

    def __init__(self, id: str, **values: Any) -> None:
        self.id = id
        for name, (_, default) in FIELDS.items():
            setattr(self, name, values.get(name, default))

    def encode(self) -> bytes:
        import json  # only where there are executions

        return json.dumps({"format": FORMAT, **{name: getattr(self, name) for name in FIELDS}}).encode()

    @classmethod
    def decode(cls, octets: bytes, id: str) -> Record:
        """RecordError: it is none."""
        import json

        try:
            found = json.loads(octets)
        except (ValueError, RecursionError) as error:
            raise RecordError(str(error)) from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise RecordError("no record of this format")
        if not is_id(id):
            raise RecordError("its directory's name is no id")
        values: dict[str, Any] = {}
        for name, (kind, default) in FIELDS.items():
            value: Any = found.get(name, default)
            if type(value) is not kind or (isinstance(value, int) and not -(1 << 63) <= value < 1 << 63):
                raise RecordError(f"{name}: {value!r:.100}")
            values[name] = value
        if values["state"] not in (RUNNING, ENDED) or not all(isinstance(word, str) for word in values["cmd"]):
            raise RecordError("its state or its command is none")
        return cls(id, **values)


def write(path: str, octets: bytes) -> None:
    """Replace a file; a crash leaves the old content or the new one.  OSError.  For a thread."""
    temporary = path + ".tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        rest = memoryview(octets)
        while rest:
            rest = rest[os.write(fd, rest) :]
    finally:
        os.close(fd)
    os.rename(temporary, path)


def read(path: str) -> bytes:
    """OSError; RecordError: it is no file, or too large.  For a thread."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_RECORD:
            raise RecordError("not a regular file, or too large for a record")
        with open(fd, "rb", closefd=False) as file:
            return file.read(MAX_RECORD)
    finally:
        os.close(fd)


def load(directory: str) -> list[Record]:
    """All records; what is none is set aside as ID.damaged.  For a thread."""
    from arcbox_agent.agent.observe.log import Logger

    found = []
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        if name.endswith(".damaged"):
            continue
        try:
            found.append(Record.decode(read(os.path.join(path, "record")), name))
        except FileNotFoundError:
            remove(path)  # of a start that was cut short before its spawn
        except (OSError, RecordError) as error:
            Logger("executions").error("an execution's record is damaged and set aside", path=path, error=error)
            try:
                remove(path + ".damaged")
                os.rename(path, path + ".damaged")
            except OSError:
                continue
    return found


def remove(path: str) -> None:
    """Remove a directory of files, where it is there.  For a thread."""
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return
    for name in names:
        os.unlink(os.path.join(path, name))
    os.rmdir(path)

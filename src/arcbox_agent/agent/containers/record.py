"""A container as it is kept on disk: one JSON object, the same fields in memory.

`state` is what was true when it was written; after a restart the runtime says what
is true now (service.py).
"""

from __future__ import annotations

from arcbox_agent.agent.containers.ids import is_id
from arcbox_agent.agent.processes import environment
from arcbox_agent.errors import BadRequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: Of the file's layout.  An agent takes no file of a later format for a record, so it never starts a
#: container that it does not understand.
FORMAT = 2
#: Without a runtime: there was one alone.
FORMAT_OF_PROCESSES = 1
PROCESSES = "process"

CREATED = "created"
#: The intent to start: written before the spawn, so that a new agent knows to look.
STARTING = "starting"
RUNNING = "running"
STOPPED = "stopped"
#: The intent to remove: a new agent goes on with it.
REMOVING = "removing"

#: The most of a number: it must fit the field that tells it to a client.
MOST_NUMBER = (1 << 63) - 1
#: The same for numbers of a smaller range.
MOST = {"pid": (1 << 22), "exit_code": 255, "signal": 127, "run": 1 << 31, "stop_signal": 64}
#: The least of a number that may be below 0.
LEAST = {"stop_timeout_ms": -1}

MAX_MOUNTS = 256
MOUNT_TYPES = ("bind", "volume", "tmpfs")

#: Items of a list or a dict that are encoded at once.
PIECE = 1024

STATES = (CREATED, STARTING, RUNNING, STOPPED, REMOVING)

#: Every field but `id`: its type on disk, and its default.
FIELDS: dict[str, tuple[type, Any]] = {
    # What was asked for.
    "name": (str, ""),
    "image": (str, ""),
    "command": (list, []),
    "env": (dict, {}),
    "working_dir": (str, ""),
    "user": (str, ""),
    "mounts": (list, []),
    "tty": (bool, False),
    "open_stdin": (bool, False),
    "rootfs": (str, ""),
    "created_ns": (int, 0),
    "stop_signal": (int, 0),  # 0: SIGTERM
    "stop_timeout_ms": (int, 0),  # 0: not said; below 0: without end
    "runtime": (str, PROCESSES),  # which runs it
    "warnings": (list, []),
    # What became of it.
    "state": (str, CREATED),
    "run": (int, 0),  # how often it was started
    "pid": (int, 0),
    "start_time": (int, 0),  # of that pid, in ticks since boot
    "boot_id": (str, ""),  # of which boot
    "started_ns": (int, 0),
    "finished_ns": (int, 0),
    "exit_code": (int, 0),  # 128 + signal where a signal ended it
    "signal": (int, 0),
    "stopped": (bool, False),  # by a Stop: shown as `Stopped`, not `Exited`
    "lost": (bool, False),  # it ended while no agent was there to see how
    "output_cut": (bool, False),  # what passed its output on was killed, or nobody held its last output
    "error": (str, ""),
}


class RecordError(Exception):
    """A record's file does not hold one."""


class Record:
    """See FIELDS."""

    __slots__ = ("id", *FIELDS)

    id: str
    name: str
    image: str
    command: list[str]
    env: dict[str, str]
    working_dir: str
    user: str
    mounts: list[list[Any]]
    tty: bool
    open_stdin: bool
    rootfs: str
    created_ns: int
    stop_signal: int
    stop_timeout_ms: int
    runtime: str
    warnings: list[str]
    state: str
    run: int
    pid: int
    start_time: int
    boot_id: str
    started_ns: int
    finished_ns: int
    exit_code: int
    signal: int
    stopped: bool
    lost: bool
    output_cut: bool
    error: str

    def __init__(self, id: str, **values: Any) -> None:
        self.id = id
        for name, (kind, default) in FIELDS.items():
            value = values.pop(name, default)
            # A list or dict of its own: never the table's, nor the caller's.
            setattr(self, name, kind(value) if kind in (list, dict) else value)
        if values:
            raise TypeError(f"unknown fields {sorted(values)}")

    def copy(self) -> Record:
        """What it is now, for a thread that encodes it.  Lists and dicts do not change after create: it shares them."""
        found = object.__new__(Record)
        for name in self.__slots__:
            setattr(found, name, getattr(self, name))
        return found

    def encode(self) -> bytes:
        """The file's content: a line a field.  65,536 variables take some 20 ms: for a thread."""
        import json  # a millisecond that an agent without containers need not pay for at its start

        lines = [f'"format": {FORMAT}']
        for name in self.__slots__:
            value = getattr(self, name)
            # In pieces: the compiled encoder holds the interpreter's lock for each whole.
            if isinstance(value, (list, dict)) and len(value) > PIECE:
                lines.append(f'"{name}": {_in_pieces(value, json.dumps)}')
            else:
                lines.append(f'"{name}": {json.dumps(value)}')
        return ("{\n " + ",\n ".join(lines) + "\n}\n").encode("ascii")

    @classmethod
    def decode(cls, octets: bytes, id: str) -> Record:
        """The record of container `id`; RecordError where it is not one."""
        import json

        try:
            values = json.loads(octets)
        except (ValueError, RecursionError) as error:
            # Among them numbers of too many digits, and bytes that are no UTF-8.
            raise RecordError(f"not JSON: {error}") from error
        if not isinstance(values, dict):
            raise RecordError("not a JSON object")
        form = values.pop("format", None)
        if form == FORMAT_OF_PROCESSES:
            values["runtime"] = PROCESSES
        elif form != FORMAT:
            raise RecordError(f"neither of format {FORMAT} nor of {FORMAT_OF_PROCESSES}")
        elif not values.get("runtime"):
            raise RecordError("it names no runtime")
        if values.pop("id", None) != id or not is_id(id):
            raise RecordError("of another container than its file says")
        # A field that a later agent added may be ignored: `format` would tell if not.
        known = {name: value for name, value in values.items() if name in FIELDS}
        for name, value in known.items():
            if type(value) is not FIELDS[name][0]:
                raise RecordError(f"{name} is not of type {FIELDS[name][0].__name__}")
            _check(name, value)
        if known.get("state") not in STATES:
            raise RecordError(f"unknown state {known.get('state')!r}")
        if known.get("name") and not is_id(known["name"]):
            raise RecordError("its name is none")
        if not is_id(known["runtime"]):
            raise RecordError("it names no runtime")
        try:
            environment.check(known.get("command", []), known.get("env", {}))
            environment.check_working_dir(known.get("working_dir", ""))
        except BadRequestError as error:
            raise RecordError(error.message) from error
        return cls(id, **known)


def _check(name: str, value: Any) -> None:
    """Whether a field of the right type can have that value: its range, and that its texts can be sent to a client."""
    kind = FIELDS[name][0]
    if kind is int and not LEAST.get(name, 0) <= value <= MOST.get(name, MOST_NUMBER):
        raise RecordError(f"{name} is out of range")
    texts: list[Any] = []
    if kind is str:
        texts = [value]
    elif kind is dict:
        texts = [*value, *value.values()]
    elif name == "mounts":
        if len(value) > MAX_MOUNTS:
            raise RecordError(f"more than {MAX_MOUNTS} mounts")
        for mount in value:
            if not isinstance(mount, list) or [type(part) for part in mount] != [str, str, str, bool]:
                raise RecordError("a mount is not one")
            kind_of_mount, source, target, _ = mount
            if kind_of_mount not in MOUNT_TYPES or not target.startswith("/") or "\0" in source + target:
                raise RecordError("a mount is not one")
            texts += mount[:3]
    elif kind is list:
        texts = value
    if not all(isinstance(text, str) for text in texts):
        raise RecordError(f"{name} holds something that is not a text")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise RecordError(f"{name} holds half a character") from error
    if name in ("rootfs", "user", "runtime", "boot_id") and "\0" in value:
        raise RecordError(f"{name} has a NUL in it")
    if name == "rootfs" and value and not value.startswith("/"):
        raise RecordError("rootfs is no absolute path")


def _in_pieces(value: list[Any] | dict[str, Any], dumps: Callable[[Any], str]) -> str:
    if isinstance(value, list):
        pieces = [dumps(value[start : start + PIECE])[1:-1] for start in range(0, len(value), PIECE)]
        return f"[{', '.join(pieces)}]"
    items = list(value.items())
    pieces = [dumps(dict(items[start : start + PIECE]))[1:-1] for start in range(0, len(items), PIECE)]
    return f"{{{', '.join(pieces)}}}"

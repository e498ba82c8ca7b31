"""A container as it is kept on disk: one JSON object, the same fields in memory.

`state` is what was true when it was written; after a restart the runtime says what
is true now (service.py).
"""

from __future__ import annotations

from arcbox_agent.agent.containers.ids import is_id

TYPE_CHECKING = False
if TYPE_CHECKING:
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

    def encode(self) -> bytes:
        import json  # a millisecond that an agent without containers need not pay for at its start

        fields = {name: getattr(self, name) for name in ("id", *FIELDS)}
        return json.dumps({"format": FORMAT, **fields}, indent=1).encode("ascii") + b"\n"

    @classmethod
    def decode(cls, octets: bytes, id: str) -> Record:
        """The record of container `id`; RecordError where it is not one."""
        import json

        try:
            values = json.loads(octets)
        except (ValueError, RecursionError) as error:
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
        for name, (kind, _) in FIELDS.items():
            if name in values and type(values[name]) is not kind:
                raise RecordError(f"{name} is not of type {kind.__name__}")
        # A field that a later agent added may be ignored: `format` would tell if not.
        known = {name: value for name, value in values.items() if name in FIELDS}
        if known.get("state") not in STATES:
            raise RecordError(f"unknown state {known.get('state')!r}")
        texts = [*known.get("command", []), *known.get("warnings", [])]
        texts += [*known.get("env", {}), *known.get("env", {}).values()]
        if not all(isinstance(text, str) for text in texts) or not known.get("command"):
            raise RecordError("a text is missing or not one")
        for mount in known.get("mounts", []):
            if not isinstance(mount, list) or [type(part) for part in mount] != [str, str, str, bool]:
                raise RecordError("a mount is not one")
        return cls(id, **known)

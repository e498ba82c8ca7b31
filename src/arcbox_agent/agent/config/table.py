"""The agent's settings: one table, from which everything else about them is derived.

The class Settings is the table.  A line gives a setting's name, parser, default and
explanation.  Derived from it are the command line (`--state-dir`) and the keys of the TOML
file (`state_dir`), both in invocation.py, `--help` and `--check-config`, both in text.py, and
the table in docs/configuration.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from arcbox_agent.address import MAX_UNIX_PATH, UnixAddress, parse_listen
from arcbox_agent.agent.config.access import MODES
from arcbox_agent.errors import AddressError, ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The keepers' sockets in the run directory, by what they can be asked: a former one was no parent.
KEEPER_SOCKET, FORMER_KEEPER_SOCKET = "keeper-2.sock", "keeper.sock"

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# ---------------------------------------------------------- parsers of a value
#
# Each takes a value of TOML (str, int, float, bool) or a str of the command line,
# and raises ValueError with the reason.


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a string")
    if "\0" in value:
        raise ValueError("it holds a NUL character")
    return value


def _path(value: object) -> str:
    text = _text(value)
    if not text:
        raise ValueError("the path is empty")
    return os.path.abspath(text)


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "yes", "on", "1"):
        return True
    if isinstance(value, str) and value.lower() in ("false", "no", "off", "0"):
        return False
    raise ValueError(f"{value!r} is neither true nor false")


_SUFFIXES = {"": 1, "b": 1, "k": KIB, "kib": KIB, "m": MIB, "mib": MIB, "g": GIB, "gib": GIB}
_SUFFIXES |= {"kb": 1000, "mb": 1000**2, "gb": 1000**3}


def _size(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = _text(value).strip()
    digits = text.rstrip("bBkKmMgGiI ")
    scale = _SUFFIXES.get(text[len(digits) :].strip().lower())
    if scale is None or not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise ValueError(f"{text!r} is not a size: write a number of bytes, or 64KiB, 16MiB, 1GiB")
    return int(digits) * scale


def _integer(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = _text(value).strip()
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def _seconds(value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # an integer of TOML may have any length
            number = float("inf")
    else:
        text = _text(value).strip()
        digits = text.removesuffix("s")
        if not (digits.isascii() and digits.replace(".", "", 1).isdigit() and len(digits) < 20):
            raise ValueError(f"{text!r} is not a number of seconds")
        number = float(digits)
    if not number < float("inf"):  # nan too
        raise ValueError(f"{value!r} is not a number of seconds")
    return number


def _listen(value: object) -> str:
    text = _text(value)
    try:
        mode = parse_listen_or_activated(text)[1]
    except AddressError as error:
        raise ValueError(str(error)) from error
    if mode not in MODES:
        raise ValueError(f"{text!r}: unknown mode {mode!r}: write one of {', '.join(MODES)}")
    return text


def _unix(value: object) -> str:
    text = _text(value)
    if not text:
        return text
    try:
        unix_address(text)
    except AddressError as error:
        raise ValueError(str(error)) from error
    if "?" in text:
        raise ValueError(f"{text!r}: no mode can be given here")
    return text


def _choice(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        text = _text(value)
        if text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return parse


def parse_listen_or_activated(text: str) -> tuple[str, str]:
    """A listen address, `systemd:[NAME]` included, as (address without its mode, mode)."""
    if text.startswith("systemd:"):
        where, question_mark, options = text.partition("?")
        if question_mark and not options.startswith("mode="):
            raise AddressError(text, f"unknown options {options!r}: only mode=NAME can follow the ?")
        return where, options.removeprefix("mode=") or "full"
    address = parse_listen(text)
    mode, address.mode = address.mode or "full", ""
    return str(address), mode


def unix_address(text: str) -> UnixAddress:
    """The address in a setting that takes `unix:/path` only."""
    address = parse_listen(text).address
    if not isinstance(address, UnixAddress):
        raise AddressError(text, "write unix:/path")
    return address


# ------------------------------------------------------------------ the table


class Setting:
    """One line of the table."""

    __slots__ = ("default", "help", "high", "low", "many", "metavar", "name", "parse")

    def __init__(
        self,
        metavar: str,
        parse: Callable[[object], Any],
        default: Any,
        help: str,
        low: float | None,
        high: float | None,
    ) -> None:
        self.name = ""
        self.metavar, self.parse, self.default, self.help = metavar, parse, default, help
        self.low, self.high = low, high
        self.many = isinstance(default, list)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        TABLE[name] = self

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def is_flag(self) -> bool:
        return isinstance(self.default, bool)

    def read(self, value: object) -> Any:
        """The value of one occurrence, checked."""
        try:
            parsed = self.parse(value)
            if self.low is not None and parsed < self.low:
                raise ValueError(f"{value!r} is below the minimum of {self.low:g}")
            if self.high is not None and parsed > self.high:
                raise ValueError(f"{value!r} is above the maximum of {self.high:g}")
            return parsed
        except ValueError as error:
            raise ConfigError(self.name, str(error)) from error

    def read_all(self, value: object) -> Any:
        """The value as a TOML file gives it: a list where the setting takes several."""
        if not self.many:
            return self.read(value)
        return [self.read(item) for item in (value if isinstance(value, list) else [value])]

    def shown_default(self) -> str:
        """The default, as a user writes it."""
        default = self.default
        if isinstance(default, bool):
            return "true" if default else "false"
        if isinstance(default, list):
            return ", ".join(map(str, default)) or "none"
        if self.metavar == "SIZE":
            return show_size(default)
        if isinstance(default, float):
            return f"{default:g}"
        return str(default) or "none"


def show_size(size: int) -> str:
    for suffix, scale in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size and size % scale == 0:
            return f"{size // scale}{suffix}"
    return str(size)


TABLE: dict[str, Setting] = {}


def setting(
    metavar: str,
    parse: Callable[[object], Any],
    default: Any,
    help: str,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    # Any, because an instance holds the value under the name that holds the line here.
    return Setting(metavar, parse, default, help, low, high)


class Settings:
    """The settings of one agent: an attribute for each line of the table.

    `given`: the names of those that the command line or the file set.  The others have their default.
    """

    # Addresses, and the peers that may connect.
    listen: list[str] = setting(
        "ADDRESS",
        _listen,
        ["vsock:1024"],
        "Where to listen: vsock:PORT, unix:/path or systemd:[NAME] (sockets that systemd opened),"
        " each with an optional ?mode=full, ?mode=no-exec or ?mode=read-only. May be given "
        "several times.",
    )
    allow_cid: list[int] = setting(
        "CID",
        _integer,
        [],
        "A vsock cid that may connect besides 2, the host. May be given several times.",
        low=0,
        high=0xFFFFFFFE,
    )
    allow_uid: list[int] = setting(
        "UID",
        _integer,
        [],
        "A uid that may connect to a unix socket besides root and the agent's own. May be given several times.",
        low=0,
        high=0xFFFFFFFE,
    )
    metrics_listen: str = setting(
        "ADDRESS",
        _unix,
        "",
        "Where to serve metrics for Prometheus: unix:/path.",
    )

    # Directories.
    state_dir: str = setting(
        "DIR",
        _path,
        "/var/lib/arcbox-agent",
        "Containers, their exit codes and their logs. Kept across restarts.",
    )
    run_dir: str = setting(
        "DIR",
        _path,
        "/run/arcbox-agent",
        "Files of this boot only: FIFOs, pid files. Best on a tmpfs.",
    )

    # Its own log.
    log_level: str = setting(
        "LEVEL",
        _choice("debug", "info", "warning", "error"),
        "info",
        "The least important lines of the agent's own log, on stderr: debug, info, warning or error.",
    )

    # The stop.
    containers_at_exit: str = setting(
        "WHAT",
        _choice("leave", "stop"),
        "leave",
        "What happens to running containers when the agent ends: leave or stop. A shutdown of the"
        " machine always stops them.",
    )
    shutdown_timeout: float = setting(
        "SECONDS",
        _seconds,
        10.0,
        "How long running calls may take to finish when the agent is told to stop.",
        low=0,
        high=3600,
    )
    stop_timeout: float = setting(
        "SECONDS",
        _seconds,
        10.0,
        "The time between SIGTERM and SIGKILL when the agent itself stops containers: at its own end "
        "and at the end of the machine. A stop by the host has its own timeout.",
        low=0,
        high=3600,
    )

    # Bounds on peers.
    max_frame_size: int = setting(
        "SIZE",
        _size,
        16 * MIB,
        "The longest frame that is accepted.",
        low=1024,
        high=GIB,
    )
    max_connections: int = setting(
        "N",
        _integer,
        4096,
        "The most connections at one time.",
        low=1,
        high=1_000_000,
    )
    max_pipelined: int = setting(
        "N",
        _integer,
        1024,
        "The most requests of one connection that may wait for their turn; then it is not read "
        "until some are answered.",
        low=1,
        high=1_000_000,
    )
    max_queued_bytes: int = setting(
        "SIZE",
        _size,
        4 * MIB,
        "The most bytes of requests that may wait on one connection; then it is not read until some are answered.",
        low=4096,
        high=GIB,
    )
    max_queued_total: int = setting(
        "SIZE",
        _size,
        64 * MIB,
        "The most bytes of requests and replies in flight on all connections together, with what "
        "is collected for replies; the connection that holds most is closed when more is needed.",
        low=64 * KIB,
        high=64 * GIB,
    )
    frame_timeout: float = setting(
        "SECONDS",
        _seconds,
        30.0,
        "How long a frame may take from its first byte to its last. 0: no limit.",
        low=0,
        high=86400,
    )
    idle_timeout: float = setting(
        "SECONDS",
        _seconds,
        0.0,
        "A connection without a request for this long is closed. 0: never.",
        low=0,
        high=31 * 86400,
    )

    # Containers and commands.
    max_containers: int = setting(
        "N",
        _integer,
        4096,
        "The most containers, stopped ones included.",
        low=1,
        high=1_000_000,
    )
    max_execs: int = setting(
        "N",
        _integer,
        256,
        "The most commands running at one time, detached ones included.",
        low=1,
        high=100_000,
    )
    max_executions: int = setting(
        "N",
        _integer,
        4096,
        "The most executions that are kept, ended ones included; the one that ended first makes room.",
        low=1,
        high=1_000_000,
    )
    execution_spool_size: int = setting(
        "SIZE",
        _size,
        16 * MIB,
        "The most bytes of each output of an execution that are kept on disk; the oldest go first.",
        low=256 * KIB,
        high=64 * GIB,
    )
    execution_spool_total: int = setting(
        "SIZE",
        _size,
        GIB,
        "The most bytes of output that ended executions keep; those that ended first are removed for it.",
        low=MIB,
        high=1024 * GIB,
    )
    execution_keep: float = setting(
        "SECONDS",
        _seconds,
        3600.0,
        "How long an execution is kept after its end.",
        low=0,
        high=31 * 86400,
    )
    execution_wait: float = setting(
        "SECONDS",
        _seconds,
        60.0,
        "How long an execution that is to lose nothing waits, with a full spool, for a reader that has gone.",
        low=0,
        high=86400,
    )
    max_forwards: int = setting(
        "N",
        _integer,
        1024,
        "The most forwarded connections at one time, their listeners in the guest included.",
        low=1,
        high=100_000,
    )
    exec_output_limit: int = setting(
        "SIZE",
        _size,
        8 * MIB,
        "The most output of a command whose reply is one message; over it the command is killed "
        "and the call fails. A stream has no such limit.",
        low=0,
        high=GIB,
    )
    late_output: float = setting(
        "SECONDS",
        _seconds,
        2.0,
        "How long the agent waits, after a command or a container has ended, for output that a helper of "
        "its own (a `tee`, a filter) still passes on: of silence, and five times that in all.",
        low=0,
        high=600,
    )
    refuse_images: bool = setting(
        "",
        _flag,
        False,
        "Refuse to create a container with an image instead of warning that the plain-process "
        "runtime runs it in the guest's own filesystem.",
    )

    # Logs of containers.
    log_max_size: int = setting(
        "SIZE",
        _size,
        20 * MIB,
        "A container's log is rotated before it grows beyond this size.",
        low=4096,
        high=64 * GIB,
    )
    log_max_files: int = setting(
        "N",
        _integer,
        5,
        "How many rotated files of a container's log are kept besides the current one.",
        low=1,
        high=1000,
    )

    # The guest.
    set_clock: bool = setting(
        "",
        _flag,
        True,
        "Set the guest's clock when a ping carries the host's time and the two differ widely.",
    )
    oom_score_adj: int = setting(
        "N",
        _integer,
        -900,
        "The agent's own oom_score_adj, where it may set it. Containers and commands start at 0.",
        low=-1000,
        high=1000,
    )
    init: bool = setting(
        "",
        _flag,
        False,
        "Be the guest's PID 1: mount what is missing, reap orphans, power off. On by itself where the agent is PID 1.",
    )

    def __init__(self, **values: Any) -> None:
        for name, line in TABLE.items():
            default = line.default
            setattr(self, name, list(default) if isinstance(default, list) else default)
        self.given: frozenset[str] = frozenset(values)
        for name, value in values.items():
            if name not in TABLE:
                raise ConfigError(name, "no such setting")
            setattr(self, name, value)
        self._check_together()

    def _check_together(self) -> None:
        if not self.listen:
            raise ConfigError("listen", "names no address: nobody could reach the agent")
        if self.max_queued_total < self.max_frame_size:
            raise ConfigError(
                "max_queued_total",
                f"{show_size(self.max_queued_total)} is below max_frame_size, "
                f"{show_size(self.max_frame_size)}: no such frame could ever arrive",
            )
        if self.state_dir == self.run_dir:
            raise ConfigError("run_dir", f"{self.run_dir} is the state_dir too: they must differ")
        longest = MAX_UNIX_PATH - 1 - len(KEEPER_SOCKET)
        if len(os.fsencode(self.run_dir)) > longest:
            raise ConfigError(
                "run_dir",
                f"{self.run_dir} is longer than {longest} bytes: the kernel takes no socket in it; "
                "name a shorter directory (--run-dir DIR)",
            )

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={getattr(self, name)!r}' for name in TABLE)})"

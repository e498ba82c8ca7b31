"""The command line, and the file of settings that it names.

It is parsed by hand: argparse would add a sixth to the agent's start-up time.
"""

from __future__ import annotations

from arcbox_agent.agent.config.table import TABLE, Settings
from arcbox_agent.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


class Invocation:
    """What the command line asks for: `action` is `run`, `check`, `help` or `version`."""

    __slots__ = ("action", "settings")

    def __init__(self, action: str, settings: Settings) -> None:
        self.action, self.settings = action, settings


def load(arguments: Sequence[str]) -> Invocation:
    """The settings of the command line and of the file that it names.  The command line wins."""
    action = "run"
    config = ""
    values: dict[str, Any] = {}
    rest = list(arguments)
    rest.reverse()
    while rest:
        argument = rest.pop()
        option, equals, inline = argument.partition("=")
        if option in ("--help", "-h", "--version", "-V", "--check-config"):
            if equals:
                raise ConfigError("", f"{option} takes no value")
            # The first of --help and --version wins.  Both win over --check-config.
            if action in ("run", "check"):
                action = {"--help": "help", "-h": "help", "--check-config": "check"}.get(option, "version")
            continue
        name = option[2:].replace("-", "_") if option.startswith("--") else ""
        negated = name.startswith("no_") and name not in TABLE
        line = TABLE.get(name.removeprefix("no_") if negated else name)
        if name == "config":
            config = inline if equals else _following(rest, option)
            if not config:
                raise ConfigError("config", "the path is empty")
            continue
        if line is None or (negated and not line.is_flag):
            raise ConfigError("", f"unknown argument {argument!r}: see --help")
        if line.is_flag:
            if negated and equals:
                raise ConfigError("", f"{option} takes no value")
            values[line.name] = line.read(inline) if equals else not negated
        else:
            value = line.read(inline if equals else _following(rest, option))
            if line.many:
                values.setdefault(line.name, []).append(value)
            else:
                values[line.name] = value
    if action in ("help", "version"):
        return Invocation(action, Settings())
    if config:
        values = {**_read_file(config), **values}
    return Invocation(action, Settings(**values))


def _following(rest: list[str], option: str) -> str:
    if not rest:
        raise ConfigError("", f"{option} needs a value")
    return rest.pop()


def _read_file(path: str) -> dict[str, Any]:
    import tomllib  # 4 ms, spent only where there is a file

    try:
        with open(path, "rb") as file:
            keys = tomllib.load(file)
    except OSError as error:
        raise ConfigError("config", f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, a number too long, nested too deep
        raise ConfigError("config", f"{path} is not TOML: {error}") from error
    values: dict[str, Any] = {}
    for key, value in keys.items():
        if key not in TABLE:
            raise ConfigError(key, f"no such setting (in {path})")
        try:
            values[key] = TABLE[key].read_all(value)
        except ConfigError as error:
            raise ConfigError(key, f"{str(error).partition(': ')[2]} (in {path})") from error
    return values

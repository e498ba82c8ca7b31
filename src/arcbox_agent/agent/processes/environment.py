"""A program's environment: the variables of the request, PATH and HOME, and none of the agent's own."""

from __future__ import annotations

from arcbox_agent.errors import BadRequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: The most directories of a PATH that are searched.
MAX_PATH = 256

#: The most arguments of a command, and the most variables of its environment.  _spawn.pyx has the same bound.
MAX_STRINGS = 65536
#: PATH and HOME, which every environment has.
_ALWAYS_THERE = 2


def check_env(env: Mapping[str, str]) -> None:
    if len(env) > MAX_STRINGS - _ALWAYS_THERE:
        raise BadRequestError(
            f"{len(env)} environment variables, PATH and HOME are more than the {MAX_STRINGS} allowed"
        )
    for key, value in env.items():
        if not key or "=" in key or "\0" in key:
            raise BadRequestError(f"invalid environment variable name {key!r}")
        if "\0" in value:
            raise BadRequestError(f"the environment variable {key!r} has a NUL in its value")


def check_command(argv: Sequence[str], what: str = "command") -> None:
    if not argv or not argv[0]:
        raise BadRequestError(f"empty {what}")
    if len(argv) > MAX_STRINGS:
        raise BadRequestError(f"{len(argv)} arguments of a {what} are more than the {MAX_STRINGS} allowed")
    if any("\0" in argument for argument in argv):
        raise BadRequestError(f"the {what} has a NUL in it")


def check_working_dir(path: str) -> None:
    if path and not path.startswith("/"):
        raise BadRequestError(f"the working directory must be an absolute path, not {path!r}")
    if "\0" in path:
        raise BadRequestError("the working directory has a NUL in it")


def environment(env: Mapping[str, str], home: str) -> dict[str, str]:
    """`env`, with a default for PATH and HOME."""
    return {"PATH": DEFAULT_PATH, "HOME": home, **env}


def strings(env: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in env.items()]


def programs(name: str, env: Mapping[str, str]) -> list[str]:
    """The paths to try for a program, in order, as execvp(3) finds them in the PATH of `env`."""
    if "/" in name:
        return [name]
    directories = env.get("PATH", DEFAULT_PATH).split(":")[:MAX_PATH]
    return [f"{directory or '.'}/{name}" for directory in directories]

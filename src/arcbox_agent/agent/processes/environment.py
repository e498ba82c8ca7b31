"""A program's environment: the variables of the request, PATH, HOME and TERM, and none of the agent's own."""

from __future__ import annotations

from arcbox_agent.errors import BadRequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Of a program with a terminal: without one, top, less and editors refuse to start.
DEFAULT_TERM = "xterm"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: The most directories of a PATH that are searched.
MAX_PATH = 256

#: The most arguments of a command, and the most variables of its environment.  _spawn.pyx has the same bound.
MAX_STRINGS = 65536
#: PATH and HOME, which every environment has, and TERM, which one with a terminal has.
_ALWAYS_THERE = 3


def check(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Whether a program can be asked for like this.  BadRequestError: it cannot."""
    if not argv or not argv[0]:
        raise BadRequestError("empty command")
    if len(argv) > MAX_STRINGS:
        raise BadRequestError(f"{len(argv)} arguments of a command are more than the {MAX_STRINGS} allowed")
    if any("\0" in argument for argument in argv):
        raise BadRequestError("the command has a NUL in it")
    if len(env) > MAX_STRINGS - _ALWAYS_THERE:
        raise BadRequestError(
            f"{len(env)} environment variables, PATH, HOME and TERM are more than the {MAX_STRINGS} allowed"
        )
    for key, value in env.items():
        if not key or "=" in key or "\0" in key:
            raise BadRequestError(f"invalid environment variable name {key!r}")
        if "\0" in value:
            raise BadRequestError(f"the environment variable {key!r} has a NUL in its value")


def check_working_dir(cwd: str) -> None:
    """Whether a program can run there.  BadRequestError: it cannot."""
    if cwd and not cwd.startswith("/"):
        raise BadRequestError(f"the working directory must be an absolute path, not {cwd!r}")
    if "\0" in cwd:
        raise BadRequestError("the working directory has a NUL in it")


def complete(name: str, env: Mapping[str, str], home: str, *, terminal: bool = False) -> tuple[list[str], list[str]]:
    """The paths to try for the program `name`, in order, and its environment as KEY=VALUE.

    The environment is `env`, with a default for PATH and HOME, and for TERM with a terminal.  The paths are those that
    execvp(3) finds in its PATH.
    """
    whole = {"PATH": DEFAULT_PATH, "HOME": home, **({"TERM": DEFAULT_TERM} if terminal else {}), **env}
    if "/" in name:
        programs = [name]
    else:
        programs = [f"{directory or '.'}/{name}" for directory in whole["PATH"].split(":")[:MAX_PATH]]
    return programs, [f"{key}={value}" for key, value in whole.items()]

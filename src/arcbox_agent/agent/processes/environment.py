"""What a client may ask for: a command, its environment, and where it runs."""

from __future__ import annotations

from arcbox_agent.errors import BadRequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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

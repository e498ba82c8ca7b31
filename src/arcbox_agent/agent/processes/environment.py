"""What a client may ask for: a command, its environment, and where it runs."""

from __future__ import annotations

from arcbox_agent.errors import BadRequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Characters of a path: PATH_MAX.
MAX_PATH_LENGTH = 4096

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
    # Joined first: a look at each of 65,536 texts would hold up the event loop.
    if "\0" in "".join(argv):
        raise BadRequestError("the command has a NUL in it")
    if len(env) > MAX_STRINGS - _ALWAYS_THERE:
        raise BadRequestError(
            f"{len(env)} environment variables, PATH, HOME and TERM are more than the {MAX_STRINGS} allowed"
        )
    names = "".join(env)
    if "" in env or "=" in names or "\0" in names:
        wrong = next(name for name in env if not name or "=" in name or "\0" in name)
        raise BadRequestError(f"invalid environment variable name {wrong!r}")
    if "\0" in "".join(env.values()):
        wrong = next(name for name, value in env.items() if "\0" in value)
        raise BadRequestError(f"the environment variable {wrong!r} has a NUL in its value")


def check_working_dir(cwd: str) -> None:
    """Whether a program can run there.  BadRequestError: it cannot."""
    if cwd and not cwd.startswith("/"):
        raise BadRequestError(f"the working directory must be an absolute path, not {cwd!r}")
    if "\0" in cwd:
        raise BadRequestError("the working directory has a NUL in it")
    if len(cwd) > MAX_PATH_LENGTH:
        raise BadRequestError(f"the working directory is longer than {MAX_PATH_LENGTH} characters")

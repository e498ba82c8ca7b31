"""Error messages, and the exit codes that go with them."""

from __future__ import annotations

import json
import os
import re
import sys

import click

from arcbox_agent.cli.printable import printable
from arcbox_agent.errors import AddressError, ArcboxError, ConnectError, EncodeError, RequestError

#: arcboxctl or the agent failed, as opposed to the command; docker's code for the same.
OWN_FAILURE = 125
NOT_EXECUTABLE = 126
NOT_FOUND = 127

#: The agent's message for a command that could not be executed.  If something else was at
#: fault, as its working directory, that is named first.
_OS_ERROR = re.compile(r"^(?:exec failed: [^:]*|failed to start: .*)\(os error (\d+)\)", re.DOTALL)


class ForwardedError(click.ClickException):
    """An error of arcboxctl itself, in one line."""


def exit_code(error: BaseException) -> int:
    """The exit code for an error: 126 or 127 if it says that a command could not be executed, else 125."""
    found = _OS_ERROR.search(str(error)) if isinstance(error, RequestError) else None
    # ENOENT and ENOTDIR, then ENOEXEC and EACCES, by their numbers in the guest, which is Linux.
    if found and found[1] in ("2", "20"):
        return NOT_FOUND
    if found and found[1] in ("8", "13"):
        return NOT_EXECUTABLE
    return OWN_FAILURE


def text(error: BaseException) -> str:
    if isinstance(error, ConnectError):
        hint = "--host or ARCBOX_HOST names another address; --wait 30 waits for a guest that boots."
        return f"{printable(str(error))}\n{hint}"
    if isinstance(error, EncodeError):
        return f"cannot be sent to the agent: {error}"
    if isinstance(error, AddressError):
        return f"not an agent's address: {printable(str(error))}"
    if isinstance(error, OSError) and error.strerror is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename is not None else error.strerror
    return printable(str(error)) or type(error).__name__


def as_object(error: BaseException) -> dict[str, object]:
    """The error of one container or of the whole command, for --json."""
    code = error.code if isinstance(error, RequestError) else None
    return {"error": {"type": type(error).__name__, "code": code, "message": str(error)}}


def report(error: Exception, as_json: bool) -> int:
    """Print an error that ended the whole command, and return its exit code.

    An error that is neither ours nor the system's is a bug: it is raised again, for Python's traceback.
    """
    if not isinstance(error, (ArcboxError, OSError)):
        raise error
    if as_json:
        print(json.dumps(as_object(error)), file=sys.stderr)
    else:
        print(f"arcboxctl: {text(error)}", file=sys.stderr)
    return exit_code(error)


def report_click(error: click.ClickException, as_json: bool) -> None:
    """Print what arcboxctl itself refuses: arguments, or what they ask for."""
    message = error.format_message()
    if as_json:
        print(json.dumps({"error": {"type": type(error).__name__, "code": None, "message": message}}), file=sys.stderr)
        return
    print(f"arcboxctl: {message}", file=sys.stderr)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        print(error.ctx.get_usage(), file=sys.stderr)
        print(f"Try '{error.ctx.command_path} --help' for help.", file=sys.stderr)

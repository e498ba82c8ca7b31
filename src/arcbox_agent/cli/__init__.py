"""`arcboxctl`, the command line of the host.

    main          the group of commands, and how every error ends
    invocation    the global options; a call of the agent from start to end
    system, containers, run, exec, executions, rsh, logs, completion      the commands
    session       a command in the guest with our standard streams, or our terminal
    input_stream, terminal, create_options, times, tables, output_stream, output, signals, failures,
    printable     what they share

Imports go down this list.  A command's module is imported when the command is used, because
a person waits for every import.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """The entry point of the console script."""
    try:
        _standard_streams()
        try:
            import click  # noqa: F401
        except ImportError:
            print("arcboxctl needs click: pip install 'arcbox-agent[cli]'", file=sys.stderr)
            sys.exit(1)
        from arcbox_agent.cli.main import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        # Ctrl-C before a command has set its handlers, while modules are being imported.
        code = 130
    sys.exit(code)


def _standard_streams() -> None:
    """Open those of the standard streams that are closed, whatever we were started with."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # Closed (`<&-`, `>&-`): the next socket would get this number, and our output.
            mode = os.O_RDONLY if number == 0 else os.O_WRONLY
            opened = os.open(os.devnull, mode)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))
    # A character that the terminal's encoding lacks is shown as `?`.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]

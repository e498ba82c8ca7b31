"""`arcboxctl`, the command line of the host.

    main          the group of commands, and how every error ends
    session       what the global options said; one call of the agent from start to end
    system, containers, run, exec, logs, completion      the commands
    create_options, times, tables, output, signals, failures      what they share

Imports go down that list, and a command's module is imported only when the command
is used: a person waits for every import.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point of the console script."""
    try:
        try:
            import click  # noqa: F401
        except ImportError:
            print("arcboxctl needs click: pip install 'arcbox-agent[cli]'", file=sys.stderr)
            sys.exit(1)
        from arcbox_agent.cli.main import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        # Before a command has its own handlers: while modules are being imported.
        code = 130
    sys.exit(code)

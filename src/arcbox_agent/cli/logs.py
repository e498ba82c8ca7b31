"""logs: what a container has written, from the agent or from a file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from arcbox_agent.cli.completion import container_names
from arcbox_agent.cli.output import STDERR, STDOUT, Output, payload
from arcbox_agent.cli.session import Session, json_option, pass_session
from arcbox_agent.cli.times import NANOSECONDS, parse_moment, rfc3339

if TYPE_CHECKING:
    from decimal import Decimal

    from arcbox_agent.cli.signals import Signals
    from arcbox_agent.client import Client
    from arcbox_agent.wire import LogEntry


def raw(entry: LogEntry) -> bytes:
    """What the container wrote: an entry that is `partial` had no newline."""
    return entry.data if entry.partial else entry.data + b"\n"

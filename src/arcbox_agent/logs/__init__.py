"""Reads container logs, with or without an agent.

    from arcbox_agent.logs import read_log

    for entry in read_log("/var/lib/arcbox-agent/logs/web.log", tail=100):
        print(entry.stream, entry.data)

CRI logs, those of agents of 0.0.1-alpha.1, Docker's json-file and plain text
are told apart on sight, line by line.
"""

from __future__ import annotations

from arcbox_agent._lines import format_time, parse_time
from arcbox_agent._log_output import Entry, Gap
from arcbox_agent.logs.reader import LogReader, Options, read_log

__all__ = ["Entry", "Gap", "LogReader", "Options", "format_time", "parse_time", "read_log"]

"""The call that reads a container's log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arcbox_agent.client import calls
from arcbox_agent.client.caller import Caller
from arcbox_agent.client.keywords import expands
from arcbox_agent.client.stream import LogStream, ReplyStream

if TYPE_CHECKING:
    from typing import Unpack

    from arcbox_agent.client.keywords import LogsOptions
    from arcbox_agent.wire import LogEntry


class LogCalls(Caller):
    @expands(calls.logs_request)
    def logs(self, container: str, **options: Unpack[LogsOptions]) -> ReplyStream[LogEntry]:
        """Iterate over a container's log, the oldest line first; times are Unix nanoseconds.

        `follow`: go on until the container ends.  `tail`: only so many lines from the end;
        0: all.  `since`, `until`: only the lines between these times.  `stdout`, `stderr`:
        only that stream; with neither or both, both.  `timestamps`: each line's data begins
        with its time.  `after`: only what comes behind the entry with this `cursor`.
        `only_new`: only what comes behind the present end.  `attach`, with `follow`: the
        container waits rather than lose a line that was not read.  The first entry, which
        is empty, says that it holds, so that the container can be started; the follow ends
        with this run of it.

        An entry with a `gap` tells that output is lost in its place; it has no data.  In a
        follow a line that has not ended comes at once, as an entry with `partial`.
        """
        request = calls.logs_request(container, **options)
        # A container that is followed may be silent for ever; reading a file may not.
        silence = None if request.follow else self._timeout
        return self._stream(
            request,
            calls.Replies("logs", calls.read_log_entry),
            first_timeout=silence,
            next_timeout=silence,
            kind=ReplyStream if request.follow else LogStream,
        )

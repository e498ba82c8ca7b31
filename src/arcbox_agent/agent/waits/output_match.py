"""Until a line of an execution's output matches, or until it has ended."""

from __future__ import annotations

import asyncio
import os

from arcbox_agent.agent.waits.log_match import LONGEST
from arcbox_agent.agent.waits.pattern import GivenUp
from arcbox_agent.errors import NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.executions.execution import Execution
    from arcbox_agent.agent.executions.executions import Executions
    from arcbox_agent.agent.waits.pattern import Pattern

#: Bytes of one read.
PIECE = 256 << 10


class Reader:
    """One output, from the first byte that is kept: its lines, as they come to an end."""

    __slots__ = ("_line", "_path", "cursor", "name")

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self.cursor = 0
        self._path = path
        self._line = b""  # one that has no end yet

    def first_match(self, begin: int, end: int, over: bool, pattern: Pattern) -> str | None:
        """What of the output from the cursor to `end` matches; `over`: no more comes.  For a thread; OSError."""
        if self.cursor < begin:
            self.cursor, self._line = begin, b""  # what is lost may have been the rest of a line
        with open(self._path, "rb", buffering=0) as file:
            while self.cursor < end:
                octets = os.pread(file.fileno(), min(PIECE, end - self.cursor), self.cursor)
                if not octets:
                    break
                self.cursor += len(octets)
                *lines, self._line = (self._line + octets).split(b"\n")
                if len(self._line) > LONGEST:
                    lines.append(self._line)
                    self._line = b""
                for line in lines:
                    if (found := _matching(line, pattern)) is not None:
                        return found
        return _matching(self._line, pattern) if over and self._line else None


def _matching(line: bytes, pattern: Pattern) -> str | None:
    text = line[:LONGEST].decode("utf-8", "replace").removesuffix("\r")
    return text if pattern.matches(text) else None


async def matching_output(executions: Executions, execution: Execution, pattern: Pattern) -> str | None:
    """The first line of an output that matches; None: its outputs are over, and none did.  NotFoundError, OSError."""
    changed = asyncio.Event()
    key = object()
    execution.watchers[key] = changed.set
    readers = {name: Reader(name, executions.output_path(execution, name)) for name, *_ in execution.outputs()}
    try:
        while True:
            changed.clear()
            left = False
            for name, begin, end, over in execution.outputs():
                reader = readers[name]
                if reader.cursor < end or over:
                    found = await asyncio.to_thread(reader.first_match, begin, end, over, pattern)
                    if found is not None:
                        return found
                left = left or not over
            if execution.gone:
                raise NotFoundError(f"execution {execution.id} was removed")
            if not left:
                return None
            await changed.wait()
    except GivenUp:
        return None
    finally:
        pattern.given_up = True
        execution.watchers.pop(key, None)


async def until_over(execution: Execution) -> None:
    """Until it has ended.  NotFoundError: it was removed."""
    if execution.running:
        await asyncio.shield(execution.ends)
    if execution.gone:
        raise NotFoundError(f"execution {execution.id} was removed")

"""Until a line of an execution's output matches, or until it has ended."""

from __future__ import annotations

import asyncio

from arcbox_agent.agent.waits.log_match import LONGEST
from arcbox_agent.agent.waits.pattern import GivenUp
from arcbox_agent.errors import NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.executions.execution import Execution
    from arcbox_agent.agent.executions.executions import Executions
    from arcbox_agent.agent.waits.pattern import Pattern

#: Bytes of one read.
PIECE = 64 << 10


class Lines:
    """The lines of one output, as they come to an end.  `cursor`: of the next byte."""

    __slots__ = ("_pattern", "_rest", "cursor", "over")

    def __init__(self, pattern: Pattern) -> None:
        self.cursor = 0
        self.over = False
        self._rest = b""  # a line that has no end yet
        self._pattern = pattern

    def pass_over(self, gap: int) -> None:
        """So many bytes are lost: the rest of a line may be among them."""
        self.cursor += gap
        self._rest = b""

    def first_match(self, data: bytes) -> str | None:
        """The first line that matches, of those that end in `data`, the next bytes.  For a thread."""
        self.cursor += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            if (found := self._matching(line)) is not None:
                return found
        return None

    def last_match(self) -> str | None:
        """The line without an end, where no more comes."""
        self.over = True
        return self._matching(self._rest) if self._rest else None

    def _matching(self, line: bytes) -> str | None:
        text = line[:LONGEST].decode("utf-8", "replace").removesuffix("\r")
        return text if self._pattern.matches(text) else None


async def matching_output(executions: Executions, execution: Execution, pattern: Pattern) -> str | None:
    """The first line of an output that matches; None: its outputs are over, and none did.  NotFoundError, OSError."""
    changed = asyncio.Event()
    key = object()
    execution.watchers[key] = changed.set
    reader = executions.reader(execution)
    outputs = {name: Lines(pattern) for name, *_ in execution.outputs()}
    try:
        while True:
            changed.clear()
            moved = False
            for name, lines in outputs.items():
                if lines.over:
                    continue
                gap, data, over = await reader.next(name, lines.cursor, PIECE)
                found = None
                if gap:
                    lines.pass_over(gap)
                elif data:
                    found = await asyncio.to_thread(lines.first_match, data)
                elif over:
                    found = await asyncio.to_thread(lines.last_match)
                if found is not None:
                    return found
                moved = moved or bool(gap or data)
            if all(lines.over for lines in outputs.values()):
                return None
            if not moved:
                await changed.wait()
    except GivenUp:
        return None
    finally:
        pattern.given_up = True
        execution.watchers.pop(key, None)
        reader.close()


async def until_over(execution: Execution) -> None:
    """Until it has ended.  NotFoundError: it was removed."""
    if execution.running:
        await asyncio.shield(execution.ends)
    if execution.gone:
        raise NotFoundError(f"execution {execution.id} was removed")

"""Until a line of a container's log matches: those of its present run, of its last, or of its first."""

from __future__ import annotations

import asyncio

from arcbox_agent.agent.logs.follower import Options
from arcbox_agent.agent.waits.pattern import GivenUp
from arcbox_agent.wire import FrameDecoder, LogEntry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent._log_history import LogHistory
    from arcbox_agent.agent.containers.model import Container
    from arcbox_agent.agent.logs.follower import Followers
    from arcbox_agent.agent.waits.pattern import Pattern

#: The longest piece of a line that is compared; what is longer is compared in such pieces.
LONGEST = 256 << 10


async def matching_line(
    container: Container, followers: Followers, history: LogHistory | None, pattern: Pattern
) -> str | None:
    """The first line that matches; None: the container's output is over, and none did.  OSError."""
    record = container.record
    since = record.started_ns or None
    over = container.output_is_over if record.run else container.next_run_is_over()
    options = Options(since=since, version=1)
    follow = followers.follow(container.log_path, options, over, container.add_output_listener, history)
    decoder = FrameDecoder(version=1)
    try:
        while (frames := await follow.next()) is not None:
            # In a thread: a second's output of a container takes some milliseconds.
            found = await asyncio.to_thread(_first_match, decoder, bytes(frames), pattern)
            if found is not None:
                return found
        return None
    except GivenUp:
        return None
    finally:
        pattern.given_up = True
        container.remove_output_listener(follow.wake)
        follow.close()


def _first_match(decoder: FrameDecoder, frames: bytes, pattern: Pattern) -> str | None:
    decoder.feed(frames)
    while (frame := decoder.next_frame()) is not None:
        for line in LogEntry.decode(frame.payload).data.split(b"\n"):
            text = line[:LONGEST].decode("utf-8", "replace")
            if pattern.matches(text):
                return text
    return None

"""Logs: what a container has written, and what it writes."""

from __future__ import annotations

from arcbox_agent.agent.config.access import Access
from arcbox_agent.agent.logs.follower import Options
from arcbox_agent.errors import AgentFailedError, BadRequestError, ForbiddenError
from arcbox_agent.wire import Empty, LogEntry, LogEntryV2, Timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.config.table import Settings
    from arcbox_agent.agent.containers.model import Container
    from arcbox_agent.agent.containers.output.capture import Capture, Hold
    from arcbox_agent.agent.containers.service import Containers
    from arcbox_agent.agent.logs.follower import Followers
    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.wire import LogsRequest, Message

_SECOND = 1_000_000_000
#: Of a LogEntry and its frame, besides data and trace id.
_OVERHEAD = 64


class Logs:
    """`settings`: max_frame_size bounds a reply that is one message."""

    def __init__(self, containers: Containers, followers: Followers, capture: Capture, settings: Settings) -> None:
        self._capture = capture
        self._containers = containers
        self._followers = followers
        self._settings = settings

    async def read(self, request: LogsRequest, call: Call) -> Message:
        container = self._containers.resolve(request.container_id)
        options = Options.of(request, call.trace_id)
        if request.attach and not request.follow:
            raise BadRequestError("attach needs follow")
        try:
            if not request.follow:
                answer = _stream if request.stream else self._all_in_one
                return await answer(container, options, call)
            # Not a function of its own, and nothing is held that is not needed: a thousand follows
            # are a thousand frames of this one.
            call.open_ended = True
            hold = await self._attach(container, call) if request.attach else None
            follow = self._followers.follow(
                container.log_path,
                options,
                container.next_run_is_over() if request.attach else container.output_is_over,
                container.add_output_listener,
                self._capture.history(container.id),
            )
            del request, options
            try:
                while (frames := await follow.next()) is not None:
                    await call.outbox.send(frames)
                    del frames
                    if hold is not None:
                        hold.come_to(follow.inode)
            finally:
                if hold is not None:
                    hold.release()
                container.remove_output_listener(follow.wake)
                follow.close()
            return Empty()
        except OSError as error:
            raise AgentFailedError(
                f"cannot read the log of container {container.id}: {error.strerror or error}"
            ) from error

    async def _attach(self, container: Container, call: Call) -> Hold:
        """Let the container wait for this call, and tell the client that it does."""
        if not call.allows(Access.CONTROL):
            raise ForbiddenError("this listener does not allow changes: only who may change containers may hold one up")
        hold = self._capture.hold(container.id)
        try:
            message = LogEntry if call.version == 1 else LogEntryV2
            await call.send(message(stream="stdout", partial=True))
        except BaseException:
            hold.release()
            raise
        return hold

    async def _all_in_one(self, container: Container, options: Options, call: Call) -> Message:
        """One entry with all lines, as 0.0.1-alpha.1 answers."""
        limit = self._settings.max_frame_size - _OVERHEAD - len(options.trace)
        text = bytearray()
        # However many ask: to collect for all at once would only have them closed for it (max_queued_total).
        async with self._followers.whole_reads:
            reader = options.reader(container.log_path, output="text", unended=container.output_is_over())
            try:
                while (piece := await reader.next()) is not None:
                    text += piece
                    if len(text) > limit + 1:
                        raise BadRequestError(
                            f"the log is larger than one reply can hold ({self._settings.max_frame_size} bytes): "
                            "ask for a tail, or for a stream of entries (stream, follow)"
                        )
                    call.charge(len(piece))
            except FileNotFoundError:
                pass
            finally:
                reader.close()
        if text.endswith(b"\n"):
            del text[-1:]
        # The streams are mixed in it, so it can name only one.
        stream = "stdout" if options.stdout else "stderr"
        stamp = reader.engine.last_stamp
        if call.version == 1:
            return LogEntry(stream=stream, data=bytes(text), timestamp=stamp)
        time = Timestamp(seconds=stamp // _SECOND, nanos=stamp % _SECOND)
        return LogEntryV2(stream=stream, data=bytes(text), timestamp=time)


async def _stream(container: Container, options: Options, call: Call) -> Message:
    # While the container runs, a last line without its newline is one in the making.
    reader = options.reader(container.log_path, trace=options.trace, unended=container.output_is_over())
    try:
        while (frames := await reader.next()) is not None:
            await call.outbox.send(frames)
    except FileNotFoundError:
        pass  # nothing has been written yet
    finally:
        reader.close()
    return Empty()

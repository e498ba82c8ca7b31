"""WaitForRequest: until one thing holds, or the time is over."""

from __future__ import annotations

import asyncio

from arcbox_agent.agent.config.access import NEEDS, Access
from arcbox_agent.agent.forwards.dial import Address
from arcbox_agent.agent.forwards.place import check_path, place_of
from arcbox_agent.agent.waits.log_match import matching_line
from arcbox_agent.agent.waits.looks import Told, until_accepts, until_ended, until_file
from arcbox_agent.agent.waits.output_match import matching_output, until_over
from arcbox_agent.agent.waits.pattern import Pattern
from arcbox_agent.errors import AgentFailedError, BadRequestError, BusyError, ForbiddenError
from arcbox_agent.wire import WaitForResponse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable

    from arcbox_agent.agent.containers.output.capture import Capture
    from arcbox_agent.agent.containers.service import Containers
    from arcbox_agent.agent.executions.executions import Executions
    from arcbox_agent.agent.logs.follower import Followers
    from arcbox_agent.agent.processes.lanes import Lanes
    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.wire import WaitForRequest

#: Seconds to wait where the request does not say.
TIMEOUT = 60.0

#: Waits at one time: each looks several times a second.
MOST = 256

#: The most characters of a line that is told.
MOST_TOLD = 4096

#: Those of which exactly one is given.
_THINGS = ("port", "path", "file", "pattern", "execution", "pid")


class Waits:
    """Each wait is one call, and ends with it."""

    def __init__(
        self, containers: Containers, executions: Executions, followers: Followers, capture: Capture, lanes: Lanes
    ) -> None:
        self._containers = containers
        self._executions = executions
        self._followers = followers
        self._capture = capture
        self._lanes = lanes
        self._running = 0

    async def wait(self, request: WaitForRequest, call: Call) -> WaitForResponse:
        call.open_ended = True
        told = Told()
        if self._running >= MOST:
            raise BusyError(f"{MOST} waits are under way already: try again later")
        waiting = self._waiting(request, call, told)
        self._running += 1
        try:
            async with asyncio.timeout(request.timeout_ms / 1000 or TIMEOUT):
                found = await waiting
        except TimeoutError:
            return WaitForResponse(last=_cut(told.last))
        except OSError as error:
            raise AgentFailedError(f"cannot wait for that: {error.strerror or error}") from error
        finally:
            self._running -= 1
        if found is None:
            return WaitForResponse(last=_cut(told.last))
        return WaitForResponse(met=True, found=_cut(found))

    def _waiting(self, request: WaitForRequest, call: Call, told: Told) -> Awaitable[str | None]:
        """What is waited for; its result is the line that matched, or None: it will never hold."""
        given = [name for name in _THINGS if getattr(request, name)]
        if given == ["pattern", "execution"]:
            given = ["execution"]
        if len(given) != 1:
            raise BadRequestError(
                f"give one of {', '.join(_THINGS)}" + (f", not {' and '.join(given)}" if given else "")
            )
        thing = given[0]
        if thing == "execution":
            if request.container_id:
                raise BadRequestError("an execution is named by its id alone, without container_id")
            if request.pattern:
                _check_may_run(call, "the output of executions")
            return self._execution(request.execution, Pattern(request.pattern) if request.pattern else None, told)
        if thing == "pattern":
            if not request.container_id:
                raise BadRequestError("a pattern needs the container whose log is meant")
            return self._log(request.container_id, Pattern(request.pattern), told)
        if thing == "pid":
            if request.container_id or request.pid > 0x7FFFFFFF:
                raise BadRequestError("a pid is that of a process of the guest, without container_id")
            told.last = f"process {request.pid} runs"
            return _nothing(until_ended(request.pid))
        _check_may_run(call, "ports or files")
        place = place_of(self._containers, request.container_id)
        if thing == "file":
            check_path(request.file)
            return _nothing(until_file(self._lanes, place, request.file, request.changes, told))
        address = Address(request.host, request.port, request.path)
        return _nothing(until_accepts(self._lanes, place, address, told))

    async def _execution(self, ref: str, pattern: Pattern | None, told: Told) -> str | None:
        execution = self._executions.resolve(ref)
        if pattern is None:
            told.last = f"execution {execution.id} runs"
            await until_over(execution)
            return ""
        told.last = "no line of its output has matched"
        found = await matching_output(self._executions, execution, pattern)
        if found is None:
            told.last = f"the output of execution {execution.id} is over, and no line of it has matched"
        return found

    async def _log(self, ref: str, pattern: Pattern, told: Told) -> str | None:
        container = self._containers.resolve(ref)
        told.last = "no line of the log has matched"
        history = self._capture.history(container.id)
        found = await matching_line(container, self._followers, history, pattern)
        if found is None:
            told.last = f"container {container.id} has ended, and no line of its log has matched"
        return found


def _check_may_run(call: Call, what: str) -> None:
    """Such a look reaches what a command reaches.  ForbiddenError."""
    if not call.allows(Access.EXEC):
        raise ForbiddenError(f"this listener does not allow {NEEDS[Access.EXEC]}, and so no wait for {what}")


async def _nothing(waiting: Awaitable[None]) -> str:
    """What is found where nothing is told but that it holds."""
    await waiting
    return ""


def _cut(text: str) -> str:
    return text if len(text) <= MOST_TOLD else f"{text[:MOST_TOLD]}..."

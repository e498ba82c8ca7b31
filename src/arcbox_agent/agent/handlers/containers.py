"""Containers: typed request in, typed reply out.

Error texts and codes of the calls that 0.0.1-alpha.1 knows are as its peers know them:
all that start, stop and remove can say is a 500 that begins with `failed to`.
"""

from __future__ import annotations

from arcbox_agent.agent.containers.listing import listing
from arcbox_agent.errors import AgentFailedError, RequestError
from arcbox_agent.wire import CreateContainerResponse, Empty, WaitContainerResponse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.containers.service import Containers
    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.wire import (
        CreateContainerRequest,
        KillContainerRequest,
        ListContainersRequest,
        ListContainersResponse,
        RemoveContainerRequest,
        StartContainerRequest,
        StopContainerRequest,
        WaitContainerRequest,
    )


class Lifecycle:
    """The calls that make, change and look at containers."""

    def __init__(self, containers: Containers, max_frame_size: int) -> None:
        self._containers = containers
        self._max_frame_size = max_frame_size

    async def create(self, request: CreateContainerRequest, call: Call) -> CreateContainerResponse:
        container, warnings = await self._containers.create(request)
        return CreateContainerResponse(id=container.id, warnings=[*warnings] if request.detail else [])

    async def start(self, request: StartContainerRequest, call: Call) -> Empty:
        try:
            await self._containers.start(request.id)
        except RequestError as error:
            raise AgentFailedError(f"failed to start: {error.message}") from error
        return Empty()

    async def stop(self, request: StopContainerRequest, call: Call) -> Empty:
        try:
            await self._containers.stop(request.id, request.timeout, request.own_timeout)
        except RequestError as error:
            raise AgentFailedError(f"failed to stop: {error.message}") from error
        return Empty()

    async def remove(self, request: RemoveContainerRequest, call: Call) -> Empty:
        try:
            await self._containers.remove(request.id, request.force)
        except RequestError as error:
            raise AgentFailedError(f"failed to remove: {error.message}") from error
        return Empty()

    def list(self, request: ListContainersRequest, call: Call) -> ListContainersResponse:
        found = self._containers.list(request.all, request.filter)
        return listing(found, request, self._max_frame_size)

    def kill(self, request: KillContainerRequest, call: Call) -> Empty:
        self._containers.kill(request.id, request.signal)
        return Empty()

    async def wait(self, request: WaitContainerRequest, call: Call) -> WaitContainerResponse:
        call.open_ended = True
        end = await self._containers.wait(request.id, request.condition)
        return WaitContainerResponse(
            status_code=end.code, error=end.error, signal=end.signal, output_cut=end.output_cut
        )

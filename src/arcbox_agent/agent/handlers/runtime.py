"""What runs containers here: EnsureRuntime and RuntimeStatus.

Hosts that know agents of another kind ask for containerd or Docker in the guest.  This
agent has neither and needs neither: it runs containers itself, and is ready as soon as
it answers.
"""

from __future__ import annotations

from arcbox_agent.wire import RuntimeEnsureResponse, RuntimeStatusResponse, ServiceStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.wire import RuntimeEnsureRequest, RuntimeStatusRequest

_DETAIL = "plain processes, started by the agent itself; neither containerd nor Docker is used"


class Runtime:
    """`name`: of the runtime of new containers."""

    def __init__(self, name: str) -> None:
        self._name = name

    def ensure(self, request: RuntimeEnsureRequest, call: Call) -> RuntimeEnsureResponse:
        """There is nothing to start."""
        return RuntimeEnsureResponse(ready=True, message=_DETAIL, status="ready")

    def status(self, request: RuntimeStatusRequest, call: Call) -> RuntimeStatusResponse:
        return RuntimeStatusResponse(
            containerd_ready=False,
            docker_ready=False,
            detail=_DETAIL,
            services=[ServiceStatus(name=self._name, status="running", detail="the agent's own runtime")],
        )

"""Forwards: connections to and from addresses in the guest, each as a stream."""

from __future__ import annotations

import os

from arcbox_agent.agent.forwards.dial import TIMEOUT, Address, dial, name_of
from arcbox_agent.agent.forwards.listening import Listener, open_listener
from arcbox_agent.agent.forwards.place import place_of
from arcbox_agent.agent.forwards.relay import Relay
from arcbox_agent.agent.serving.stream import check_heartbeat
from arcbox_agent.errors import BadRequestError
from arcbox_agent.wire import Connected, Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from arcbox_agent.agent.containers.service import Containers
    from arcbox_agent.agent.forwards.forwards import Forwards as Part
    from arcbox_agent.agent.processes.lanes import Lanes
    from arcbox_agent.agent.serving.call import Call
    from arcbox_agent.wire import AcceptRequest, ConnectRequest, ListenRequest

#: The longest time to connect in, in milliseconds.
MOST_TIMEOUT_MS = 3_600_000


class Forwards:
    """Each of its calls is a stream, and lasts as long as that."""

    def __init__(self, forwards: Part, containers: Containers, lanes: Lanes) -> None:
        self._forwards = forwards
        self._containers = containers
        self._lanes = lanes

    async def connect(self, request: ConnectRequest, call: Call) -> Empty:
        call.open_ended = True
        check_heartbeat(request.heartbeat_ms)
        address = Address(request.host, request.port, request.path)
        place = place_of(self._containers, request.container_id)
        if request.timeout_ms > MOST_TIMEOUT_MS:
            raise BadRequestError(f"timeout_ms is {request.timeout_ms}: give {MOST_TIMEOUT_MS} or less")
        self._forwards.enter()
        try:
            sock = await dial(self._lanes, place, address, request.timeout_ms / 1000 or TIMEOUT)
            relay = _relay(call, sock, request.heartbeat_ms)
            first, window = _connected(sock, str(address)), request.window
            # A thousand idle forwards are a thousand frames of this one.
            del request, address, place, sock
            try:
                await relay.run(first, window)
            finally:
                relay.close()
            return Empty()
        finally:
            self._forwards.leave()

    async def accept(self, request: AcceptRequest, call: Call) -> Empty:
        call.open_ended = True
        check_heartbeat(request.heartbeat_ms)
        self._forwards.enter()
        try:
            sock = self._forwards.take(request.id)
            relay = _relay(call, sock, request.heartbeat_ms)
            try:
                await relay.run(_connected(sock, ""), request.window)
            finally:
                relay.close()
            return Empty()
        finally:
            self._forwards.leave()

    async def listen(self, request: ListenRequest, call: Call) -> Empty:
        call.open_ended = True
        check_heartbeat(request.heartbeat_ms)
        address = Address(request.host, request.port, request.path, any_port=True)
        if request.mode > 0o777:
            raise BadRequestError(f"mode {request.mode:o} is more than permissions: give 0777 or less")
        place = place_of(self._containers, request.container_id)
        self._forwards.enter()
        try:
            sock, file = await open_listener(self._lanes, place, address, request.mode)
            try:
                listener = None
                listener = Listener(call, sock, self._forwards, request.heartbeat_ms)
                await listener.run(address.path or name_of(sock.getsockname()))
            finally:
                if listener is not None:
                    listener.close()
                sock.close()
                if file is not None:
                    await self._lanes.spawn.submit(place.key, file.remove)
            return Empty()
        finally:
            self._forwards.leave()


def _relay(call: Call, sock: socket.socket, heartbeat_ms: int) -> Relay:
    try:
        return Relay(call, sock, heartbeat_ms)
    except BaseException:
        sock.close()
        raise


def _connected(sock: socket.socket, path: str) -> Connected:
    local, remote = sock.getsockname(), sock.getpeername()
    if isinstance(local, tuple):
        return Connected(local=name_of(local), remote=name_of(remote))
    # A unix socket's own end has a name only where it listened.
    return Connected(local=os.fsdecode(local), remote=path)

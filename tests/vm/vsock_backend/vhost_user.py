"""QEMU's side: the vhost-user protocol, as far as a vsock device needs it.

    u32 request | u32 flags | u32 size | payload, and descriptors beside it

The names and numbers are those of QEMU's docs/interop/vhost-user.rst.
"""

from __future__ import annotations

import array
import enum
import os
import socket
import struct
from collections.abc import Callable

from tests.vm.vsock_backend.device import VsockDevice
from tests.vm.vsock_backend.poller import READ, Poller
from tests.vm.vsock_backend.virtqueue import MAX_QUEUE_SIZE

_HEADER = struct.Struct("<III")
_U64 = struct.Struct("<Q")
_VRING_STATE = struct.Struct("<II")
_VRING_ADDRESS = struct.Struct("<IIQQQQ")
_REGION = struct.Struct("<QQQQ")
_CONFIG = struct.Struct("<III")

_VERSION = 1
_REPLY = 4
_NEED_REPLY = 8

_F_VERSION_1 = 1 << 32
_F_PROTOCOL_FEATURES = 1 << 30
_PROTOCOL_F_MQ = 1 << 0
_PROTOCOL_F_REPLY_ACK = 1 << 3
_PROTOCOL_F_CONFIG = 1 << 9

#: A request is far smaller, whatever it is.
_MAX_PAYLOAD = 4096
_MAX_DESCRIPTORS = 8
_INDEX = 0xFF
_NO_DESCRIPTOR = 1 << 8


class Request(enum.IntEnum):
    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24


class ProtocolError(Exception):
    """QEMU said what it should not."""


class VhostUserSession:
    """One virtual machine's connection.  `ended`: it is over."""

    def __init__(self, sock: socket.socket, device: VsockDevice, poller: Poller) -> None:
        self.ended = False
        self._socket = sock
        self._device = device
        self._poller = poller
        self._handlers: dict[int, Callable[[bytes, list[int]], bytes | None]] = {
            Request.GET_FEATURES: lambda payload, fds: _U64.pack(_F_VERSION_1 | _F_PROTOCOL_FEATURES),
            Request.SET_FEATURES: self._nothing,
            Request.SET_OWNER: self._nothing,
            Request.SET_MEM_TABLE: self._set_memory,
            Request.SET_VRING_NUM: self._set_size,
            Request.SET_VRING_ADDR: self._set_address,
            Request.SET_VRING_BASE: self._set_base,
            Request.GET_VRING_BASE: self._stop_queue,
            Request.SET_VRING_KICK: self._set_kick,
            Request.SET_VRING_CALL: self._set_call,
            Request.SET_VRING_ERR: self._nothing,
            Request.GET_PROTOCOL_FEATURES: lambda payload, fds: _U64.pack(
                _PROTOCOL_F_MQ | _PROTOCOL_F_REPLY_ACK | _PROTOCOL_F_CONFIG
            ),
            Request.SET_PROTOCOL_FEATURES: self._nothing,
            Request.GET_QUEUE_NUM: lambda payload, fds: _U64.pack(len(device.queues)),
            Request.SET_VRING_ENABLE: self._enable,
            Request.GET_CONFIG: self._config,
        }
        poller.watch(sock.fileno(), READ, self._readable)

    def _readable(self, events: int) -> None:
        received = self._receive()
        if received is None:
            self.ended = True
            self._poller.forget(self._socket.fileno())
            self._socket.close()
            return
        request, flags, payload, fds = received
        handler = self._handlers.get(request)
        if handler is None:
            for fd in fds:
                os.close(fd)
            raise ProtocolError(f"request {request}, which was not offered")
        reply = handler(payload, fds)
        if reply is None and flags & _NEED_REPLY:
            reply = _U64.pack(0)
        if reply is not None:
            self._socket.sendall(_HEADER.pack(request, _VERSION | _REPLY, len(reply)) + reply)

    def _receive(self) -> tuple[int, int, bytes, list[int]] | None:
        descriptors = array.array("i")
        room = socket.CMSG_SPACE(_MAX_DESCRIPTORS * descriptors.itemsize)
        try:
            # Blocking: a request comes whole, and QEMU waits for nobody else.
            header, ancillary, _, _ = self._socket.recvmsg(
                _HEADER.size, room, socket.MSG_WAITALL | socket.MSG_CMSG_CLOEXEC
            )
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
            if len(header) < _HEADER.size:
                return None
            request, flags, size = _HEADER.unpack(header)
            if size > _MAX_PAYLOAD:
                raise ProtocolError(f"request {request} of {size} bytes")
            payload = self._socket.recv(size, socket.MSG_WAITALL) if size else b""
        except ConnectionError:
            return None
        return (request, flags, payload, descriptors.tolist()) if len(payload) == size else None

    # ---- one method a request

    def _nothing(self, payload: bytes, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)

    def _set_memory(self, payload: bytes, fds: list[int]) -> None:
        (count,) = struct.unpack_from("<I", payload)
        if count != len(fds) or 8 + count * _REGION.size > len(payload):
            raise ProtocolError(f"{count} memory regions, {len(fds)} descriptors")
        regions = []
        for index, fd in enumerate(fds):
            guest, size, user, offset = _REGION.unpack_from(payload, 8 + index * _REGION.size)
            regions.append((guest, size, user, offset, fd))
        self._device.memory.replace(regions)

    def _set_size(self, payload: bytes, fds: list[int]) -> None:
        index, size = _VRING_STATE.unpack_from(payload)
        if not 0 < size <= MAX_QUEUE_SIZE:
            raise ProtocolError(f"a queue of {size}")
        self._device.queues[index].size = size

    def _set_address(self, payload: bytes, fds: list[int]) -> None:
        index, _flags, descriptors, used, available, _log = _VRING_ADDRESS.unpack_from(payload)
        self._device.queues[index].place(descriptors, available, used)

    def _set_base(self, payload: bytes, fds: list[int]) -> None:
        index, base = _VRING_STATE.unpack_from(payload)
        self._device.queues[index].begin_at(base)

    def _stop_queue(self, payload: bytes, fds: list[int]) -> bytes:
        index, _ = _VRING_STATE.unpack_from(payload)
        # What the guest sent before it let go is still in the queue.
        self._device.work()
        queue = self._device.queues[index]
        if queue.kick >= 0:
            self._poller.forget(queue.kick)
        position = queue.position
        queue.stop()
        if not self._device.running:
            self._device.stopped()
        return _VRING_STATE.pack(index, position)

    def _descriptor(self, payload: bytes, fds: list[int]) -> tuple[int, int]:
        (value,) = _U64.unpack_from(payload)
        return value & _INDEX, -1 if value & _NO_DESCRIPTOR else fds[0]

    def _set_kick(self, payload: bytes, fds: list[int]) -> None:
        index, fd = self._descriptor(payload, fds)
        queue = self._device.queues[index]
        if queue.kick >= 0:
            self._poller.forget(queue.kick)
            os.close(queue.kick)
        queue.kick = fd
        if fd >= 0:
            os.set_blocking(fd, False)
            self._poller.watch(fd, READ, lambda events: self._kicked(fd))

    def _kicked(self, fd: int) -> None:
        try:
            os.read(fd, 8)
        except BlockingIOError:
            pass
        self._device.work()

    def _set_call(self, payload: bytes, fds: list[int]) -> None:
        index, fd = self._descriptor(payload, fds)
        queue = self._device.queues[index]
        if queue.call >= 0:
            os.close(queue.call)
        queue.call = fd

    def _enable(self, payload: bytes, fds: list[int]) -> None:
        index, enabled = _VRING_STATE.unpack_from(payload)
        self._device.queues[index].enabled = bool(enabled)
        self._device.work()

    def _config(self, payload: bytes, fds: list[int]) -> bytes:
        offset, size, _flags = _CONFIG.unpack_from(payload)
        config = _U64.pack(self._device.guest_cid)[offset : offset + size]
        return payload[: _CONFIG.size] + config.ljust(min(size, _MAX_PAYLOAD), b"\0")

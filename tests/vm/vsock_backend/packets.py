"""The header in front of every vsock packet (virtio 1.2, 5.10.6).

 0         8         16        20        24    28     30   32      36          40        44
| src cid | dst cid | src port| dst port| len | type | op | flags | buf_alloc | fwd_cnt |
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

HEADER = struct.Struct("<QQIIIHHIII")

HOST_CID = 2
STREAM = 1

#: Flags of SHUTDOWN: what the sender will do no more.
NO_RECEIVE = 1
NO_SEND = 2


class Op(enum.IntEnum):
    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Header(NamedTuple):
    source_cid: int
    destination_cid: int
    source_port: int
    destination_port: int
    length: int
    type: int
    op: int
    flags: int = 0
    #: How many bytes of this stream the sender keeps for its reader, in all.
    buffer_size: int = 0
    #: How many of them its reader has taken since the beginning, modulo 2**32.
    taken: int = 0

    def pack(self) -> bytes:
        return HEADER.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        return cls(*HEADER.unpack_from(data))

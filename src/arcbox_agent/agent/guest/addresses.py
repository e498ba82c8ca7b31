"""The guest's own IP addresses, from the kernel over rtnetlink.

psutil has them too, but importing it costs 2 MB, which is too much for one field.

    nlmsghdr    u32 length, u16 type, u16 flags, u32 sequence, u32 port
    ifaddrmsg   u8 family, u8 prefix, u8 flags, u8 scope, u32 index
    rtattr      u16 length, u16 type, value, padded to 4
"""

from __future__ import annotations

import socket
import struct

_HEADER = struct.Struct("=IHHII")
_IFADDRMSG = struct.Struct("=BBBBI")
_RTATTR = struct.Struct("=HH")

# linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_NLM_F_REQUEST, _NLM_F_DUMP = 0x001, 0x300
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_TENTATIVE, _IFA_F_DADFAILED = 0x40, 0x08
_SCOPE_LINK, _SCOPE_HOST = 253, 254


def ip_addresses() -> list[str]:
    """The addresses at which others can reach the guest, IPv4 first.

    Loopback addresses are left out.  So are link-local ones, which mean nothing without the
    name of the interface.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        # The kernel answers at once.  The time-out is for one that is broken.
        netlink.settimeout(1.0)
        request = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        header = _HEADER.pack(_HEADER.size + len(request), _RTM_GETADDR, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
        netlink.sendto(header + request, (0, 0))
        found: list[tuple[int, str]] = []
        while _read(netlink.recv(64 << 10), found):
            pass
    return [text for _, text in sorted(found, key=lambda one: one[0] != socket.AF_INET)]


def _read(messages: bytes, found: list[tuple[int, str]]) -> bool:
    """Add the addresses of one datagram to `found`.  Returns whether more datagrams follow."""
    at = 0
    while at + _HEADER.size <= len(messages):
        length, type, _, _, _ = _HEADER.unpack_from(messages, at)
        if type in (_NLMSG_DONE, _NLMSG_ERROR) or length < _HEADER.size:
            return False
        if type == _RTM_NEWADDR:
            family, _, flags, scope, _ = _IFADDRMSG.unpack_from(messages, at + _HEADER.size)
            unusable = flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED)
            if family in (socket.AF_INET, socket.AF_INET6) and scope < _SCOPE_LINK and not unusable:
                attributes = _attributes(messages[at + _HEADER.size + _IFADDRMSG.size : at + length])
                # On a point-to-point link IFA_ADDRESS is the address of the other end.
                address = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
                if address:
                    found.append((family, socket.inet_ntop(family, address)))
        at += (length + 3) & ~3
    return True


def _attributes(octets: bytes) -> dict[int, bytes]:
    attributes = {}
    at = 0
    while at + _RTATTR.size <= len(octets):
        length, type = _RTATTR.unpack_from(octets, at)
        if length < _RTATTR.size:
            break
        attributes[type] = octets[at + _RTATTR.size : at + length]
        at += (length + 3) & ~3
    return attributes

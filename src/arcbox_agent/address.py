"""Addresses of an agent: where a host dials it, and where it listens.

To dial (`parse_address`):

    vsock://CID:PORT                    AF_VSOCK, of a Linux host to its guest
    unix:///path                        a unix socket
    firecracker:///path:PORT            a unix socket of the hypervisor that leads to a
    cloud-hypervisor:///path:PORT       vsock port of the guest, after `CONNECT PORT`

To listen (`parse_listen`), each with an optional `?mode=NAME`:

    vsock:PORT                          that port, on any cid
    unix:/path

This module opens no socket, and works on hosts without AF_VSOCK.  A path is taken literally.
`?` begins the options, so a path cannot contain one.
"""

from __future__ import annotations

import os
import sys

from arcbox_agent.errors import AddressError

#: From linux/vm_sockets.h: not every platform has `socket.VMADDR_CID_ANY`.
CID_ANY = 0xFFFFFFFF
PORT_ANY = 0xFFFFFFFF

#: sizeof(sockaddr_un.sun_path), less its NUL.
MAX_UNIX_PATH = 107 if sys.platform == "linux" else 103

_HYBRID_SCHEMES = ("firecracker", "cloud-hypervisor")

_DIAL_FORMS = "vsock://CID:PORT, unix:///path or firecracker:///path:PORT"
_LISTEN_FORMS = "vsock:PORT or unix:/path, with an optional ?mode=NAME"


class VsockAddress:
    """A vsock port; `cid` is CID_ANY only in an address to listen on."""

    __slots__ = ("cid", "port")

    def __init__(self, cid: int, port: int) -> None:
        self.cid, self.port = cid, port

    def __str__(self) -> str:
        return f"vsock://{self.cid}:{self.port}"

    def __repr__(self) -> str:
        return f"VsockAddress({self.cid}, {self.port})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VsockAddress):
            return NotImplemented
        return (self.cid, self.port) == (other.cid, other.port)

    def __hash__(self) -> int:
        return hash((self.cid, self.port))


class UnixAddress:
    """A unix socket, by its absolute path."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def __str__(self) -> str:
        return f"unix://{self.path}"

    def __repr__(self) -> str:
        return f"UnixAddress({self.path!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, UnixAddress):
            return NotImplemented
        return self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)


class HybridVsockAddress:
    """A vsock port of a guest, reached through a unix socket of its hypervisor."""

    __slots__ = ("path", "port", "scheme")

    def __init__(self, path: str, port: int, scheme: str = "firecracker") -> None:
        self.path, self.port, self.scheme = path, port, scheme

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}:{self.port}"

    def __repr__(self) -> str:
        return f"HybridVsockAddress({self.path!r}, {self.port}, {self.scheme!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HybridVsockAddress):
            return NotImplemented
        return (self.path, self.port) == (other.path, other.port)

    def __hash__(self) -> int:
        return hash((self.path, self.port))


class ListenAddress:
    """Where an agent listens.  `mode`: as written after `?mode=`, or ""."""

    __slots__ = ("address", "mode")

    def __init__(self, address: VsockAddress | UnixAddress, mode: str = "") -> None:
        self.address, self.mode = address, mode

    def __str__(self) -> str:
        address = self.address
        where = f"vsock:{address.port}" if isinstance(address, VsockAddress) else f"unix:{address.path}"
        return f"{where}?mode={self.mode}" if self.mode else where

    def __repr__(self) -> str:
        return f"ListenAddress({self.address!r}, {self.mode!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ListenAddress):
            return NotImplemented
        return (self.address, self.mode) == (other.address, other.mode)

    def __hash__(self) -> int:
        return hash((self.address, self.mode))


def parse_address(text: str) -> VsockAddress | UnixAddress | HybridVsockAddress:
    """The address to dial that `text` means."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise AddressError(text, f"write {_DIAL_FORMS}")
    if "?" in rest:
        raise AddressError(text, "an address to dial has no options: leave out the ? and what follows")
    if scheme == "vsock":
        cid_text, colon, port_text = rest.partition(":")
        if not colon:
            raise AddressError(text, "the port is missing: write vsock://CID:PORT")
        cid = _number(text, "cid", cid_text, 0, CID_ANY - 1)
        return VsockAddress(cid, _port(text, port_text))
    if scheme == "unix":
        return UnixAddress(_path(text, rest))
    if scheme in _HYBRID_SCHEMES:
        path, colon, port_text = rest.rpartition(":")
        if not colon:
            raise AddressError(text, f"the guest's port is missing: write {scheme}:///path:PORT")
        return HybridVsockAddress(_path(text, path), _port(text, port_text), scheme)
    raise AddressError(text, f"unknown scheme {scheme!r}: write {_DIAL_FORMS}")


def parse_listen(text: str) -> ListenAddress:
    """The address to listen on that `text` means."""
    where, question_mark, options = text.partition("?")
    mode = _mode(text, options) if question_mark else ""
    scheme, colon, rest = where.partition(":")
    if not colon:
        raise AddressError(text, f"write {_LISTEN_FORMS}")
    if scheme == "vsock":
        if rest.startswith("//"):
            raise AddressError(text, "an agent listens on any cid: write vsock:PORT")
        return ListenAddress(VsockAddress(CID_ANY, _port(text, rest)), mode)
    if scheme == "unix":
        # unix:///path, the form to dial the same socket, is accepted too.
        path = rest.removeprefix("//")
        return ListenAddress(UnixAddress(_path(text, path)), mode)
    raise AddressError(text, f"unknown scheme {scheme!r}: write {_LISTEN_FORMS}")


def _mode(text: str, options: str) -> str:
    key, equals, value = options.partition("=")
    if key != "mode" or not equals or not value or "&" in value:
        raise AddressError(text, f"unknown options {options!r}: only mode=NAME can follow the ?")
    return value


def _number(text: str, what: str, digits: str, low: int, high: int) -> int:
    # int() alone would accept a sign, spaces, underscores and digits of other scripts.
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 10):
        raise AddressError(text, f"{what} {digits!r} is not a number")
    value = int(digits)
    if not low <= value <= high:
        raise AddressError(text, f"{what} {value} is not between {low} and {high}")
    return value


def _port(text: str, digits: str) -> int:
    return _number(text, "port", digits, 1, PORT_ANY - 1)


def _path(text: str, path: str) -> str:
    if not path.startswith("/"):
        raise AddressError(text, f"the path {path!r} is not absolute: begin it with /")
    if "\0" in path:
        raise AddressError(text, "the path holds a NUL character")
    size = len(os.fsencode(path))
    if size > MAX_UNIX_PATH:
        raise AddressError(
            text, f"the path is {size} bytes long, and a socket's can have {MAX_UNIX_PATH}: use a shorter one"
        )
    return path

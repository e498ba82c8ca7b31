"""One end of a forward: TCP at a host and port, or a unix socket at a path."""

from __future__ import annotations

from typing import NamedTuple

from arcbox_agent.errors import AddressError

LOCALHOST = "127.0.0.1"


class Endpoint(NamedTuple):
    """`path` is empty for TCP.  `host`: a name or an address; `port` 0: any, for what listens."""

    host: str
    port: int
    path: str

    @classmethod
    def of(cls, value: EndpointLike) -> Endpoint:
        """From a port, `host:port`, `[host]:port`, `:port`, a pair of both, or a path.  Raises AddressError."""
        if isinstance(value, Endpoint):
            return value
        if isinstance(value, int):
            return cls._tcp("", value, str(value))
        if isinstance(value, tuple):
            return cls._tcp(value[0], value[1], repr(value))
        if value.startswith(("/", "./")):
            return cls("", 0, value)
        host, _, port = value.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise AddressError(value, "an IPv6 address is written [address]:port")
        if not (port.isascii() and port.isdigit()) or len(port) > 5:
            raise AddressError(value, "write a port, HOST:PORT, or the path of a unix socket, which begins with /")
        return cls._tcp(host, int(port), value)

    @classmethod
    def _tcp(cls, host: str, port: int, text: str) -> Endpoint:
        if not 0 <= port <= 65535:
            raise AddressError(text, f"a port is at most 65535, not {port}")
        return cls(host or LOCALHOST, port, "")

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


#: What `Endpoint.of` takes.
EndpointLike = str | int | tuple[str, int] | Endpoint

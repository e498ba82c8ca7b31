"""Messages against google.protobuf (upb): encode, decode and read every field, make and encode.

Both sides have the same values, and each side's bytes are checked on the other
before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from arcbox_agent import wire
from benchmarks.conftest import Compare
from tests.reference.google import GOOGLE, to_google, to_plain

LOG_ENTRY = wire.LogEntry(
    stream="stdout",
    data=b"10.0.0.7 - - GET /v1/containers/0f3a/json HTTP/1.1 200 1532 0.003 curl/8.5.0 request-id 4f9",
    timestamp=1_763_900_000_123_456_789,
)
PING = wire.PingRequest(message="are you there?", timestamp_secs=1_763_900_000)
EXEC = wire.ExecRequest(
    container_id="3f9b1c2d4e5f60718293a4b5c6d7e8f9",
    cmd=["/usr/bin/python3", "-m", "http.server", "--bind", "127.0.0.1"],
    env={f"VARIABLE_{n}": f"/srv/application/value-{n}" for n in range(10)},
    working_dir="/srv/application",
    user="app:app",
    tty=True,
)
CONTAINERS = wire.ListContainersResponse(
    containers=[
        wire.ContainerInfo(
            id=f"3f9b1c2d4e5f60718293a4b5c6d7{n:04x}",
            name=f"worker-{n}",
            image="registry.example.org/team/worker:1.4.2",
            state="running",
            status=f"Running (PID: {1000 + n})",
            created=1_763_900_000 + n,
        )
        for n in range(100)
    ]
)


def _read(names: tuple[str, ...]) -> Callable[[Any], None]:
    """A function that reads the named fields: written out, as a user's code has them."""
    lines = [f"    m.{name}" for name in names]
    scope: dict[str, Any] = {}
    exec("\n".join(["def read(m):", *lines]), scope)
    read: Callable[[Any], None] = scope["read"]
    return read


def _decoders(message: wire.Message) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Decode and read every field of it, ours and theirs."""
    ours, theirs = type(message).decode, GOOGLE[type(message).__name__].FromString
    data = message.encode()
    read: Callable[[Any], None]
    if isinstance(message, wire.ListContainersResponse):
        each = _read(wire.ContainerInfo.__match_args__)

        def read_list(m: Any) -> None:
            for container in m.containers:
                each(container)

        read = read_list
    elif isinstance(message, wire.ExecRequest):
        plain = _read(tuple(n for n in message.__match_args__ if n not in ("cmd", "env")))

        def read_exec(m: Any) -> None:
            plain(m)
            list(m.cmd)
            dict(m.env)

        read = read_exec
    else:
        read = _read(message.__match_args__)

    def ours_read() -> None:
        read(ours(data))

    def theirs_read() -> None:
        read(theirs(data))

    return ours_read, theirs_read


#: Message, goal of encoding, goal of decoding.
CASES = [
    pytest.param(LOG_ENTRY, 3.0, 3.0, id="LogEntry"),
    pytest.param(PING, 3.0, 3.0, id="PingRequest"),
    pytest.param(EXEC, 2.3, 3.5, id="ExecRequest"),
    pytest.param(CONTAINERS, 3.0, 2.5, id="100-containers"),
]
each_case = pytest.mark.parametrize(("message", "encode_goal", "decode_goal"), CASES)


@each_case
def test_encode(compare: Compare, message: wire.Message, encode_goal: float, decode_goal: float) -> None:
    theirs = to_google(message)
    name = type(message).__name__
    assert to_plain(theirs) == to_plain(message)
    assert to_plain(GOOGLE[name].FromString(message.encode())) == to_plain(message)
    compare(f"encode {name}", message.encode, theirs.SerializeToString, encode_goal, rival_name="upb")


@each_case
def test_decode_and_read_every_field(
    compare: Compare, message: wire.Message, encode_goal: float, decode_goal: float
) -> None:
    name = type(message).__name__
    data = to_google(message).SerializeToString()
    assert type(message).decode(data) == message
    ours, theirs = _decoders(message)
    compare(f"decode, read {name}", ours, theirs, decode_goal, rival_name="upb")


def test_make_and_encode(compare: Compare) -> None:
    ours_class, theirs_class = wire.LogEntry, GOOGLE["LogEntry"]
    data = LOG_ENTRY.data

    def ours() -> bytes:
        return ours_class(stream="stdout", data=data, timestamp=1_763_900_000_123_456_789).encode()

    def theirs() -> bytes:
        encoded: bytes = theirs_class(
            stream="stdout", data=data, timestamp=1_763_900_000_123_456_789
        ).SerializeToString()
        return encoded

    assert ours() == theirs()
    compare("make, encode LogEntry", ours, theirs, 6.0, rival_name="upb")

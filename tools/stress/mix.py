"""Requests of all kinds, each with the check of its reply: pings mostly, and whole lives of containers."""

from __future__ import annotations

import random
from typing import Any

from arcbox_agent import wire
from tools.stress.pipeline import Check, Pipeline


async def mixed_requests(client: Pipeline, choice: random.Random, count: int, hostname: str) -> None:
    """`count` requests, or a few more, to an agent whose guest is called `hostname`."""
    sent = 0
    while sent < count:
        dice = choice.random()
        if dice < 0.955:
            sent += await _ping(client, choice)
        elif dice < 0.97:
            sent += await _info(client, hostname)
        elif dice < 0.985:
            sent += await _list(client, f"{client.name}-", {})
        elif dice < 0.9965:
            sent += await _exec(client, choice)
        elif dice < 0.9975:
            sent += await _unknown_container(client)
        else:
            sent += await _container_life(client, sent, choice)
    await client.all_answered()


# ------------------------------------------------- requests, each with its check


async def _ping(client: Pipeline, choice: random.Random) -> int:
    text = f"{client.name} {choice.getrandbits(64):x}" * choice.choice((1, 1, 1, 1, 50))
    await client.request(wire.PingRequest(message=text), wire.PingResponse, _is("message", f"pong: {text}"))
    return 1


async def _info(client: Pipeline, hostname: str) -> int:
    await client.request(wire.GetSystemInfoRequest(), wire.SystemInfo, _is("hostname", hostname))
    return 1


async def _list(client: Pipeline, own: str, states: dict[str, str]) -> int:
    """Of the containers of this connection there must be exactly `states`."""

    def check(reply: Any) -> str | None:
        seen = {c.id: c.state for c in reply.containers if c.id.startswith(own)}
        return None if seen == states else f"lists {seen} instead of {states}"

    await client.request(wire.ListContainersRequest(all=True), wire.ListContainersResponse, check)
    return 1


async def _exec(client: Pipeline, choice: random.Random) -> int:
    text, code = f"{choice.getrandbits(64):x}", choice.randrange(256)
    out, err = text.encode() + b"\n", text[::-1].encode() + b"\n"

    def check(reply: Any) -> str | None:
        seen = (reply.data, reply.stderr, reply.exit_code, reply.done)
        return None if seen == (out, err, code, True) else f"exec gave {seen}, not {(out, err, code, True)}"

    script = f"echo {text}; echo {text[::-1]} >&2; exit {code}"
    await client.request(wire.ExecRequest(cmd=["/bin/sh", "-c", script], detail=True), wire.ExecOutput, check)
    return 1


async def _unknown_container(client: Pipeline) -> int:
    await client.request(wire.ExecRequest(container_id="nowhere", cmd=["true"]), None, _is("code", 404))
    return 1


async def _container_life(client: Pipeline, number: int, choice: random.Random) -> int:
    """Create to remove, all of it on the way at once: each step relies on the order."""
    id, text, code = f"{client.name}-{number}", f"{choice.getrandbits(64):x}", choice.randrange(256)
    cmd = ["/bin/sh", "-c", f"echo {text}; exit {code}"]
    await client.request(
        wire.CreateContainerRequest(id=id, name=f"name-{id}", cmd=cmd),
        wire.CreateContainerResponse,
        _is("id", id),
    )
    await client.request(wire.StartContainerRequest(id=id), wire.Empty)
    await client.request(wire.WaitContainerRequest(id=id), wire.WaitContainerResponse, _is("status_code", code))
    await _list(client, f"{client.name}-", {id: "stopped"})
    await client.request(wire.LogsRequest(container_id=id), wire.LogEntry, _is("data", text.encode()))
    await client.request(wire.RemoveContainerRequest(id=id), wire.Empty)
    await _list(client, f"{client.name}-", {})
    return 7


def _is(field: str, value: object) -> Check:
    def check(reply: Any) -> str | None:
        seen = getattr(reply, field)
        return None if seen == value else f"{field} is {seen!r} instead of {value!r}"

    return check

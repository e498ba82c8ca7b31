"""The options of `create` and `run`, which are docker's, as arguments of the client's call."""

from __future__ import annotations

import math
from typing import Any

import click

from arcbox_agent.cli.environment import ENVIRONMENT_OPTIONS, F, add_options, environment

_OPTIONS = (
    click.option("--name", default="", help="Assign a name to the container."),
    click.option(
        "--id", "container_id", default="", metavar="ID", help="Use this id instead of one that the agent makes."
    ),
    *ENVIRONMENT_OPTIONS,
    click.option("-w", "--workdir", default="", metavar="DIR", help="Working directory inside the container."),
    click.option(
        "-u", "--user", default="", metavar="USER[:GROUP]", help="User (and group) to run as, by name or number."
    ),
    click.option(
        "-v",
        "--volume",
        "volumes",
        multiple=True,
        metavar="SOURCE:TARGET[:ro]",
        help="Bind mount a directory or file of the guest.",
    ),
    click.option(
        "--mount",
        "mounts",
        multiple=True,
        metavar="type=bind,source=...,target=...[,readonly]",
        help="Attach a mount in docker's long form: type=tmpfs,target=... mounts a tmpfs.",
    ),
    click.option("--tmpfs", multiple=True, metavar="TARGET", help="Mount a tmpfs."),
    click.option("--entrypoint", metavar="PROGRAM", help="Overwrite the image's entrypoint."),
    click.option(
        "--rootfs", default="", metavar="DIR", help="Use a directory of the guest as the container's root file system."
    ),
    click.option("-t", "--tty", is_flag=True, help="Allocate a pseudo-terminal."),
    click.option(
        "--stop-signal", default="", metavar="SIGNAL", help="Signal to stop the container with, TERM by default."
    ),
    click.option(
        "--stop-timeout",
        type=click.IntRange(min=-1),
        metavar="SECONDS",
        help="Seconds that `stop` waits before SIGKILL, 10 by default; -1: for ever.",
    ),
)


def create_options(function: F) -> F:
    return add_options(function, _OPTIONS)


def create_arguments(
    *,
    image: str,
    cmd: tuple[str, ...],
    name: str,
    container_id: str,
    env: tuple[str, ...],
    env_files: tuple[str, ...],
    workdir: str,
    user: str,
    volumes: tuple[str, ...],
    mounts: tuple[str, ...],
    tmpfs: tuple[str, ...],
    entrypoint: str | None,
    rootfs: str,
    tty: bool,
    stop_signal: str,
    stop_timeout: int | None,
    interactive: bool,
) -> dict[str, Any]:
    """The keyword arguments of `Client.create_container`."""
    from arcbox_agent.wire import Mount

    asked = [volume(one) for one in volumes] + [mount(one) for one in mounts]
    asked += [in_memory(one) for one in tmpfs]
    return {
        "image": image,
        "cmd": list(cmd),
        "name": name,
        "id": container_id,
        "env": environment(env, env_files),
        "working_dir": workdir,
        "user": user,
        "mounts": [Mount(**one) for one in asked],
        "entrypoint": [entrypoint] if entrypoint else [],
        "rootfs": rootfs,
        "tty": tty,
        "stop_signal": stop_signal,
        "stop_timeout": patience(stop_timeout),
        "open_stdin": interactive,
    }


def patience(seconds: int | None) -> float | None:
    """A number of seconds as docker writes it: -1 has no end."""
    return math.inf if seconds == -1 else seconds


def volume(text: str) -> dict[str, Any]:
    """`-v SOURCE:TARGET[:ro|rw]`."""
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not source or not target or mode not in ("", "ro", "rw"):
        raise click.UsageError(f"--volume: {text!r} is not SOURCE:TARGET[:ro]")
    # As with docker, a path is a bind mount's and a name is a volume's.
    kind = "bind" if source.startswith("/") else "volume"
    return {"type": kind, "source": source, "target": target, "readonly": mode == "ro"}


def in_memory(text: str) -> dict[str, Any]:
    """`--tmpfs TARGET`.  Options behind it, as docker's `:size=64m`, are refused."""
    if ":" in text:
        raise click.UsageError(f"--tmpfs: {text!r} is not TARGET; no options are known")
    return {"type": "tmpfs", "target": text}


_MOUNT_KEYS = {"type": "type", "source": "source", "src": "source", "target": "target", "dst": "target"}
_MOUNT_KEYS["destination"] = "target"


def mount(text: str) -> dict[str, Any]:
    """`--mount type=bind,source=...,target=...[,readonly]`."""
    asked: dict[str, Any] = {"type": "volume"}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if key in ("readonly", "ro") and value in ("", "1", "0", "true", "false"):
            asked["readonly"] = value in ("", "1", "true")
        elif key in _MOUNT_KEYS and equals:
            asked[_MOUNT_KEYS[key]] = value
        else:
            raise click.UsageError(f"--mount: {part!r} is not known: type, source, target, readonly are")
    if asked["type"] not in ("bind", "volume", "tmpfs"):
        raise click.UsageError(f"--mount: type={asked['type']}: bind, volume and tmpfs are known")
    if not asked.get("target"):
        raise click.UsageError(f"--mount: {text!r} names no target")
    return asked

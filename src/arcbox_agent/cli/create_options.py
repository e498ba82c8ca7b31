"""What `create` and `run` take: docker's options, as arguments of the client's call."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

F = TypeVar("F", bound="Callable[..., Any]")

_OPTIONS = (
    click.option("--name", default="", help="A name for the container."),
    click.option("--id", "container_id", default="", metavar="ID", help="An id instead of one the agent makes."),
    click.option("-e", "--env", "env", multiple=True, metavar="KEY[=VALUE]", help="A variable; KEY alone: as here."),
    click.option(
        "--env-file",
        "env_files",
        multiple=True,
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False),
        help="Variables, KEY=VALUE a line.",
    ),
    click.option("-w", "--workdir", default="", metavar="DIR", help="Working directory."),
    click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="By name or number."),
    click.option(
        "-v",
        "--volume",
        "volumes",
        multiple=True,
        metavar="SOURCE:TARGET[:ro]",
        help="Mount a directory or file of the guest.",
    ),
    click.option(
        "--mount",
        "mounts",
        multiple=True,
        metavar="type=bind,source=...,target=...[,readonly]",
        help="The same in docker's long form; type=tmpfs,target=... too.",
    ),
    click.option("--tmpfs", multiple=True, metavar="TARGET", help="Mount a file system in memory."),
    click.option("--entrypoint", metavar="PROGRAM", help="The program, in place of the image's."),
    click.option("--rootfs", default="", metavar="DIR", help="A directory of the guest to be the container's root."),
    click.option("-t", "--tty", is_flag=True, help="Give it a terminal."),
)


def create_options(function: F) -> F:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


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
        "open_stdin": interactive,
    }


def environment(pairs: Iterable[str], files: Iterable[str] = ()) -> dict[str, str]:
    """--env-file first, --env over it.  A KEY alone is taken from here, if it is set here."""
    variables: dict[str, str] = {}
    for path in files:
        try:
            with open(path, encoding="utf-8-sig") as lines:
                for number, line in enumerate(lines, 1):
                    text = line.strip("\r\n")
                    if text.strip() and not text.lstrip().startswith("#"):
                        _set(variables, text.lstrip(), f"{path}:{number}")
        except UnicodeDecodeError:
            raise click.UsageError(f"{path}: not in UTF-8") from None
    for pair in pairs:
        _set(variables, pair, "--env")
    return variables


def _set(variables: dict[str, str], pair: str, where: str) -> None:
    key, equals, value = pair.partition("=")
    if not key or any(letter.isspace() for letter in key):
        raise click.UsageError(f"{where}: {pair!r} is not KEY=VALUE")
    if equals:
        variables[key] = value
    elif key in os.environ:
        variables[key] = os.environ[key]


def volume(text: str) -> dict[str, Any]:
    """`-v SOURCE:TARGET[:ro|rw]`."""
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not source or not target or mode not in ("", "ro", "rw"):
        raise click.UsageError(f"--volume: {text!r} is not SOURCE:TARGET[:ro]")
    # As docker tells them apart: a path is bound, a name is a volume's.
    kind = "bind" if source.startswith("/") else "volume"
    return {"type": kind, "source": source, "target": target, "readonly": mode == "ro"}


def in_memory(text: str) -> dict[str, Any]:
    """`--tmpfs TARGET`.  docker's `:size=64m` behind it would be taken for a part of the path."""
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

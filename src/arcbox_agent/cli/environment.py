"""The environment of a container or a command, as docker's --env and --env-file give it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

F = TypeVar("F", bound="Callable[..., Any]")

ENVIRONMENT_OPTIONS = (
    click.option(
        "-e",
        "--env",
        "env",
        multiple=True,
        metavar="KEY[=VALUE]",
        help="Set an environment variable; KEY alone: with its value here.",
    ),
    click.option(
        "--env-file",
        "env_files",
        multiple=True,
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False),
        help="Read environment variables from a file, one KEY=VALUE a line.",
    ),
)


def add_options(function: F, options: Sequence[Callable[[F], F]]) -> F:
    """Give a command these options, in this order."""
    for option in reversed(options):
        function = option(function)
    return function


def environment_options(function: F) -> F:
    return add_options(function, ENVIRONMENT_OPTIONS)


def environment(pairs: Iterable[str], files: Iterable[str] = ()) -> dict[str, str]:
    """The variables of --env-file, then those of --env over them.

    A KEY alone takes its value from our own environment, and is left out if it is not set there.
    """
    variables: dict[str, str] = {}
    for path in files:
        try:
            # A newline alone ends a line: a carriage return in a value is part of it.
            with open(path, encoding="utf-8-sig", newline="\n") as lines:
                for number, line in enumerate(lines, 1):
                    text = line.removesuffix("\n").removesuffix("\r").lstrip()
                    if text and not text.startswith("#"):
                        _set(variables, text, f"{path}:{number}")
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

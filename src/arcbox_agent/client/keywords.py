"""Keyword arguments that several calls have in common, declared once.

A type checker reads them from the TypedDict behind `Unpack`; `inspect.signature` and
`help()` read them from the signature that `expands` and `like` put together.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypedDict, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from decimal import Decimal

    #: A point in time: Unix seconds (a Decimal holds every nanosecond, a float does not),
    #: or a datetime (one without a zone is local time).
    Time = datetime | int | float | Decimal

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
R = TypeVar("R")


class CommandOptions(TypedDict, total=False):
    """What every command takes; `calls.command_request` has the defaults."""

    container: str
    env: Mapping[str, str] | None
    working_dir: str
    user: str
    stdin: bytes


class ExecOptions(CommandOptions, total=False):
    """What a command takes whose output is read; `calls.exec_request` has the defaults."""

    tty: bool
    tty_width: int
    tty_height: int
    timeout: float | None


class StartOptions(TypedDict, total=False):
    """What a command takes that does not belong to its connection; `calls.start_request` has the defaults."""

    container: str
    env: Mapping[str, str] | None
    working_dir: str
    user: str
    tty: bool
    size: tuple[int, int]
    stdin: bool
    id: str
    idempotency_key: str
    spool_limit: int
    wait_when_full: bool
    keep: float
    timeout: float | None


class AttachOptions(TypedDict):
    """How a client is attached to a command: bytes under way, seconds between signs of life, seconds to try again."""

    window: int
    heartbeat: float
    reattach: float


class ConnectOptions(TypedDict, total=False):
    """What a connection into the guest takes; `calls.connect_request` has the defaults."""

    container: str
    timeout: float
    heartbeat: float


class ForwardOptions(ConnectOptions, total=False):
    """What a forwarded listener takes; `calls.forward_options` has the defaults."""

    on_error: Callable[[Exception], object] | None


class LogsOptions(TypedDict, total=False):
    """What a log is selected by; `calls.logs_request` has the defaults."""

    follow: bool
    tail: int
    since: Time | None
    until: Time | None
    stdout: bool
    stderr: bool
    timestamps: bool
    after: str
    only_new: bool
    attach: bool


def expands(source: Callable[..., object]) -> Callable[[F], F]:
    """Show the keyword arguments of `source` in place of a function's `**options`."""
    keywords = [p for p in inspect.signature(source).parameters.values() if p.kind is p.KEYWORD_ONLY]

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        function.__signature__ = signature.replace(parameters=own + keywords)  # type: ignore[attr-defined]
        return function

    return decorate


def like(source: Callable[P, object]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Give a function the parameters of `source`, and leave it its own result."""

    def decorate(function: Callable[..., R]) -> Callable[P, R]:
        result = inspect.signature(function).return_annotation
        function.__signature__ = inspect.signature(source).replace(return_annotation=result)  # type: ignore[attr-defined]
        return function

    return decorate

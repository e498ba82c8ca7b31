"""Imports the event loop without the parts of the standard library that nothing here uses.

asyncio and uvloop import ssl, subprocess, inspect, logging, typing and traceback when they
are imported themselves, for TLS, for `create_subprocess_exec`, for `ensure_future`, for
what they have to report and for their annotations.  The agent has no TLS, waits for its
children itself, awaits only coroutines and futures, and has a log of its own; yet the
first five would cost it a quarter of its start-up time and 5 MB.  The last one, with the
regular expressions that it brings, is imported as soon as the agent listens (`prepare_traces`).
What asyncio reports goes
into the agent's own log.  (So the agent's own modules say `TYPE_CHECKING = False`,
which a type checker takes for the one of typing.)

So while asyncio and uvloop are imported, and only then, `import ssl` fails, which
asyncio takes to mean a Python without TLS, and the other names stand for small
modules that hold just what is read at import.  Then they are taken away again: a
later `import subprocess`, by psutil for instance, gets the real one.

What remains is to be paid: Python's own start, asyncio, uvloop and what they stand on
(socket, enum, signal), and the agent's modules, which are all its handlers.  To put an
import off to its first use is right where that is rare and can fail (tomllib, json,
psutil): an import needs a descriptor, so what must work when there is none left, such as
the trace of an exception, is imported before anybody could have used them up.

Only the agent's own process calls this.  Where asyncio is already imported, by a
debugger for instance, nothing is done.
"""

from __future__ import annotations

import sys
from types import CoroutineType, FunctionType, GeneratorType, ModuleType

from arcbox_agent.agent.observe.asyncio_log import AsyncioLogger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_CO_COROUTINE = 0x80


class _Unused(Exception):
    """Stands for classes and functions that uvloop binds at import and uses never here."""


class _Annotation:
    """Whatever typing has: subscripted, called as a decorator or derived from, it changes nothing."""

    def __getitem__(self, parameters: object) -> _Annotation:
        return self

    def __call__(self, decorated: object = None, *arguments: object, **options: object) -> object:
        return decorated

    def __or__(self, other: object) -> _Annotation:
        return self

    __ror__ = __or__

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        return ()


def _the_rest_of(module: str) -> Callable[[str], Any]:
    """A module's `__getattr__`: the real one, for whoever asks for more after all."""

    def get(name: str) -> Any:
        from importlib import import_module

        if sys.modules.get(module) is not None and getattr(sys.modules[module], "__getattr__", None) is get:
            del sys.modules[module]
        return getattr(import_module(module), name)

    return get


def _iscoroutinefunction(value: object) -> bool:
    value = getattr(value, "__func__", value)
    return isinstance(value, FunctionType) and bool(value.__code__.co_flags & _CO_COROUTINE)


def _extract_stack(frame: Any = None, limit: int | None = None) -> Any:
    """For asyncio's debug mode, which keeps the stack of each future."""
    import traceback

    return traceback.extract_stack(frame, limit)


def _stand_ins() -> dict[str, dict[str, Any]]:
    return {
        "ssl": {
            "SSLContext": _Unused,
            "MemoryBIO": _Unused,
            "create_default_context": _Unused,
            "SSLError": _Unused,
            "SSLWantReadError": _Unused,
            "SSLSyscallError": _Unused,
            "SSLZeroReturnError": _Unused,
            "CertificateError": _Unused,
            "SSL_ERROR_WANT_READ": 2,
            "SSL_ERROR_WANT_WRITE": 3,
            "SSL_ERROR_SYSCALL": 5,
        },
        "subprocess": {"PIPE": -1, "STDOUT": -2, "DEVNULL": -3, "SubprocessError": _Unused},
        "inspect": {
            "isgenerator": lambda value: isinstance(value, GeneratorType),
            "iscoroutine": lambda value: isinstance(value, CoroutineType),
            "iscoroutinefunction": _iscoroutinefunction,
            "__getattr__": _the_rest_of("inspect"),
        },
        "logging": {
            "getLogger": lambda name=None: AsyncioLogger(),
            "StreamHandler": lambda stream=None: None,
            "DEBUG": 10,
            "INFO": 20,
            "WARNING": 30,
            "ERROR": 40,
            "CRITICAL": 50,
            "__getattr__": _the_rest_of("logging"),
        },
        "traceback": {
            "StackSummary": _Unused,
            "walk_stack": _Unused,
            "format_list": _Unused,
            "extract_stack": _extract_stack,
            "__getattr__": _the_rest_of("traceback"),
        },
        "linecache": {"__getattr__": _the_rest_of("linecache")},
        "typing": {"TYPE_CHECKING": False, "__getattr__": lambda name: _Annotation()},
    }


def import_event_loop() -> None:
    """Import asyncio and uvloop, leanly where that is still possible."""
    stand_ins = _stand_ins()
    if "asyncio" in sys.modules or any(name in sys.modules for name in stand_ins):
        return
    modules = {}
    for name, contents in stand_ins.items():
        module = ModuleType(name)
        module.__dict__.update(contents)
        modules[name] = module
    try:
        sys.modules |= modules
        sys.modules["ssl"] = None  # type: ignore[assignment]
        import asyncio  # noqa: F401

        sys.modules["ssl"] = modules["ssl"]
        import uvloop  # noqa: F401
    finally:
        for name in stand_ins:
            if sys.modules.get(name) is modules[name] or sys.modules.get(name, ...) is None:
                del sys.modules[name]

"""Imports the event loop without the parts of the standard library that nothing here uses.

asyncio and uvloop import ssl, subprocess and inspect when they are imported
themselves, for TLS, for `create_subprocess_exec` and for `ensure_future`.  The agent
has no TLS, waits for its children itself, and awaits only coroutines and futures;
yet the three would cost it a quarter of its start-up time and 5 MB.

So while asyncio and uvloop are imported, and only then, `import ssl` fails, which
asyncio takes to mean a Python without TLS, and the other names stand for small
modules that hold just what is read at import.  Then they are taken away again: a
later `import subprocess`, by psutil for instance, gets the real one.

Only the agent's own process calls this.  Where asyncio is already imported, by a
debugger for instance, nothing is done.
"""

from __future__ import annotations

import sys
from types import CoroutineType, FunctionType, GeneratorType, ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CO_COROUTINE = 0x80


class _Unused(Exception):
    """Stands for classes and functions that uvloop binds at import and uses never here."""


def _load_inspect(name: str) -> Any:
    """The rest of inspect, for whoever asks for it after all."""
    sys.modules.pop("inspect", None)
    import inspect

    return getattr(inspect, name)


def _iscoroutinefunction(value: object) -> bool:
    value = getattr(value, "__func__", value)
    return isinstance(value, FunctionType) and bool(value.__code__.co_flags & _CO_COROUTINE)


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
            "__getattr__": _load_inspect,
        },
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
        sys.modules["subprocess"] = modules["subprocess"]
        sys.modules["inspect"] = modules["inspect"]
        sys.modules["ssl"] = None  # type: ignore[assignment]
        import asyncio

        sys.modules["ssl"] = modules["ssl"]
        import uvloop
    finally:
        for name in stand_ins:
            if sys.modules.get(name) is modules[name] or sys.modules.get(name, ...) is None:
                del sys.modules[name]

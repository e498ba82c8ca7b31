"""Guest agent for virtual machines and microVM sandboxes, and the host's library for it.

    import arcbox_agent

    async with arcbox_agent.connect("vsock://3:1024") as client:
        print(await client.ping())

A name is imported on first use: the agent in the guest starts from the same package and
must not pay for the client.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent import errors, sync, wire
    from arcbox_agent.client import Client, connect

__version__ = "0.1.0"

__all__ = ["Client", "__version__", "connect", "errors", "sync", "wire"]

#: Public name -> the module that has it.  A module's own name stands for the module.
_HOMES = {
    "Client": "arcbox_agent.client",
    "connect": "arcbox_agent.client",
    "errors": "arcbox_agent.errors",
    "sync": "arcbox_agent.sync",
    "wire": "arcbox_agent.wire",
}


if not TYPE_CHECKING:
    # Hidden from type checkers, for which it would make every misspelt name right.
    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        home = _HOMES[name]
        module = import_module(home)
        value: object = module if home == f"{__name__}.{name}" else getattr(module, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

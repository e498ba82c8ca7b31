"""The wire's compiled core: it has no Python names of its own; see `arcbox_agent.wire`."""

from typing import Final

#: What the modules above take from this one when they are imported.
__pyx_capi__: Final[dict[str, object]]

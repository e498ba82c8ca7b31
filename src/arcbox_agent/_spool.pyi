"""Compiled alone: `_pump` is its only user."""

from typing import Final

#: What `_pump` takes from this module when it is imported.
__pyx_capi__: Final[dict[str, object]]

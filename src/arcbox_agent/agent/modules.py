"""Finds the agent's own modules without Python's search.

For each module Python asks several finders, tries five suffixes and builds a dozen paths: of 150
modules that is an eighth of the time until the agent listens.  Here the one place where a module
can lie is looked at.  What is not there, or not compiled from the source beside it, is left to Python.

Only the agent's own process uses it, and only while it starts.
"""

from __future__ import annotations

import marshal
import os
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER, SourceFileLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, ModuleType

_PACKAGE = __name__.partition(".")[0] + "."
_SUFFIX = f".{sys.implementation.cache_tag}.pyc"
#: Of a module whose source is compared by its time and size (PEP 552).
_HEADER = MAGIC_NUMBER + bytes(4)


class _Loader(SourceFileLoader):
    """A loader that has the module's code already."""

    code: CodeType

    def exec_module(self, module: ModuleType) -> None:
        exec(self.code, module.__dict__)
        del self.code


class OwnModules:
    """A finder for `sys.meta_path`."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if path is None or not name.startswith(_PACKAGE):
            return None
        module = name[name.rindex(".") + 1 :]
        source = f"{path[0]}/{module}.py"
        compiled = f"{path[0]}/__pycache__/{module}{_SUFFIX}"
        try:
            fd = os.open(compiled, os.O_RDONLY | os.O_CLOEXEC)
            try:
                octets = os.read(fd, os.fstat(fd).st_size)
            finally:
                os.close(fd)
            status = os.stat(source)
        except OSError:
            return None
        made_of = (int(status.st_mtime) & 0xFFFFFFFF) | (status.st_size & 0xFFFFFFFF) << 32
        if octets[:16] != _HEADER + made_of.to_bytes(8, "little"):
            return None
        loader = _Loader(name, source)
        loader.code = marshal.loads(memoryview(octets)[16:])
        spec = ModuleSpec(name, loader, origin=source)
        spec.cached = compiled
        spec.has_location = True
        return spec

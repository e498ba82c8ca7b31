"""Mutants of the compiled modules, by hand: `old` stands once in the file and becomes `new`.

No syntax tree of Cython is at hand, and each mutant costs a compilation: so there is one for each
kind of guard, where a fault would be the worst, and not one for each line.
"""

from __future__ import annotations

from tools.mutants.mutate import Mutant

#: (file, old, new)
PATCHES: tuple[tuple[str, str, str], ...] = (
    # Bounds of a frame: its length, its trace id, what has arrived of it.
    ("_frames.pxd", "if length > decoder.limit:", "if length > decoder.limit + 1:"),
    ("_frames.pxd", "if frame.trace_size > length - 6:", "if frame.trace_size > length - 5:"),
    ("_frames.pxd", "if left - 4 < length:", "if left - 3 < length:"),
    ("_frames.pyx", "if size > TRACE_LIMIT:", "if size > TRACE_LIMIT + 1:"),
    # Bounds of a message: lengths inside it, and how deep messages may lie in each other.
    ("_wire.pyx", "if value > <uint64_t>(end - p):", "if value > <uint64_t>(end - p) + 1:"),
    ("_wire.pyx", "if depth + 1 > MAX_DEPTH:", "if depth > MAX_DEPTH:"),
    ("_wire.pyx", "if inner >> 3 != tag >> 3:", "if False:"),
    # Times in lines of logs.
    ("_lines.pyx", "if second < 0 or second > 60:", "if second < 0 or second > 61:"),
    ("_lines.pyx", "if hour < 0 or hour > 23 or mins < 0 or mins > 59:", "if hour < 0 or hour > 24 or mins > 59:"),
    ("_lines.pyx", "if day > last:", "if day > last + 1:"),
    ("_lines.pyx", "if digits > 9:", "if digits > 10:"),
)


class PatchDoesNotFitError(Exception):
    """The code of a patch has changed: write the patch anew."""


def mutants_of(file: str, source: str) -> list[Mutant]:
    """Every mutant of `source`, a .pyx or .pxd file of the package."""
    found = []
    for patched, old, new in PATCHES:
        if patched != file:
            continue
        if source.count(old) != 1:
            raise PatchDoesNotFitError(f"{file}: {old!r} stands {source.count(old)} times in it, not once")
        start = len(source[: source.index(old)].encode())
        line = source.count("\n", 0, source.index(old)) + 1
        found.append(Mutant(file, line, "by hand", start, start + len(old.encode()), new))
    return found

"""The tool behind `make mutants`: a mutant is one change, where it says, and no other."""

from __future__ import annotations

import pytest

from tools.mutants import compiled
from tools.mutants.__main__ import sources_of
from tools.mutants.mutate import mutants_of
from tools.mutants.nearest import NEAREST, nearest_tests
from tools.mutants.scratch import REPOSITORY


def changes(source: str) -> list[str]:
    """The line that each mutant puts in the place of another."""
    return [line[1:].strip() for each in mutants_of("x.py", source) for line in each.diff(source).splitlines()[1:]]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = a < b", ["x = a <= b", "x = a >= b"]),
        ("x = a >= b", ["x = a < b", "x = a > b"]),
        ("x = a is not b", ["x = a is b"]),
        ("x = é not in b", ["x = é in b"]),
        ("x = a and b", ["x = True and b", "x = a or b", "x = a and True"]),
        ("x = a or b or c", ["x = False or b or c", "x = a and b or c", "x = a or False or c"]),
        ("x = b if a else c", ["x = b if not (a) else c"]),
        ("if not a: b.c = 1", ["if (a): b.c = 1", "if not a: pass", "if not a: b.c = 2"]),
        ("x = True", ["x = False"]),
        ("x += 1", ["pass", "x += 2"]),
        ("f(a)", ["pass"]),
        ("raise A(b < c)", ["pass"]),
        ("def f(): return a", ["def f(): return None"]),
        ("def f(): return None", []),
        ("'a docstring'", []),
        ("log.warning(a)", []),
        ("x = f'{a + 1}'", []),
    ],
)
def test_each_kind_of_change(source: str, expected: list[str]) -> None:
    found = changes(source)
    for change in expected:
        assert change in found
    if not expected:
        assert found == []


def test_every_mutant_of_the_package_is_python_and_not_what_it_was() -> None:
    sources = sources_of(["agent/serving/", "logs/"], with_compiled=False)
    for file, source in sources.items():
        # Every eighth: a compilation of a whole file for each takes its time.
        for mutant in mutants_of(file, source)[::8]:
            compile(mutant.apply(source), file, "exec", dont_inherit=True)
            assert mutant.diff(source)


def test_every_file_has_tests_that_are_there() -> None:
    for tests in NEAREST.values():
        for path in tests:
            assert (REPOSITORY / path).exists(), path
    for file in sources_of(["agent/", "logs/", "client/", "cli/"], with_compiled=False):
        assert nearest_tests(file)


def test_every_patch_of_a_compiled_module_fits() -> None:
    for file, source in sources_of([], with_compiled=True).items():
        assert compiled.mutants_of(file, source)

"""The run: which mutants, in which order, for how long, and what became of each.

    .venv/bin/python -m tools.mutants
        --files PART ...    files whose path below src/arcbox_agent begins with one of these
        --compiled          the compiled modules too, a compilation for each mutant
        --seconds N         begin no mutant after so many seconds; 0: all of them (600)
        --seed N            of the order in which mutants are tried (1)
        --list              show the mutants and try none
        --again             forget the results of earlier runs

Exit code 0 whatever survived: survivors are judged by a person.  1: the tests fail without a mutant.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.mutants import compiled, mutate
from tools.mutants.mutate import Mutant
from tools.mutants.nearest import nearest_tests
from tools.mutants.scratch import PACKAGE, REPOSITORY, Scratch

#: Where mutants are made unless --files says otherwise.
DEFAULT_FILES = ("agent/", "logs/", "client/")

#: A run against a mutant may take so many times as long as one without, and some seconds.
SLOWER = 3.0
ALLOWANCE = 60.0

RESULTS = REPOSITORY / "build" / "mutants" / "results.jsonl"


@dataclass(frozen=True)
class Result:
    """`killed_by` None: the mutant survived."""

    key: str
    place: str
    kind: str
    diff: str
    killed_by: str | None
    seconds: float


class Results:
    """What became of each mutant, on disk line by line."""

    def __init__(self, path: Path, again: bool) -> None:
        self._path = path
        self._known: dict[str, Result] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if again:
            path.unlink(missing_ok=True)
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    result = Result(**json.loads(line))
                except (ValueError, TypeError):
                    continue  # cut off when the run was
                self._known[result.key] = result

    def find(self, key: str) -> Result | None:
        return self._known.get(key)

    def add(self, result: Result) -> None:
        self._known[result.key] = result
        with self._path.open("a") as file:
            file.write(json.dumps(vars(result)) + "\n")


class Run:
    """Tries mutants one by one."""

    def __init__(self, scratch: Scratch, results: Results, sources: dict[str, str]) -> None:
        self._scratch = scratch
        self._results = results
        self._sources = sources
        self._baselines: dict[tuple[str, ...], float] = {}

    def try_one(self, mutant: Mutant) -> Result | None:
        """None: the tests fail without the mutant too."""
        source = self._sources[mutant.file]
        changed = mutant.apply(source)
        key = hashlib.sha256(f"{mutant.file}\0{changed}".encode()).hexdigest()[:24]
        known = self._results.find(key)
        if known is not None:
            return known
        tests = nearest_tests(mutant.file)
        baseline = self._baseline(tests)
        if baseline is None:
            return None
        killed_by: str | None
        seconds = 0.0
        self._scratch.write(mutant.file, changed)
        try:
            killed_by = self._compile_error(mutant.file, changed)
            if killed_by is None:
                outcome = self._scratch.run(tests, baseline * SLOWER + ALLOWANCE)
                killed_by, seconds = outcome.killed_by, outcome.seconds
        finally:
            self._scratch.write(mutant.file, source)
            if mutant.file.endswith((".pyx", ".pxd")):
                self._scratch.compile()
        place = f"{PACKAGE / mutant.file}:{mutant.line}"
        result = Result(key, place, mutant.kind, mutant.diff(source), killed_by, round(seconds, 1))
        self._results.add(result)
        return result

    def _compile_error(self, file: str, source: str) -> str | None:
        if file.endswith((".pyx", ".pxd")):
            return "does not compile" if self._scratch.compile() is not None else None
        try:
            compile(source, file, "exec")
        except SyntaxError as error:
            return f"does not compile: {error}"
        return None

    def _baseline(self, tests: tuple[str, ...]) -> float | None:
        """How long the tests take without a mutant, in seconds."""
        if tests not in self._baselines:
            outcome = self._scratch.run(tests, 1800)
            if outcome.killed_by is not None:
                print(f"these tests fail without a mutant: {outcome.killed_by}", file=sys.stderr)
                return None
            self._baselines[tests] = outcome.seconds
            print(f"without a mutant: {outcome.seconds:.0f} s for {' '.join(tests)}", flush=True)
        return self._baselines[tests]


def sources_of(parts: Sequence[str], with_compiled: bool) -> dict[str, str]:
    """Path below the package to source, of every file that begins with one of `parts`."""
    package = REPOSITORY / PACKAGE
    found: dict[str, str] = {}
    for path in sorted(package.rglob("*.py")):
        name = str(path.relative_to(package))
        if name.startswith(tuple(parts)):
            found[name] = path.read_text()
    if with_compiled:
        for name in sorted({file for file, _, _ in compiled.PATCHES}):
            found[name] = (package / name).read_text()
    return found


def mutants_of(sources: dict[str, str]) -> list[Mutant]:
    found: list[Mutant] = []
    for file, source in sources.items():
        by_hand = file.endswith((".pyx", ".pxd"))
        found += compiled.mutants_of(file, source) if by_hand else mutate.mutants_of(file, source)
    return found


def report(results: Iterable[Result]) -> None:
    tried = list(results)
    survivors = [result for result in tried if result.killed_by is None]
    for result in sorted(survivors, key=lambda each: each.place):
        print(f"\nsurvived  {result.place}  ({result.kind})\n{result.diff}")
    if tried:
        killed = len(tried) - len(survivors)
        print(f"\n{killed} of {len(tried)} mutants were killed: {killed / len(tried):.0%}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools.mutants", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", nargs="+", default=list(DEFAULT_FILES), metavar="PART")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--again", action="store_true")
    asked = parser.parse_args(arguments)

    sources = sources_of(asked.files, asked.compiled)
    mutants = mutants_of(sources)
    print(f"{len(mutants)} mutants of {len(sources)} files", flush=True)
    if asked.list:
        for mutant in mutants:
            print(f"{mutant.file}:{mutant.line}  ({mutant.kind})\n{mutant.diff(sources[mutant.file])}")
        return 0
    random.Random(asked.seed).shuffle(mutants)
    deadline = time.monotonic() + asked.seconds if asked.seconds else float("inf")
    tried: list[Result] = []
    try:
        with Scratch() as scratch:
            run = Run(scratch, Results(RESULTS, asked.again), sources)
            for number, mutant in enumerate(mutants, 1):
                if time.monotonic() > deadline:
                    break
                result = run.try_one(mutant)
                if result is None:
                    return 1
                tried.append(result)
                verdict = "SURVIVED" if result.killed_by is None else f"killed by {result.killed_by}"
                print(f"[{number}/{len(mutants)}] {result.place} ({result.kind}): {verdict}", flush=True)
    except KeyboardInterrupt:
        print("cut off; the next run goes on from here")
    report(tried)
    return 0


if __name__ == "__main__":
    sys.exit(main())

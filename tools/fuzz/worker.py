"""One part's process: inputs are made, run and judged.  Started by lane.py, on the sanitized build.

    python -m tools.fuzz.worker PART RECORD SEED EXECUTIONS SECONDS    0 executions: as many as there is time for
    python -m tools.fuzz.worker PART RECORD --input FILE

Exit code 0: nothing was wrong.  FAILED: a judge said so; the input stands in RECORD, made smaller,
and stderr has the exception.  Anything else: the process was ended from within, and the input that
was running stands in RECORD.
"""

from __future__ import annotations

import faulthandler
import random
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Hashable
from pathlib import Path

from tools.fuzz.minimise import minimise
from tools.fuzz.mutate import Mutator
from tools.fuzz.record import Record
from tools.fuzz.target import Target, descriptors, load

FAILED = 3
#: One execution in so many is thorough.
THOROUGH = 32
#: After so many executions the open descriptors are counted.
COUNTED = 512
#: Seconds for making a failing input smaller.
MINIMISING = 20.0


class LeakedError(AssertionError):
    """An execution left a descriptor open."""


def run_one(target: Target, data: bytes) -> None:
    """As a fuzzer's execution, with every judge."""
    before = descriptors()
    target.run(data, True)
    if descriptors() > before:
        raise LeakedError(f"{descriptors() - before} descriptors were left open")


def failure(target: Target, data: bytes) -> tuple[type[BaseException], str] | None:
    """What kind of failure this input is: the exception and the line that raised it."""
    try:
        run_one(target, data)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        return type(error), f"{frames[-1].filename}:{frames[-1].lineno}"
    return None


def fail(target: Target, record: Record, executions: int, data: bytes) -> int:
    kind = failure(target, data)
    if kind is not None:
        data = minimise(data, lambda smaller: failure(target, smaller) == kind, MINIMISING)
    record.note(executions, data)
    try:
        run_one(target, data)
    except Exception:
        traceback.print_exc()
    else:
        print("this input alone does not fail: those before it matter", file=sys.stderr)
    return FAILED


def fuzz(target: Target, record: Record, seed: str, executions: int, seconds: float) -> int:
    mutator = Mutator(random.Random(seed), target.corpus(), target.words)
    run, note, make = target.run, record.note, mutator.next
    seen: set[Hashable] = set()
    latest: deque[bytes] = deque(maxlen=COUNTED)
    data = b""
    count = 0
    begun, end = time.process_time(), time.monotonic() + seconds
    try:
        for data in mutator.corpus:
            # Before anything is changed, they are right in themselves.
            for thorough in (True, False):
                note(count, data)
                run(data, thorough)
                count += 1
        opened = descriptors()
        while count < executions or (not executions and time.monotonic() < end):
            for _ in range(min(COUNTED, executions - count) if executions else 16):
                data = make()
                note(count, data)
                latest.append(data)
                kind = run(data, count % THOROUGH == 0)
                count += 1
                if kind not in seen and len(seen) < 65536:
                    seen.add(kind)
                    mutator.keep(data)
            record.worked = time.process_time() - begun
            if count // COUNTED != (count - 16) // COUNTED and descriptors() > opened:
                return find_leak(target, record, count, latest)
        if descriptors() > opened:
            return find_leak(target, record, count, latest)
    except Exception:
        traceback.print_exc()
        return fail(target, record, count, data)
    note(count, b"")
    return 0


def find_leak(target: Target, record: Record, count: int, latest: deque[bytes]) -> int:
    leaking: Callable[[bytes], bool] = lambda data: failure(target, data) is not None  # noqa: E731
    return fail(target, record, count, next(filter(leaking, latest), latest[-1]))


def main(arguments: list[str]) -> int:
    part, path, *rest = arguments
    # Asked by lane.py where an execution does not end.
    faulthandler.register(signal.SIGUSR1)
    record = Record(Path(path))
    target = load(part)
    if rest[0] == "--input":
        data = Path(rest[1]).read_bytes()
        target.prepare()
        record.note(0, data)
        return FAILED if failed_loudly(target, data) else 0
    target.prepare()
    return fuzz(target, record, rest[0], int(rest[1]), float(rest[2]))


def failed_loudly(target: Target, data: bytes) -> bool:
    try:
        run_one(target, data)
    except Exception:
        traceback.print_exc()
        return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

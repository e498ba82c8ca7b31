"""Atheris on the targets of tools/fuzz whose judges are plain Python.

    python -m tests.fuzz.guided PART [libFuzzer's options]

The plain rules are instrumented: libFuzzer is led by their branches, and the compiled part must
agree with them.
"""

from __future__ import annotations

import inspect
import sys

from tests.reference import frames, logs, messages
from tools.fuzz.target import load

#: The targets, each with the rules that lead through it.
PARTS = {"messages": messages, "wire": messages, "frames": frames, "pings": frames, "lines": logs}


def main() -> None:
    import atheris

    part = sys.argv.pop(1)
    run = load(part).run

    def thorough(data: bytes) -> None:
        run(data, True)

    for function in vars(PARTS[part]).values():
        if inspect.isfunction(function) and function.__module__ == PARTS[part].__name__:
            atheris.instrument_func(function)
    atheris.Setup(sys.argv, thorough)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

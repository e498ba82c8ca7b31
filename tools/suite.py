"""Every test: first those that run one at a time, then those that may have neighbours, two files at a time.

    python -m tools.suite [pytest arguments]

Slow tests and virtual machines measure memory, time or a whole machine, which a neighbour would change:
they run alone.  An expression of one's own (-m) is run as it is, one test at a time.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

ALONE = "slow or vm"

#: Exit code of pytest: no test was found, as where the arguments name those of the other part alone.
NO_TESTS = 5


def parts(arguments: Sequence[str]) -> list[list[str]]:
    """The arguments of pytest for each run."""
    own = ["--durations=15", *arguments]
    if any(each.startswith("-m") for each in arguments):
        return [own]
    # The larger part last: its summary is what one reads.
    return [["-m", ALONE, *own], ["-n", "2", "--dist", "loadfile", "-m", f"not ({ALONE})", *own]]


def verdict(codes: Sequence[int]) -> int:
    """One exit code of several: the first that is a failure; NO_TESTS where no run has found any."""
    failed = [code for code in codes if code not in (0, NO_TESTS)]
    if failed:
        return failed[0]
    return 0 if 0 in codes else NO_TESTS


def main(arguments: Sequence[str]) -> int:
    codes = []
    for each in parts(arguments):
        codes.append(subprocess.run([sys.executable, "-m", "pytest", *each], check=False).returncode)
        if codes[-1] == 2:
            break  # interrupted
    if verdict(codes) not in (codes[-1], 0):
        # The last line of the last run says nothing of it.
        print("tests failed, further up")
    return verdict(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

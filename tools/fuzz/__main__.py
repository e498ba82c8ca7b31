"""The run: each compiled part on inputs made from valid ones, under ASan and UBSan.

    .venv/bin/python -m tools.fuzz
        --seconds N         in all, the same for each part (60)
        --executions N      in all, by the parts' shares, instead of a time
        --seed N            other inputs (1)
        --parts A,B         these alone
        --jobs N            parts at the same time (one a core)
        --input FILE        one saved input once more; its name begins with its part
        --list              the parts, and each one's share of the executions

A failing input is made smaller and saved below build/fuzz/.  Exit code 1: there was one.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tools.fuzz.lane import Lane, Outcome, run_again
from tools.fuzz.target import load, parts
from tools.sanitized import ROOT, build, environment

DIRECTORY = ROOT / "build" / "fuzz"
#: Seconds between two lines of progress.
SAID = 10.0
#: A report of either sanitizer ends the process with it.
ENDED = 77
#: Memory out of proportion to a small input is a finding.
ASAN = f"exitcode={ENDED}:quarantine_size_mb=16:max_allocation_size_mb=512:hard_rss_limit_mb=2048"
#: One execution in so many is on Python objects whose bounds ASan knows.
OBJECTS = 10
#: Seconds that make a lane worth its start.
LEAST = 2.0
UBSAN = f"exitcode={ENDED}"


def main(arguments: Sequence[str]) -> int:
    given = parse(arguments)
    if given.list:
        for part in parts():
            print(f"{part:12} {load(part).share}")
        return 0
    compiler = os.environ.get("CC") or "gcc"
    build(compiler)
    environ = environment(compiler, ASAN, UBSAN)
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    if given.input:
        status = run_again(given.input.name.partition("-")[0], given.input.resolve(), DIRECTORY, environ)
        print(f"{given.input}: {'no failure' if status == 0 else f'exit code {status}'}")
        return int(status != 0)
    # So that no worker outlives this process, and nothing is left in memory.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started = begin(given.parts, given.executions, given.seconds * given.jobs, environ)
    try:
        outcomes = run(list(started), given.seed, given.jobs)
    finally:
        for share in started:
            share.lane.stop()
    report(outcomes, len(given.parts), given.seed)
    return int(any(outcome.saved for outcome in outcomes))


class Share(NamedTuple):
    lane: Lane
    executions: int  # 0: as many as there is time for
    seconds: float


def begin(names: Sequence[str], executions: int, seconds: float, environ: Mapping[str, str]) -> list[Share]:
    """What each lane has to do; `seconds`: of all lanes together."""
    weights = {name: load(name).share for name in names}
    shares = []
    # What has the most to do comes first, so that all ends at about the same time.
    for name in sorted(names, key=lambda name: -weights[name]):
        # Rounded up: in all it is at least what was asked for.
        most = -(-executions * weights[name] // sum(weights.values()))
        time_ = seconds / len(names)
        with_objects = -(-most // OBJECTS) if most else 0
        quick = bool(most) or time_ / OBJECTS >= LEAST
        shares.append(Share(Lane(name, True, DIRECTORY, environ), with_objects, time_ / OBJECTS if quick else time_))
        if quick:
            lane = Lane(name, False, DIRECTORY, environ)
            shares.append(Share(lane, most - with_objects, time_ - time_ / OBJECTS))
    return shares


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools.fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--executions", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--parts", default=",".join(parts()))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--input", type=Path)
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args(arguments)
    given.parts = given.parts.split(",")
    unknown = set(given.parts) - set(parts())
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts())}")
    if given.jobs < 1 or given.executions < 0 or given.seconds <= 0:
        parser.error("--jobs and --seconds must be above 0, --executions 0 or more")
    return given


def run(waiting: list[Share], seed: int, jobs: int) -> list[Outcome]:
    """`jobs` lanes at a time."""
    running: list[Lane] = []
    outcomes: list[Outcome] = []
    begun = time.monotonic()
    said, done = begun, 0
    while waiting or running:
        while waiting and len(running) < jobs:
            lane, executions, seconds = waiting.pop(0)
            lane.start(seed, executions, seconds)
            running.append(lane)
        time.sleep(0.05)
        for lane in list(running):
            outcome = lane.poll()
            if outcome is not None:
                running.remove(lane)
                outcomes.append(outcome)
                say(outcome)
        now = time.monotonic()
        if now - said >= SAID:
            total = sum(outcome.executions for outcome in outcomes) + sum(lane.executions for lane in running)
            print(
                f"fuzz: {now - begun:5.0f} s  {total:,} executions, {(total - done) / (now - said):,.0f}/s now;"
                f" {'; '.join(f'{lane.name} at {lane.executions:,}' for lane in running)}",
                flush=True,
            )
            said, done = now, total
    return outcomes


def say(outcome: Outcome) -> None:
    rate = outcome.executions / outcome.seconds
    alone = outcome.executions / max(outcome.worked, 0.001)
    end = f"FAILED: {outcome.saved}" if outcome.saved else "nothing found"
    print(
        f"fuzz: {outcome.name:18} {outcome.executions:>10,} executions, {rate:>7,.0f}/s,"
        f" {alone:>7,.0f}/s of its processor time, {end}",
        flush=True,
    )


def report(outcomes: Sequence[Outcome], parts: int, seed: int) -> None:
    total = sum(outcome.executions for outcome in outcomes)
    failed = [outcome.name for outcome in outcomes if outcome.saved]
    end = f"failed: {', '.join(failed)}" if failed else "nothing found"
    print(f"fuzz: {total:,} executions of {parts} parts, seed {seed}: {end}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

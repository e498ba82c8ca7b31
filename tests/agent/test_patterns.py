"""The patterns of WaitForRequest: what they match, that they do so in time, and what is refused."""

from __future__ import annotations

import random
import re
import time

import pytest

from arcbox_agent.agent.waits.pattern import GivenUp, Pattern
from arcbox_agent.errors import BadRequestError

ATOMS = [*"abc_ -", ".", r"\d", r"\w", r"\s", r"\W", r"\b", "^", "$", "[ab]", "[^a]", "[a-c1]", r"[\d_]", r"[^\w]"]
ATOMS += ["[]a]", "[a-]", r"\.", r"\x61", "é", r"\-"]
REPEATS = ["*", "+", "?", "{2}", "{1,3}", "{,2}", "{2,}", "*?", "+?"]


def some_pattern(random: random.Random, depth: int) -> str:
    kind = random.randrange(6) if depth else 0
    if kind < 2:
        return str(random.choice(ATOMS))
    if kind == 2:
        return some_pattern(random, depth - 1) + some_pattern(random, depth - 1)
    if kind == 3:
        group = random.choice(["", "?:", "?P<name>"]) if depth == 3 else ""
        return f"({group}{some_pattern(random, depth - 1)}|{some_pattern(random, depth - 1)})"
    if kind == 4:
        return f"(?:{some_pattern(random, depth - 1)}){random.choice(REPEATS)}"
    return some_pattern(random, depth - 1)


@pytest.mark.parametrize("seed", range(4))
def test_it_matches_what_re_matches(seed: int) -> None:
    source = random.Random(seed)
    compared = 0
    while compared < 8000:
        text = source.choice(["", "", "", "(?i)"]) + some_pattern(source, 3)
        try:
            expected = re.compile(text)
        except re.error:
            continue
        try:
            pattern = Pattern(text)
        except BadRequestError as error:
            assert "nothing to repeat" in error.message, text
            continue
        for _ in range(10):
            line = "".join(source.choice("aAbBc_ 1-é.") for _ in range(source.randrange(9)))
            assert pattern.matches(line) == bool(expected.search(line)), (text, line)
            compared += 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("(a+)+$", "a" * 50_000 + "b"),
        ("^(a|aa)*$", "a" * 50_000 + "b"),
        ("(.*)*(.*)*=x", "a=" * 20_000),
        ("(a?){300}a{300}$", "a" * 1000 + "b"),
    ],
)
def test_what_backtracking_never_finishes_is_quick(text: str, line: str) -> None:
    began = time.process_time()
    assert not Pattern(text).matches(line)
    assert time.process_time() - began < 10


def test_who_gives_up_stops_it() -> None:
    pattern = Pattern("b.{100}c")
    pattern.given_up = True
    with pytest.raises(GivenUp):
        pattern.matches("abc" * 1000)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a" * 1001, "1001 characters: give 1000 or less"),
        ("(a", "at character 2: a ) is missing"),
        ("a)", "at character 1: this ) closes nothing"),
        ("[a", "a ] is missing"),
        ("*a", "nothing to repeat"),
        ("^*", "nothing to repeat"),
        (r"(a)\1", r"\1 is not known here"),
        ("(?=a)", r"of the groups with ?"),
        ("a{1001}", "repetitions are at most 1000"),
        ("a{3,2}", "{3,2} is upside down"),
        ("[b-a]", "b-a is upside down"),
        ("a++", "possessive"),
        ("(a{1000}){1000}", "more than 4000 steps"),
        ("((a{100}){100}){100}", "more than 4000 steps"),
        ("(" * 51 + ")" * 51, "more than 50 groups"),
        ("\\", "\\ is not known here"),
    ],
)
def test_what_it_does_not_know_is_refused(text: str, why: str) -> None:
    with pytest.raises(BadRequestError) as error:
        Pattern(text)
    assert why in error.value.message


def test_braces_that_say_no_number_are_themselves() -> None:
    assert Pattern('{"a": {}}').matches('x{"a": {}}')
    assert Pattern("a{,}").matches("a{,}")

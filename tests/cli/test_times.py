"""Points in time and lengths of time, as people write and read them."""

from __future__ import annotations

import time

import pytest

from arcbox_agent.cli.times import in_words, parse_duration, parse_moment, rfc3339

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
NOW = 1_795_455_912 * SECOND  # 2026-11-23T17:45:12Z


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1795455912", NOW),
        ("1795455912.25", NOW + 250_000_000),
        ("1795455912.000000001", NOW + 1),
        ("1795455912255151664", NOW + 255_151_664),
        ("2026-11-23T17:45:12Z", NOW),
        ("2026-11-23t17:45:12z", NOW),
        ("2026-11-23T18:45:12+01:00", NOW),
        ("2026-11-23T12:15:12-0530", NOW),
        ("2026-11-23T17:45:12.255151664Z", NOW + 255_151_664),
        ("2026-11-23T17:45:12.2Z", NOW + 200_000_000),
        ("2026-11-23T17:45Z", NOW - 12 * SECOND),
        ("2026-11-23Z", NOW - 12 * SECOND - 45 * MINUTE - 17 * HOUR),
        ("1969-12-31T23:59:59.5Z", -500_000_000),
        ("10m", NOW - 10 * MINUTE),
        ("1h30m", NOW - 90 * MINUTE),
        ("1.5s", NOW - 1_500_000_000),
        ("250ms", NOW - 250_000_000),
        ("2d", NOW - 2 * DAY),
    ],
)
def test_a_moment_is_what_docker_understands_by_it(text: str, expected: int) -> None:
    assert parse_moment(text, NOW) == expected


def test_a_moment_without_a_zone_is_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert parse_moment("2026-11-24T02:45:12", 0) == NOW
        assert parse_moment("2026-11-24", 0) == NOW - 2 * HOUR - 45 * MINUTE - 12 * SECOND
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "text",
    ["", "x", "10x", "m", "1m x", "-1h", "1h-1m", "1,5s", "2026-13-01", "2026-11-23T25:00Z", "2026-11-23T1Z", "٣"],
)
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_moment(text, NOW)


def test_the_refusal_says_what_is_understood() -> None:
    with pytest.raises(ValueError, match="'10x' is not a time: Unix seconds, RFC 3339, or a duration like 10m"):
        parse_duration("10x")


def test_a_time_is_written_to_the_nanosecond() -> None:
    assert rfc3339(NOW + 255_151_664) == "2026-11-23T17:45:12.255151664Z"
    assert rfc3339(1) == "1970-01-01T00:00:00.000000001Z"
    assert rfc3339(-1) == "1969-12-31T23:59:59.999999999Z"


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (-5 * SECOND, "Less than a second"),
        (SECOND - 1, "Less than a second"),
        (SECOND, "1 second"),
        (59 * SECOND, "59 seconds"),
        (60 * SECOND, "About a minute"),
        (119 * SECOND, "About a minute"),
        (2 * MINUTE, "2 minutes"),
        (60 * MINUTE - 1, "59 minutes"),
        (HOUR, "About an hour"),
        (90 * MINUTE, "2 hours"),
        (47 * HOUR, "47 hours"),
        (48 * HOUR, "2 days"),
        (13 * DAY, "13 days"),
        (14 * DAY, "2 weeks"),
        (59 * DAY, "8 weeks"),
        (60 * DAY, "2 months"),
        (729 * DAY, "24 months"),
        (730 * DAY, "2 years"),
    ],
)
def test_a_length_of_time_is_told_in_dockers_words(length: int, words: str) -> None:
    assert in_words(length) == words

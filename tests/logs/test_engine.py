"""The line engine against the plain-Python judge, and literal bytes of what it writes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from arcbox_agent import _lines, _log_output, _logs, wire
from arcbox_agent.logs import LogReader, Options, read_log
from tests.logs.support import pass_whole, plain, write_log
from tests.reference import logs as reference

STAMP = b"2026-11-23T17:45:12.255151664Z"
NS = 1795455912255151664

zones = st.sampled_from([b"Z", b"z", b"+00:00", b"-07:30", b"+23:59", b"+24:00", b""])
stamps = st.one_of(
    st.builds(
        lambda y, mo, d, h, mi, s, f, t, z: b"%04d-%02d-%02d%c%02d:%02d:%02d%s%s" % (y, mo, d, t, h, mi, s, f, z),
        st.one_of(st.just(2026), st.integers(0, 9999)),
        st.integers(0, 13),
        st.integers(0, 32),
        st.integers(0, 24),
        st.integers(0, 60),
        st.integers(0, 61),
        st.one_of(st.just(b""), st.integers(0, 11).map(lambda n: b"." + b"123456789012"[:n])),
        st.sampled_from(b"Tt "),
        zones,
    ),
    st.integers(0, 59).map(lambda s: b"2026-11-23T17:45:%02d.5Z" % s),
)
texts = st.one_of(
    st.binary(max_size=40).map(lambda text: text.replace(b"\n", b"")),
    st.sampled_from([b"", b"\r", b"\0", b"\xff\xfe", b"F", b" P ", b"x" * 300]),
    st.builds(
        b"[output lost: %d bytes, %d lines: %s%s".__mod__,
        st.tuples(
            st.sampled_from([0, 1, 2**64 - 1, 2**64 + 5]),
            st.integers(0, 9),
            st.binary(max_size=5),
            st.sampled_from([b"]", b""]),
        ),
    ).map(lambda text: text.replace(b"\n", b"")),
    st.sampled_from([b"[output lost: ", b"[output lost: 7 bytes", b"[output lost:  bytes,  lines: ]"]),
)
streams = st.sampled_from([b"stdout", b"stderr", b"stdin"])
tags = st.sampled_from([b"F", b"F", b"F", b"P", b"P", b"F:end", b"F:gap", b"P:gap", b"P:x:y", b"X", b""])
escapes = st.sampled_from(
    [
        "a",
        "\\n",
        "\\\\",
        '\\"',
        "\\/",
        "\\t",
        "\\u00e9",
        "\\ud83d\\ude00",
        "\\ud83d",
        "\\udc00x",
        "\\u0000",
        "\\x",
        "é",
        "\n",
    ]
)
lines = st.one_of(
    st.builds(b"%b %b %b %b".__mod__, st.tuples(stamps, streams, tags, texts)),
    st.builds(b"%b %b %b".__mod__, st.tuples(stamps, streams, tags)),
    st.builds(b"[%b] [%b]: %b".__mod__, st.tuples(stamps, streams, texts)),
    st.builds(
        lambda stamp, stream, text, end, more: (
            b'{"log":"%b%b","stream":"%b"%b,"time":"%b"}' % ("".join(text).encode(), end, stream, more, stamp)
        ),
        stamps,
        streams,
        st.lists(escapes, max_size=5),
        st.sampled_from([b"\\n", b""]),
        st.sampled_from([b"", b',"attrs":{"a":[1,"}"]}', b', "x" : null ']),
    ).map(lambda line: line.replace(b"\n", b"")),
    texts,
    st.sampled_from([b"{", b"[", b"2026", b'{"log":"x"}', b"{}"]),
)
lines = st.one_of(lines, lines, lines, st.builds(lambda n, line: b"\0" * n + line, st.integers(1, 200), lines))
ends = st.sampled_from([b"\n", b"\n", b"\n", b""])
contents = st.builds(lambda ls, end: b"\n".join(ls) + end, st.lists(lines, max_size=25), ends)


@given(
    contents,
    st.lists(st.integers(1, 60), max_size=30),
    st.sampled_from([1, 2, 7, 1 << 20]),
    st.booleans(),
    st.booleans(),
)
def test_a_file_says_the_same_however_it_is_cut_while_it_grows(
    content: bytes, pieces: list[int], part_limit: int, timestamps: bool, detail: bool
) -> None:
    expected = reference.read([content], part_limit=part_limit, timestamps=timestamps, detail=detail)
    found = pass_whole(content, pieces, part_limit=part_limit, timestamps=timestamps, detail=detail)
    # A long text's parts go out as they come, so entries of different streams may change places.
    for stream in ("stdout", "stderr"):
        assert [e for e in found if e.stream == stream and part_limit > 7] == [
            e for e in expected if e.stream == stream and part_limit > 7
        ] or sorted(found, key=repr) == sorted(expected, key=repr)
    if part_limit > 1000:
        assert found == expected


def test_a_file_says_the_same_when_it_is_cut_at_every_byte() -> None:
    content = b"\n".join(
        [
            STAMP + b" stdout F hello",
            STAMP + b" stderr P a\xff",
            b"[2026-11-23T17:45:12+01:00] [stderr]: b",
            b'{"log":"x\\u00e9\\n","stream":"stdout","time":"2026-11-23T17:45:12.5Z"}',
            b"",
            b"plain\r",
            STAMP + b" stdout P unended",
        ]
    )
    expected = reference.read([content])
    assert [e.data for e in expected] == [b"hello", b"a\xffb", "xé".encode(), b"", b"plain\r", b"unended"]
    for cut in range(len(content) + 1):
        assert pass_whole(content, [cut]) == expected
    assert pass_whole(content, [1] * len(content)) == expected


ranges = st.one_of(st.none(), st.integers(0, 59).map(lambda s: NS - 12_255151664 + s * 10**9 + 5 * 10**8))


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.lists(contents, min_size=1, max_size=4), st.integers(0, 12), st.booleans(), st.booleans(), ranges, ranges,
    st.booleans(), st.booleans(),
)  # fmt: skip
@example(
    [STAMP + b" stdout P a\n" + STAMP + b" stdout F:gap x\n" + STAMP + b" stdout F b\n"],
    2,
    True,
    True,
    None,
    None,
    False,
    True,
)
@example([b"", b""], 1, True, True, None, None, False, True)
def test_tail_since_until_and_streams_agree_with_the_judge(
    files: list[bytes], tail: int, stdout: bool, stderr: bool, since: int | None, until: int | None,
    timestamps: bool, unended: bool,
) -> None:  # fmt: skip
    options = {
        "stdout": stdout, "stderr": stderr, "tail": tail, "since": since, "until": until,
        "timestamps": timestamps,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        path = write_log(Path(directory), files)
        reader = LogReader(path, Options(**options), unended=unended)  # type: ignore[arg-type]
        entries = []
        while (piece := reader.step()) is not None:
            entries += piece
    assert plain(entries) == reference.read(files, unended=unended, detail=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"2026-11-23T17:45:12.255151664Z", NS),
        (b"2026-11-23T17:45:12Z", NS - 255151664),
        (b"2026-11-23t17:45:12.2z", NS - 55151664),
        (b"2026-11-23T18:45:12.255151664+01:00", NS),
        (b"2026-11-23T10:15:12.255151664-07:30", NS),
        (b"1970-01-01T00:00:00Z", 0),
        (b"1969-12-31T23:59:59.999999999Z", -1),
        (b"2000-02-29T00:00:00Z", 951782400 * 10**9),
        (b"2016-12-31T23:59:60Z", 1483228800 * 10**9),
        (b"0001-01-01T00:00:00Z", -(1 << 63) + 1),
        (b"9999-12-31T23:59:59Z", (1 << 63) - 1),
        (b"1900-02-29T00:00:00Z", None),
        (b"2026-13-01T00:00:00Z", None),
        (b"2026-11-23T17:45:12.Z", None),
        (b"2026-11-23T17:45:12.1234567890Z", None),
        (b"2026-11-23T17:45:12", None),
        (b"2026-11-23T17:45:12+0100", None),
        (b"2026-11-23 17:45:12Z", None),
        (b"2026-11-23T24:00:00Z", None),
        (b"", None),
    ],
)
def test_a_time_is_read_to_the_nanosecond(text: bytes, expected: int | None) -> None:
    assert _lines.parse_time(text) == expected


@given(st.integers(-(1 << 63) + 1, (1 << 63) - 1))
def test_a_time_is_written_as_it_is_read(stamp: int) -> None:
    text = _lines.format_time(stamp)
    assert text.encode() == reference.format_stamp(stamp)
    if abs(stamp) < 9223372035 * 10**9:
        assert _lines.parse_time(text.encode()) == stamp


def encode(version: str, content: bytes, **options: object) -> bytes:
    fd = os.memfd_create("log")
    os.write(fd, content)
    engine = _logs.Engine(version, **options)  # type: ignore[arg-type]
    _, frames = engine.read(fd)
    frames += engine.finish(fd)
    os.close(fd)
    return bytes(frames)


def test_a_line_becomes_a_v1_frame() -> None:
    assert encode("v1", STAMP + b" stderr F hi\n") == bytes.fromhex(
        "0000001a00001021"  # length, LogEntry
        "0a06737464657272"  # stream: stderr
        "12026869"  # data: hi
        "18b0bcdf9ebbb4aff518"  # timestamp
    )


def test_a_line_becomes_a_v2_frame_with_its_trace_id() -> None:
    assert encode("v2", STAMP + b" stdout P hi\n", trace=b"t1") == bytes.fromhex(
        "0000002400001021" "00027431"
        "0a067374646f7574" "12026869"
        "1a0b08a8f791d80610b09cd579"  # Timestamp: seconds, nanos
        "a00601"  # partial
    )  # fmt: skip


@given(contents, st.booleans())
def test_frames_decode_to_the_judges_entries(content: bytes, timestamps: bool) -> None:
    expected = reference.read([content], timestamps=timestamps)
    for version, message, trace in (
        ("v1", wire.LogEntry, None),
        ("v2", wire.LogEntryV2, "trace"),
        ("v2", wire.LogEntryV2, ""),
    ):
        frames = encode(version, content, timestamps=timestamps, trace=(trace or "").encode())
        whole = bytearray()
        for entry in expected:
            stamp: Any = entry.timestamp
            if version == "v2":
                seconds, nanos = divmod(entry.timestamp, 10**9)
                stamp = wire.Timestamp(seconds=seconds, nanos=nanos) if entry.timestamp else None
            whole += wire.encode_message(
                message(stream=entry.stream, data=entry.data, timestamp=stamp, partial=entry.partial), trace
            )
        assert frames == bytes(whole)
        if trace == "":
            retraced = _log_output.with_trace(frames, b"abc")
            assert retraced == encode(version, content, timestamps=timestamps, trace=b"abc")


def test_broken_frames_are_not_retraced() -> None:
    with pytest.raises(ValueError, match="not whole V2 frames"):
        _log_output.with_trace(b"\0\0\0\x20\0\0\x10\x21\0\0", b"x")


def test_a_line_of_two_windows_comes_in_parts_with_little_memory(tmp_path: Path) -> None:
    text = os.urandom(3 << 20).replace(b"\n", b"x")
    path = write_log(tmp_path, [STAMP + b" stdout F " + text + b"\n" + STAMP + b" stdout F end\n"])
    entries = list(read_log(path))
    assert [(len(e.data), e.partial) for e in entries] == [(1 << 20, True)] * 2 + [(1 << 20, False), (3, False)]
    assert b"".join(e.data for e in entries[:3]) == text
    assert plain(list(read_log(path, tail=1))) == plain(entries[3:])
    assert plain(list(read_log(path, tail=2))) == plain(entries)


@pytest.mark.parametrize("size", [(1 << 18) - 45, (1 << 18) - 41, 1 << 18, (1 << 18) + 1, 1 << 19, 700_001])
@pytest.mark.parametrize("tail", [1, 2, 3, 4, 5, 6, 7])
def test_tail_counts_lines_around_very_long_ones(tmp_path: Path, size: int, tail: int) -> None:
    short, long = STAMP + b" stdout F short\n", STAMP + b" stderr F " + b"x" * size + b"\n"
    files = [short + long + b"p" * size + b"\n" + short, long + short]
    path = write_log(tmp_path, files)
    assert plain(list(read_log(path, tail=tail))) == reference.read(files, tail=tail, detail=True)


def test_a_json_line_longer_than_the_window_is_plain_text(tmp_path: Path) -> None:
    line = b'{"log":"' + b"x" * (1 << 18) + b'\\n","stream":"stdout","time":"2026-11-23T17:45:12Z"}'
    path = write_log(tmp_path, [line + b"\n"])
    assert [e.data for e in read_log(path)] == [line]


@pytest.mark.parametrize("skip", [(), [0, 0], (0, 0, 0, 0)])
def test_a_place_to_go_on_at_has_an_offset_for_each_stream(skip: tuple[int, ...]) -> None:
    engine = _logs.Engine()
    with pytest.raises(ValueError, match="skip: expected 3 offsets"):
        engine.seek(7, skip)
    assert engine.offset == 0


def test_a_changed_file_is_noticed_though_it_has_grown_past_the_offset() -> None:
    fd = os.memfd_create("log")
    os.write(fd, STAMP + b" stdout F old line\n")
    engine = _logs.Engine()
    assert engine.read(fd)[0] == _logs.END
    os.ftruncate(fd, 0)
    os.pwrite(fd, (STAMP + b" stdout F new lines\n") * 10, 0)
    assert engine.read(fd) == (_logs.CHANGED, [])
    os.close(fd)


def test_a_line_longer_than_what_is_kept_is_no_change_of_the_file() -> None:
    fd = os.memfd_create("log")
    os.write(fd, STAMP + b" stdout F short\n")
    engine = _logs.Engine()
    assert engine.read(fd)[0] == _logs.END
    # The second read begins behind the long line, with the started one.
    os.write(fd, STAMP + b" stdout F " + b"x" * 6000 + b"\n" + STAMP + b" stdout F " + b"y" * 200_000)
    status, [entry] = engine.read(fd)
    assert (status, entry.data) == (_logs.END, b"x" * 6000)
    assert engine.read(fd) == (_logs.END, [])
    os.write(fd, b"\n")
    assert [entry.data for entry in engine.read(fd)[1]] == [b"y" * 200_000]
    assert engine.read(fd) == (_logs.END, [])
    os.ftruncate(fd, 0)
    os.pwrite(fd, (STAMP + b" stdout F new lines\n") * 10_000, 0)
    assert engine.read(fd) == (_logs.CHANGED, [])
    os.close(fd)


def keep_in_cache(fd: int, size: int) -> None:
    """Of a file, only the first `size` bytes; where its file system is all memory, everything."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    for at in range(0, size, 4096):
        os.pread(fd, 1, at)


@pytest.mark.parametrize("cached", [4096, 40_960, 131_072, 167_936])
@pytest.mark.parametrize("tail", [0, 1500])
def test_what_is_not_in_the_cache_is_waited_for(tmp_path: Path, cached: int, tail: int) -> None:
    content = b"".join(STAMP + b" stdout F %d\n" % number for number in range(20_000))
    path = write_log(tmp_path, [content, content])
    expected = [b"%d" % number for number in range(20_000)] * 2
    with open(path, "rb") as newer, open(f"{path}.1", "rb") as older:
        keep_in_cache(newer.fileno(), cached)
        keep_in_cache(older.fileno(), cached)
        reader = LogReader(path, Options(tail=tail))
        found: list[bytes] = []
        while (entries := reader.step(nowait=True)) is not None:
            if entries == _logs.BLOCKED:
                entries = reader.step()
            found += [entry.data for entry in entries]
    assert found == expected[-tail:]


@pytest.mark.parametrize("cached", [4096, 40_960, 131_072, 167_936])
def test_nothing_that_was_read_is_lost_where_the_rest_must_be_waited_for(tmp_path: Path, cached: int) -> None:
    content = b"".join(STAMP + b" stdout F %d\n" % number for number in range(20_000))
    with open(write_log(tmp_path, [content]), "rb") as log:
        keep_in_cache(log.fileno(), cached)
        engine = _logs.Engine("text")
        text = b""
        while engine.offset < len(content):
            status, output = engine.read(log.fileno(), nowait=True)
            text += output
            if status == _logs.BLOCKED:
                assert output == b""
                text += engine.read(log.fileno())[1]
            elif status == _logs.END:
                assert engine.offset == len(content)
    assert text.split() == [b"%d" % number for number in range(20_000)]

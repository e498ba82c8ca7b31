"""How many items a message may hold: each list and map has its bound, and so have all values together."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from arcbox_agent import wire
from arcbox_agent.errors import DecodeError, TooManyItemsError
from tests.conftest import REPOSITORY
from tools import generate_messages

#: Of all values of one message.
MAX_VALUES = 262144

#: (message, field) of every list and map of the schema.
FIELDS = [
    (message, field)
    for message in generate_messages.parse(generate_messages.SCHEMA)
    for field in message.fields
    if field.repeated
]
each_field = pytest.mark.parametrize(
    ("message", "field"), FIELDS, ids=[f"{message.name}.{field.name}" for message, field in FIELDS]
)

#: A field that no message has.
UNKNOWN = b"\xf8\x7e\x00"


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def items(field: generate_messages.Field, count: int) -> bytes:
    """So many items of a list or a map, all different where it is a map."""
    if field.packed:
        return b"".join(varint(field.number << 3 | 1) + bytes(8) for _ in range(count))
    tag = varint(field.tag)
    if not field.map:
        return (tag + b"\0") * count
    parts = []
    for i in range(count):
        key = b"%d" % i
        entry = b"\x0a" + varint(len(key)) + key
        parts.append(tag + varint(len(entry)) + entry)
    return b"".join(parts)


@each_field
def test_every_list_and_map_takes_what_the_schema_says_and_no_more(
    message: generate_messages.Declaration, field: generate_messages.Field
) -> None:
    cls: Any = getattr(wire, message.name)
    whole = cls.decode(items(field, field.most))
    assert len(getattr(whole, field.name)) == field.most
    with pytest.raises(TooManyItemsError) as caught:
        cls.decode(items(field, field.most + 1))
    assert (caught.value.path, caught.value.limit) == (f"{message.name}.{field.name}", field.most)
    assert str(caught.value) == (
        f"{message.name}.{field.name}: more than {field.most} items: send fewer in one message"
    )


def test_a_packed_list_is_judged_before_it_is_read() -> None:
    doubles = bytes(8 * 17)
    with pytest.raises(TooManyItemsError, match=r"^SystemInfo\.load_average: more than 16 items"):
        wire.SystemInfo.decode(field(8, doubles))
    assert wire.SystemInfo.decode(field(8, doubles[8:])).load_average == [0.0] * 16


def test_the_list_of_a_sub_message_is_named_by_its_place() -> None:
    command = field(105, b"") * 65537
    data = field(1, b"") + field(1, command)
    with pytest.raises(TooManyItemsError) as caught:
        wire.ListContainersResponse.decode(data)
    assert caught.value.path == "ListContainersResponse.containers[1].command"


#: What repeats without filling any list, and how many values each time is.
REPEATED = [
    pytest.param(wire.PingRequest, b"\x0a\x00", 1, id="a field that is overwritten"),
    pytest.param(wire.PingRequest, UNKNOWN, 1, id="an unknown field"),
    pytest.param(wire.Empty, UNKNOWN, 1, id="an unknown field of a message without any"),
    pytest.param(wire.Empty, b"\x0b\x0c", 2, id="an empty group"),
    pytest.param(wire.LogEntryV2, b"\x1a\x00", 1, id="a sub-message that is merged"),
    pytest.param(wire.LogEntryV2, b"\x1a\x02\x08\x01", 2, id="a field of a sub-message"),
    pytest.param(wire.ExecRequest, b"\x1a\x04\x0a\x00\x12\x00", 3, id="the same entry of a map"),
]


@pytest.mark.parametrize(("cls", "data", "values"), REPEATED)
def test_all_values_of_a_message_together_have_a_bound(cls: Any, data: bytes, values: int) -> None:
    cls.decode(data * (MAX_VALUES // values))
    with pytest.raises(TooManyItemsError, match=rf"^{cls.__name__}: more than {MAX_VALUES} values") as caught:
        cls.decode(data * (MAX_VALUES // values + 1))
    assert caught.value.limit == MAX_VALUES


def test_a_text_that_takes_more_memory_than_its_bytes_counts_by_that() -> None:
    # One wide character makes all of them wide: four bytes each instead of one.
    longest = 64 * (MAX_VALUES - 1) // 13 - 64
    text = b"x" * longest + "\N{GRINNING FACE}".encode()
    assert len(wire.PingRequest.decode(field(1, text)).message) == longest + 1
    with pytest.raises(TooManyItemsError, match=r"the last in PingRequest\.message"):
        wire.PingRequest.decode(field(1, b"x" * 128 + text))
    # It is as wide on the wire: it costs no more than its bytes.
    text = "\N{GRINNING FACE}".encode() * (1 << 20)
    assert len(wire.PingRequest.decode(field(1, text)).message) == 1 << 20
    words = wire.ExecRequest.decode(field(2, text) * 3).cmd
    assert [len(word) for word in words] == [1 << 20] * 3
    with pytest.raises(TooManyItemsError, match=r"^ExecRequest: more than 262144 values"):
        wire.ExecRequest.decode(field(2, text) * 4)
    with pytest.raises(TooManyItemsError, match=r"^PingRequest\.message: more than 4194304 bytes that are not ASCII"):
        wire.PingRequest.decode(field(1, text + b"x"))
    # An ASCII one counts as one, however long.
    assert len(wire.PingRequest.decode(field(1, b"x" * (16 << 20))).message) == 16 << 20


def test_the_decoder_of_frames_leaves_such_a_message_to_who_asks_for_its_frame() -> None:
    decoder = wire.FrameDecoder()
    decoder.feed(wire.encode_frame(0x10, field(8, b"") * 1025, "t"))
    assert decoder.next_messages() == ([], 0, None)
    frame = decoder.next_frame()
    assert frame is not None
    with pytest.raises(DecodeError, match=r"^CreateContainerRequest\.mounts: more than 1024 items"):
        wire.CreateContainerRequest.decode(frame.payload)


#: The frame's bytes stand in the child; what decoding adds to them is printed, in bytes.
CHILD = """
import resource, sys
from arcbox_agent import wire
cls = getattr(wire, sys.argv[1])
data = bytes.fromhex(sys.argv[2])
data *= (16 << 20) // len(data)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    cls.decode(data)
except wire.DecodeError:
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize(
    ("cls", "data"),
    [
        *(pytest.param(*each.values[:2], id=each.id) for each in REPEATED),
        pytest.param(wire.CreateContainerRequest, b"\x42\x00", id="mounts"),
        pytest.param(wire.ExecRequest, b"\x12\x02ab", id="words"),
        pytest.param(wire.ListContainersResponse, b"\x0a\x00", id="containers"),
        pytest.param(wire.ContainerTopResponse, b"\x12\x00", id="rows"),
        pytest.param(wire.AgentInfo, b"\x22\x00", id="listeners"),
    ],
)
def test_a_frame_costs_no_more_than_its_bytes_again(cls: Any, data: bytes) -> None:
    child = subprocess.run(
        [sys.executable, "-c", CHILD, cls.__name__, data.hex()], capture_output=True, text=True, check=True
    )
    assert int(child.stdout) < 24 << 20


def test_the_page_has_the_bounds_as_they_are() -> None:
    text = (REPOSITORY / "docs" / "protocol.md").read_text()
    rows = re.findall(r"^\| items of `([\w.]+)` \| (\d+) \| TooManyItemsError \|$", text, re.MULTILINE)
    declared = [(f"{message.name}.{field.name}", str(field.most)) for message, field in FIELDS]
    assert rows == [each for each in declared if each[1] != str(generate_messages.MOST_ITEMS)]
    assert f"| items of any other list or map | {generate_messages.MOST_ITEMS} |" in text
    assert f"| values of a message | {MAX_VALUES} |" in text
    assert "| a text that is not ASCII | 4 MiB |" in text

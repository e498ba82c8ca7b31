"""Message objects: what they are made of, what they refuse, how they are shown and kept."""

from __future__ import annotations

import array
import copy
import gc
import inspect
import pickle
import re
import sys
from typing import Any

import pytest

from arcbox_agent import wire
from tests.reference.google import GOOGLE

CLASSES: list[Any] = [getattr(wire, name) for name in GOOGLE]
each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


# ------------------------------------------------------------------- objects


@each_class
def test_fields_are_named_and_preset_as_in_the_schema(cls: Any) -> None:
    descriptor = GOOGLE[cls.__name__].DESCRIPTOR
    fields = sorted(descriptor.fields, key=lambda field: field.number)
    assert cls.__match_args__ == tuple(field.name for field in fields)
    message = cls()
    for field in fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
            assert value == ({} if is_map else [])
        elif field.message_type is not None:
            assert value is None
        else:
            assert value == field.default_value
            assert type(value) is type(field.default_value)


def test_a_field_is_given_by_its_name_only() -> None:
    message = wire.PingRequest(timestamp_secs=5, message="hi")
    assert (message.message, message.timestamp_secs) == ("hi", 5)
    make: Any = wire.PingRequest
    with pytest.raises(TypeError, match="takes keyword arguments only"):
        make("hi")
    with pytest.raises(TypeError, match="PingRequest has no field 'massage'"):
        make(massage="hi")


def test_a_name_that_was_put_together_is_a_name_too() -> None:
    # Not the interned str that a call in source code has.
    fields: dict[str, Any] = {b"message".decode(): "hi"}
    assert wire.PingRequest(**fields).message == "hi"


def test_an_unknown_attribute_is_refused() -> None:
    message: Any = wire.PingRequest()
    with pytest.raises(AttributeError):
        message.massage = "hi"
    with pytest.raises(AttributeError):
        _ = message.massage


def test_a_field_cannot_be_deleted() -> None:
    message = wire.PingRequest(message="hi")
    with pytest.raises(AttributeError, match="cannot be deleted"):
        del message.message
    create = wire.CreateContainerRequest(cmd=["a"])
    with pytest.raises(AttributeError, match="cannot be deleted"):
        del create.cmd
    assert (message.message, create.cmd) == ("hi", ["a"])


def test_a_field_deleted_behind_the_messages_back_is_refused_and_nothing_crashes() -> None:
    message = wire.FileChunk(path="/x", data=b"y", eof=True)
    for name in ("path", "data", "offset", "eof"):
        inspect.getattr_static(message, name).__delete__(message)
        with pytest.raises(wire.EncodeError, match=r"FileChunk\.\w+: expected \w+, not NoneType"):
            message.encode()
    stats = wire.ContainerStats()
    inspect.getattr_static(stats, "cpu").__delete__(stats)
    with pytest.raises(wire.EncodeError, match=r"ContainerStats\.cpu"):
        stats.encode()


def test_lists_and_maps_belong_to_one_message() -> None:
    first, second = wire.CreateContainerRequest(), wire.CreateContainerRequest()
    first.cmd.append("sleep")
    first.env["A"] = "1"
    first.mounts.append(wire.Mount(target="/m"))
    assert repr(first) == ("CreateContainerRequest(cmd=['sleep'], env={'A': '1'}, mounts=[Mount(target='/m')])")
    assert second == wire.CreateContainerRequest()
    assert (second.cmd, second.env, second.mounts) == ([], {}, [])
    assert first.encode() == bytes.fromhex("1a05736c656570 2a060a01411201 31 420412022f6d")


def test_a_tuple_becomes_a_list() -> None:
    request = wire.ExecRequest(cmd=("ls", "-l"))  # type: ignore[arg-type]
    assert request.cmd == ["ls", "-l"]
    assert wire.ExecRequest.decode(request.encode()) == request


def test_messages_are_equal_when_their_fields_are() -> None:
    assert wire.Mount(source="a") == wire.Mount(source="a")
    assert wire.Mount(source="a") != wire.Mount(target="a")
    assert wire.StartContainerRequest(id="a") != wire.PauseContainerRequest(id="a")
    assert wire.Mount() != object()
    read = wire.CreateContainerRequest()
    assert read.cmd == []
    assert read == wire.CreateContainerRequest()


def test_a_message_can_change_so_it_has_no_hash() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(wire.Empty())


def test_a_repr_shows_what_is_set_and_can_be_evaluated() -> None:
    message = wire.ContainerStats(container_id="c", cpu=wire.CpuStats(usage_percent=1.5))
    assert repr(message) == "ContainerStats(container_id='c', cpu=CpuStats(usage_percent=1.5))"
    assert eval(repr(message), vars(wire)) == message
    assert repr(wire.Empty()) == "Empty()"
    # What is wrong is shown as well.
    assert repr(wire.PingRequest(message=None)) == "PingRequest(message=None)"  # type: ignore[arg-type]


def test_a_message_can_be_matched_by_position() -> None:
    match wire.PingRequest(message="hi", timestamp_secs=3):
        case wire.PingRequest(text, 3):
            assert text == "hi"
        case _:
            pytest.fail("no match")


@each_class
def test_a_message_pickles_and_copies(cls: Any) -> None:
    message = cls()
    for name in cls.__match_args__:
        if isinstance(getattr(message, name), str):
            setattr(message, name, name)
    for again in (
        copy.copy(message),
        copy.deepcopy(message),
        *(pickle.loads(pickle.dumps(message, protocol)) for protocol in range(6)),
    ):
        assert again == message
        assert again is not message


def test_a_copy_shares_its_lists_and_a_deep_one_does_not() -> None:
    message = wire.CreateContainerRequest(mounts=[wire.Mount()])
    assert copy.copy(message).mounts is message.mounts
    deep = copy.deepcopy(message)
    deep.mounts[0].source = "x"
    assert message.mounts == [wire.Mount()]


def test_init_can_be_called_again() -> None:
    message = wire.PingRequest(message="a", timestamp_secs=1)
    message.__init__(message="b")
    assert message == wire.PingRequest(message="b", timestamp_secs=1)
    with pytest.raises(TypeError, match="has no field"):
        message.__init__(other="b")  # type: ignore[call-arg]


@each_class
def test_a_class_cannot_be_derived_from(cls: Any) -> None:
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Derived", (cls,), {})


def test_the_base_class_is_no_message() -> None:
    with pytest.raises(TypeError, match="Message is no class of the schema"):
        wire.Message.decode(b"")


def test_objects_are_used_again_without_a_trace_of_what_they_held() -> None:
    for _ in range(3):
        held = [wire.ExecRequest(container_id="c", cmd=["x"], env={"a": "b"}) for _ in range(600)]
        del held
        assert all(
            message == wire.ExecRequest() and message.encode() == b""
            for message in [wire.ExecRequest() for _ in range(600)]
        )


def test_what_a_message_held_is_let_go_with_it() -> None:
    data = b"unique bytes" * 50
    before = sys.getrefcount(data)
    messages = [wire.LogEntry(stream="stdout", data=data) for _ in range(1000)]
    assert sys.getrefcount(data) == before + 1000
    messages[0].data = b""
    assert sys.getrefcount(data) == before + 999
    del messages
    gc.collect()
    assert sys.getrefcount(data) == before
    with pytest.raises(TypeError):
        wire.LogEntry(data=data, unknown=1)  # type: ignore[call-arg]
    assert sys.getrefcount(data) == before


def test_nothing_leaks_in_the_round_and_when_refused() -> None:
    good = wire.CreateContainerRequest(
        name="n" * 40, cmd=["a" * 30], env={"k" * 20: "v" * 20}, mounts=[wire.Mount(source="é")]
    )
    encoded = good.encode()
    bad = wire.CreateContainerRequest(name="x", mounts=[wire.Mount(source="\ud800")])

    def work() -> None:
        for size in range(len(encoded)):
            try:
                wire.CreateContainerRequest.decode(encoded[:size])
            except wire.DecodeError:
                pass
        with pytest.raises(wire.EncodeError):
            bad.encode()
        assert wire.CreateContainerRequest.decode(encoded) == good

    work()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(20):
        work()
    gc.collect()
    assert sys.getallocatedblocks() - before < 100


# ------------------------------------------------------------- type numbers


def test_a_class_knows_its_type_number() -> None:
    assert wire.PingRequest.TYPE == int(wire.MessageType.PING_REQUEST) == 0x0001
    assert wire.Empty.TYPE == int(wire.MessageType.EMPTY) == 0
    assert wire.Error.TYPE == int(wire.MessageType.ERROR) == 0xFFFF
    assert wire.Mount.TYPE is None


def test_a_log_entry_has_a_layout_for_each_version() -> None:
    assert wire.LogEntry.TYPE == wire.LogEntryV2.TYPE == int(wire.MessageType.LOG_ENTRY) == 0x1021
    assert (wire.LogEntry.FRAME_VERSION, wire.LogEntryV2.FRAME_VERSION) == (1, 2)
    assert wire.message_class(0x1021) is wire.LogEntry
    assert wire.message_class(0x1021, 1) is wire.LogEntry
    assert wire.message_class(0x1021, 2) is wire.LogEntryV2


def test_every_type_number_has_its_class_in_both_versions() -> None:
    for number in wire.MessageType:
        for version in (1, 2):
            cls = wire.message_class(number, version)
            assert cls is not None
            assert cls.TYPE == number
            name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).upper()
            assert name.removesuffix("_V2") == number.name
    assert wire.message_class(0x7777) is None
    assert wire.message_class(1, 3) is None


# ----------------------------------------------------------- refused to encode

REFUSED: list[tuple[Any, str]] = [
    (wire.PingRequest(message=5), "PingRequest.message: expected str, not int"),  # type: ignore[arg-type]
    (wire.PingRequest(message=b"x"), "PingRequest.message: expected str, not bytes"),  # type: ignore[arg-type]
    (wire.PingRequest(message=None), "PingRequest.message: expected str, not NoneType"),  # type: ignore[arg-type]
    (
        wire.PingRequest(message="a\ud800"),
        "PingRequest.message: character 1 has no UTF-8: a lone surrogate",
    ),
    (
        wire.PingRequest(timestamp_secs=2**63),
        "PingRequest.timestamp_secs: 9223372036854775808 is not in the range"
        " -9223372036854775808 to 9223372036854775807",
    ),
    (
        wire.PingRequest(timestamp_secs=-(2**63) - 1),
        "PingRequest.timestamp_secs: -9223372036854775809",
    ),
    (wire.PingRequest(timestamp_secs=1.0), "PingRequest.timestamp_secs: expected int, not float"),  # type: ignore[arg-type]
    (wire.PingRequest(timestamp_secs="1"), "PingRequest.timestamp_secs: expected int, not str"),  # type: ignore[arg-type]
    (
        wire.StopContainerRequest(timeout=-1),
        "StopContainerRequest.timeout: -1 is not in the range 0 to",
    ),
    (
        wire.StopContainerRequest(timeout=2**32),
        "StopContainerRequest.timeout: 4294967296 is not in",
    ),
    (
        wire.CpuStats(usage_ns=-1),
        "CpuStats.usage_ns: -1 is not in the range 0 to 18446744073709551615",
    ),
    (wire.CpuStats(usage_ns=2**64), "CpuStats.usage_ns: 18446744073709551616 is not in"),
    (
        wire.ExecOutput(exit_code=2**31),
        "ExecOutput.exit_code: 2147483648 is not in the range -2147483648 to",
    ),
    (wire.ExecOutput(exit_code=-(2**31) - 1), "ExecOutput.exit_code: -2147483649 is not in"),
    (wire.ExecOutput(done=2), "ExecOutput.done: 2 is not in the range 0 to 1"),  # type: ignore[arg-type]
    (wire.ExecOutput(done="yes"), "ExecOutput.done: expected int, not str"),  # type: ignore[arg-type]
    (wire.ExecOutput(done=None), "ExecOutput.done: expected int, not NoneType"),  # type: ignore[arg-type]
    (wire.ExecOutput(data="text"), "ExecOutput.data: expected bytes, not str"),  # type: ignore[arg-type]
    (wire.ExecOutput(data=[1]), "ExecOutput.data: expected bytes, not list"),  # type: ignore[arg-type]
    (wire.CpuStats(usage_percent="1"), "CpuStats.usage_percent: expected float, not str"),  # type: ignore[arg-type]
    (
        wire.CpuStats(usage_percent=10**400),
        "CpuStats.usage_percent: the int is too large for a double",
    ),
    (wire.SystemInfo(load_average=[1.0, "2"]), "SystemInfo.load_average[1]: expected float, not str"),  # type: ignore[list-item]
    (wire.SystemInfo(load_average=1.0), "SystemInfo.load_average: expected list, not float"),  # type: ignore[arg-type]
    (wire.ExecRequest(cmd="ls"), "ExecRequest.cmd: expected list, not str"),  # type: ignore[arg-type]
    (wire.ExecRequest(cmd=None), "ExecRequest.cmd: expected list, not NoneType"),  # type: ignore[arg-type]
    (wire.ExecRequest(cmd=["ls", 5]), "ExecRequest.cmd[1]: expected str, not int"),  # type: ignore[list-item]
    (wire.ExecRequest(env=["A=1"]), "ExecRequest.env: expected dict, not list"),  # type: ignore[arg-type]
    (wire.ExecRequest(env={1: "x"}), "ExecRequest.env[1]: expected str, not int"),  # type: ignore[dict-item]
    (wire.ExecRequest(env={"A": None}), "ExecRequest.env['A']: expected str, not NoneType"),  # type: ignore[dict-item]
    (wire.AgentInfo(counters={"n": -1}), "AgentInfo.counters['n']: -1 is not in the range 0 to"),
    (
        wire.CreateContainerRequest(mounts=[wire.Mount(), wire.Mount(target=7)]),  # type: ignore[arg-type]
        "CreateContainerRequest.mounts[1].target: expected str, not int",
    ),
    (
        wire.CreateContainerRequest(mounts=[wire.Mount(), None]),  # type: ignore[list-item]
        "CreateContainerRequest.mounts[1]: expected Mount, not NoneType",
    ),
    (
        wire.CreateContainerRequest(mounts=wire.Mount()),  # type: ignore[arg-type]
        "CreateContainerRequest.mounts: expected list, not Mount",
    ),
    (
        wire.ContainerStats(cpu=wire.MemoryStats()),  # type: ignore[arg-type]
        "ContainerStats.cpu: expected CpuStats, not MemoryStats",
    ),
    (
        wire.ContainerStats(cpu=wire.CpuStats(usage_ns="1")),  # type: ignore[arg-type]
        "ContainerStats.cpu.usage_ns: expected int, not str",
    ),
    (wire.Error(code=2**31), "Error.code: 2147483648 is not in the range"),
    # Python writes no int of so many digits.
    (wire.Error(code=-(10**5000)), "Error.code: an int of 16610 bits is not in the range"),
    (wire.Error(message=None), "Error.message: expected str, not NoneType"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("message", "text"), REFUSED, ids=[text.split(" is ")[0] for _, text in REFUSED])
def test_a_value_of_the_wrong_type_or_range_is_refused_with_its_path(message: Any, text: str) -> None:
    with pytest.raises(wire.EncodeError, match="^" + re.escape(text)) as caught:
        message.encode()
    assert text.startswith(caught.value.path + ": ")
    assert isinstance(caught.value, ValueError)
    if message.TYPE is not None:
        with pytest.raises(wire.EncodeError, match="^" + re.escape(text)):
            wire.encode_message(message)


def test_what_converts_without_a_doubt_is_taken() -> None:
    assert wire.ExecOutput(exit_code=True).encode() == bytes.fromhex("1801")
    assert wire.ExecOutput(done=1).encode() == bytes.fromhex("2001")  # type: ignore[arg-type]
    assert wire.ExecOutput(done=0).encode() == b""  # type: ignore[arg-type]
    assert wire.CpuStats(usage_percent=2).encode() == bytes.fromhex("190000000000000040")
    assert wire.PingRequest(timestamp_secs=wire.MessageType.PING_REQUEST).encode() == b"\x10\x01"
    for data in (bytearray(b"ab"), memoryview(b"ab"), memoryview(b"xabx")[1:3]):
        assert wire.ExecOutput(data=data).encode() == bytes.fromhex("12026162")  # type: ignore[arg-type]
    assert wire.ExecOutput(data=bytearray()).encode() == b""  # type: ignore[arg-type]


def test_bytes_that_do_not_lie_together_are_refused() -> None:
    with pytest.raises(wire.EncodeError, match=r"^ExecOutput\.data: "):
        wire.ExecOutput(data=memoryview(b"abcd")[::2]).encode()  # type: ignore[arg-type]
    released = memoryview(b"ab")
    released.release()
    with pytest.raises(wire.EncodeError, match=r"^ExecOutput\.data: "):
        wire.ExecOutput(data=released).encode()  # type: ignore[arg-type]


def test_subclasses_of_the_plain_types_are_taken_as_what_they_are() -> None:
    class Text(str):
        __slots__ = ()

        def encode(self, *arguments: Any) -> bytes:
            raise AssertionError("the text's own method was run")

    class Number(int):
        def __index__(self) -> int:
            raise AssertionError("the number's own method was run")

        __lt__ = __le__ = __and__ = __index__  # type: ignore[assignment]

    class Real(float):
        def __float__(self) -> float:
            raise AssertionError("the number's own method was run")

    assert wire.PingRequest(message=Text("é"), timestamp_secs=Number(3)).encode() == (bytes.fromhex("0a02c3a9 1003"))
    assert wire.CpuStats(usage_ns=Number(2**64 - 1)).encode() == bytes.fromhex("08ffffffffffffffffff01")
    assert wire.SystemInfo(load_average=[Real(2.0)]).encode() == bytes.fromhex("42080000000000000040")


def test_a_message_longer_than_the_scratch_buffer_is_whole() -> None:
    for size in (65520, 65536, 65540, 200_000, 3_000_000):
        data = bytes([size % 251]) * size
        encoded = wire.ExecOutput(stream="stdout", data=data, exit_code=1).encode()
        assert wire.ExecOutput.decode(encoded) == wire.ExecOutput(stream="stdout", data=data, exit_code=1)
    many = wire.ListContainersResponse(
        containers=[wire.ContainerInfo(id=f"{n}" * 20, command=["x" * 100]) for n in range(3000)]
    )
    assert wire.ListContainersResponse.decode(many.encode()) == many
    env = {f"NAME_{n}": "v" * n for n in range(500)}
    assert wire.ExecRequest.decode(wire.ExecRequest(env=env).encode()).env == env


@pytest.mark.parametrize("size", [1, 2, 15, 16, 31, 32, 33, 34, 62, 63, 64, 65, 66, 127, 128, 129])
@pytest.mark.parametrize("letter", ["a", "é", "猫"], ids=ascii)
def test_a_text_of_every_length_has_its_bytes_everywhere(letter: str, size: int) -> None:
    """Short ones are copied in pieces of a set size, which must leave what stands beside them."""
    text = (letter * size)[:-1] + "z"
    body = text.encode()
    length = bytes([len(body)]) if len(body) < 128 else bytes([len(body) & 0x7F | 0x80, len(body) >> 7])
    field = length + body
    request = wire.ExecRequest(container_id=text, cmd=["x", text, ""], env={text: text}, working_dir=text, user="u")
    entry = b"\x0a" + field + b"\x12" + field
    entry_size = bytes([len(entry)]) if len(entry) < 128 else bytes([len(entry) & 0x7F | 0x80, len(entry) >> 7])
    assert request.encode() == (
        b"\x0a" + field + b"\x12\x01x\x12" + field + b"\x12\x00"
        b"\x1a" + entry_size + entry + b"\x22" + field + b"\x2a\x01u"
    )
    chunk = wire.FileChunk(path=text, data=body, offset=1)
    assert chunk.encode() == b"\x0a" + field + b"\x12" + field + b"\x18\x01"
    # A tag of two bytes: field 106.
    assert wire.ContainerInfo(name=text, error=text).encode() == b"\x12" + field + b"\xd2\x06" + field


@pytest.mark.parametrize("bits", range(64))
def test_an_integer_of_every_size_has_the_bytes_google_gives_it(bits: int) -> None:
    for number in (1 << bits, (1 << bits) - 1, (1 << bits) + 1):
        theirs = GOOGLE["MemoryStats"](usage=number, limit=1, cache=number)
        assert wire.MemoryStats(usage=number, limit=1, cache=number).encode() == theirs.SerializeToString()
        for signed in (number, -number):
            if -(1 << 63) <= signed < 1 << 63:
                expected = GOOGLE["PingRequest"](message="m", timestamp_secs=signed)
                ours = wire.PingRequest(message="m", timestamp_secs=signed)
                assert ours.encode() == expected.SerializeToString()


@pytest.mark.parametrize("short", [1, 32, 64])
def test_what_does_not_fit_any_more_is_as_whole_as_what_does(short: int) -> None:
    """The scratch buffer grows inside a message, wherever its beginning was reached."""
    name = "n" * short
    for left in range(100):
        # One that is too large to be kept, so that the next begins with 64 KiB again.
        wire.FileChunk(data=bytes(2 << 20)).encode()
        fields: dict[str, Any] = {
            "id": name,
            "name": name,
            "created": 1 << 40,
            "pid": 7,
            "command": [name, name],
            "error": "e" * (0x10000 - left),
        }
        ours = wire.ListContainersResponse(containers=[wire.ContainerInfo(**fields), wire.ContainerInfo(id=name)])
        container = GOOGLE["ContainerInfo"]
        theirs = GOOGLE["ListContainersResponse"](containers=[container(**fields), container(id=name)])
        assert ours.encode() == theirs.SerializeToString()


def test_a_list_that_was_read_and_is_empty_is_left_out() -> None:
    message = wire.ContainerInfo(id="a")
    assert (message.command, message.warnings) == ([], [])
    assert message.encode() == b"\x0a\x01a"
    request = wire.ExecRequest(user="a")
    assert (request.cmd, request.env) == ([], {})
    assert request.encode() == b"\x2a\x01a"


def test_a_map_keeps_its_order() -> None:
    env = {name: name.lower() for name in "ZQAXB"}
    assert list(wire.ExecRequest.decode(wire.ExecRequest(env=env).encode()).env) == list("ZQAXB")


# ----------------------------------------------------------- refused to decode

BROKEN = [
    ("PingRequest", "0a0361", "PingRequest.message: length 3 is more than the 1 bytes left"),
    ("PingRequest", "0a02c328", "PingRequest.message: not UTF-8 at byte 0"),
    ("PingRequest", "0a03eda080", "PingRequest.message: not UTF-8 at byte 0"),
    ("PingRequest", "10", "PingRequest.timestamp_secs: the message ends inside a varint"),
    ("PingRequest", "1080", "PingRequest.timestamp_secs: the message ends inside a varint"),
    (
        "PingRequest",
        "10" + "80" * 10 + "00",
        "PingRequest.timestamp_secs: a varint is longer than ten bytes",
    ),
    ("PingRequest", "00", "PingRequest: field number 0"),
    ("PingRequest", "0e", "PingRequest.message: wire type 6"),
    ("PingRequest", "1f", "PingRequest.3: wire type 7"),
    ("PingRequest", "0c", "PingRequest.message: a group ends that did not begin"),
    ("StartContainerRequest", "a306", "StartContainerRequest.100: the message ends inside a group"),
    ("StartContainerRequest", "a306ac06", "StartContainerRequest.100: group 101 ends inside it"),
    ("StartContainerRequest", "a306" * 101 + "a406" * 101, "StartContainerRequest.100: groups nest deeper than 100"),
    ("StartContainerRequest", "a50600", "StartContainerRequest.100: the message ends inside a fixed-width value"),
    ("PingRequest", "808080801001", "PingRequest: field number 536870912 is above 536870911"),
    ("PingRequest", "8a808080800001", "PingRequest: a tag is longer than five bytes"),
    ("PingRequest", "0a818080808000", "PingRequest.message: a length is longer than five bytes"),
    ("CpuStats", "19000000", "CpuStats.usage_percent: the message ends inside a double"),
    (
        "SystemInfo",
        "42070000000000000000",
        "SystemInfo.load_average: 7 bytes are no whole number of doubles",
    ),
    ("ContainerStats", "12020880", "ContainerStats.cpu.usage_ns: the message ends inside a varint"),
    (
        "CreateContainerRequest",
        "4200 42030a0561",
        "CreateContainerRequest.mounts[1].source: length 5 is",
    ),
    ("ExecRequest", "1a030a01ff", "ExecRequest.env: not UTF-8 at byte 0"),
    ("Error", "000001", "Error.code: the message ends inside the code"),
    ("Error", "0000019000", "Error.message: the message ends inside the length of the text"),
    ("Error", "00000190000000036162", "Error.message: length 3 is more than the 2 bytes left"),
    ("Error", "0000019000000001ff", "Error.message: not UTF-8 at byte 0"),
]


@pytest.mark.parametrize(("name", "data", "text"), BROKEN, ids=[text for _, _, text in BROKEN])
def test_broken_bytes_are_refused_with_the_path_of_the_field(name: str, data: str, text: str) -> None:
    with pytest.raises(wire.DecodeError, match="^" + re.escape(text)) as caught:
        getattr(wire, name).decode(bytes.fromhex(data))
    assert text.startswith(caught.value.path + ": ")


@pytest.mark.parametrize("wrong", ["text", 5, None, [1], array.array("i", [1])[0]])
def test_decode_takes_bytes_only(wrong: Any) -> None:
    with pytest.raises(TypeError):
        wire.PingRequest.decode(wrong)


@pytest.mark.parametrize(
    ("payload", "code", "text"),
    [
        ("00000194 00000002 6e6f", 404, "no"),
        ("00000194 00000002 6e6f 2121", 404, "no"),
        ("00000194 000000ff 6e6f", 404, "no"),
        ("00000194 00000003 6eff6f", 404, "n\N{REPLACEMENT CHARACTER}o"),
        ("00000194 0000", 404, ""),
        ("00000194", 404, ""),
        ("ffffffff 00000000", -1, ""),
        ("000194", 500, ""),
        ("", 500, ""),
    ],
)
def test_an_error_is_shown_as_far_as_it_goes(payload: str, code: int, text: str) -> None:
    for kind in (bytes, bytearray, memoryview):
        error = wire.decode_error(kind(bytes.fromhex(payload)))
        assert (error.code, error.message) == (code, text)

"""A record may hold anything: it is set aside, or every call about it has a typed answer."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent import sync
from arcbox_agent.agent.containers.record import FIELDS, PIECE, Record, RecordError
from arcbox_agent.agent.containers.store import MAX_RECORD, Store
from arcbox_agent.errors import RequestError

from .support import text_of

SEED = 20261127


def hostile_values(rng: random.Random) -> list[Any]:
    """What a field may hold instead of its value."""
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    return [
        None,
        True,
        0,
        -1,
        1 << 31,
        1 << 63,
        -(1 << 70),
        10**30,
        0.5,
        float("nan"),
        float("inf"),
        "",
        "a\0b",
        "\ud800",
        "../../etc/passwd",
        "\x1b[2J" * 1000,
        "x" * 100_000,
        [],
        ["a\0b"],
        ["\udfff"],
        [1],
        [[]],
        [["bind", "/", "relative", False]],
        [["bind", "/\0", "/x", False]],
        [["none", "/", "/x", False]],
        [["bind", "/", "/x", 1]],
        [["bind", "/", "/x", False]] * 300,
        {},
        {"": "x"},
        {"A=B": "x"},
        {"A": "\0"},
        {"A": "\ud800"},
        {"A": 1},
        deep,
        "".join(chr(rng.randrange(1, 0xD800)) for _ in range(50)),
        rng.randrange(1 << 80),
    ]


def test_every_field_with_every_hostile_value_is_refused_or_has_a_typed_answer(start_agent: Callable[..., Any]) -> None:
    agent = start_agent(containers_at_exit="leave")
    with sync.connect(agent.address, wait=10) as client:
        good = client.create_container(cmd=["/bin/true"], name="good").id
        client.start_container(good)
        client.wait_container(good)
    agent.kill()
    records = agent.state_dir / "containers"
    valid = json.loads((records / f"{good}.json").read_text())
    rng = random.Random(SEED)
    written = {}
    for field in (*FIELDS, "format", "id"):
        for number, value in enumerate(hostile_values(rng)):
            id = f"{field.replace('_', '-')}-{number}"
            (records / f"{id}.json").write_text(json.dumps({**valid, "id": id, "name": "", field: value}))
            written[id] = (field, value)
    agent.restart()
    taken = 0
    with sync.connect(agent.address, wait=10) as client:
        listed = {each.id for each in client.list_containers(all=True)}
        assert good in listed
        for id, (field, value) in written.items():
            taken += id in listed
            for call in (client.start_container, client.kill_container, client.container_stats, client.stop_container):
                try:
                    call(id)
                except RequestError as error:
                    assert "internal error" not in error.message, (field, value, text_of(error))
            if id in listed:
                client.remove_container(id, force=True)
        assert [each.id for each in client.list_containers(all=True)] == [good]
    assert 0 < taken < len(written) // 2  # a record without a name, for instance, is one
    assert agent.log().count("a container's record is damaged and set aside") == len(written) - taken
    assert "Traceback" not in agent.log()


@pytest.mark.parametrize("seed", range(4))
def test_octets_changed_anywhere_in_a_record_make_another_record_or_none(seed: int) -> None:
    record = Record("x", command=["sh", "-c", "é\n"], env={"A": "b"}, mounts=[["tmpfs", "", "/t", True]])
    octets = record.encode()
    rng = random.Random(SEED + seed)
    for _ in range(5000):
        changed = bytearray(octets)
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(len(changed))
            changed[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        try:
            found = Record.decode(bytes(changed), "x")
        except RecordError:
            continue
        assert Record.decode(found.encode(), "x").encode() == found.encode()


def test_a_record_of_many_texts_is_written_in_pieces_and_is_the_same() -> None:
    for count in (PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7):
        record = Record("x", command=[f"a{i}" for i in range(count)], env={f"N{i}": "\x01é" for i in range(count)})
        fields = json.loads(record.encode())
        assert (fields["command"], fields["env"]) == (record.command, record.env)
        assert Record.decode(record.encode(), "x").encode() == record.encode()


def _directory(path: Path) -> None:
    (path / "below").mkdir(parents=True)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, MAX_RECORD + 1)


@pytest.mark.parametrize(
    "make",
    [
        _directory,
        _socket,
        _huge,
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("good.json"),
        lambda path: os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5)),
        lambda path: path.write_bytes(b"\xff\xfe{\0}\0"),
        lambda path: path.write_bytes(b"[" * 1_000_000),
        lambda path: path.write_bytes(b'{"format": 2, "id": "bad", "run": ' + b"9" * 100_000 + b"}"),
    ],
)
def test_whatever_is_in_the_place_of_a_record_is_set_aside(tmp_path: Path, make: Callable[[Path], None]) -> None:
    store = Store(str(tmp_path), str(tmp_path / "run"))
    store.prepare()
    store.write(Record("good", command=["true"]))
    (tmp_path / "containers" / "stuck.json.tmp").mkdir()
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(2):  # what was set aside before is not lost
        make(tmp_path / "containers" / "bad.json")
        assert [each.id for each in store.load()] == ["good"]
    assert set(os.listdir("/proc/self/fd")) == before
    assert sorted(os.listdir(tmp_path / "containers")) == [
        "bad.json.damaged",
        "bad.json.damaged.2",
        "good.json",
        "stuck.json.tmp",
    ]


def test_of_two_records_with_one_name_the_second_is_set_aside(tmp_path: Path) -> None:
    store = Store(str(tmp_path), str(tmp_path / "run"))
    store.prepare()
    for record in (Record("a", name="n", command=["true"]), Record("b", name="n", command=["true"])):
        store.write(record)
    store.write(Record("n", command=["true"]))
    assert [each.id for each in store.load()] == ["a"]
    assert (tmp_path / "containers" / "b.json.damaged").exists()

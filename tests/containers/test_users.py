"""passwd and group files of any content: an answer that is right, soon, and without much memory."""

from __future__ import annotations

import os
import random
import resource
import time
from pathlib import Path

import pytest

from arcbox_agent._entries import find, groups_of
from arcbox_agent.agent.processes.users import MAX_FILE, User, look_up
from arcbox_agent.errors import BadRequestError
from tools.pace import patience

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nal:x:41:42::/home/al:/bin/sh\n41:x:43:44::/odd:/bin/sh"
GROUP = b"root:x:0:\nal:x:42:\none:x:51:al\ntwo:x:52:bob,al\nthree:x:53:alb,bal,al,\ntwice:x:51:al\nmore:x:54:al:x"


def rootfs_of(tmp_path: Path, passwd: bytes, group: bytes = b"") -> str:
    (tmp_path / "etc").mkdir(exist_ok=True)
    (tmp_path / "etc" / "passwd").write_bytes(passwd)
    (tmp_path / "etc" / "group").write_bytes(group)
    return str(tmp_path)


def user_of(user: User) -> tuple[object, ...]:
    return user.uid, user.home, user.ids


def test_a_user_is_found_by_name_and_by_number(tmp_path: Path) -> None:
    root = rootfs_of(tmp_path, PASSWD, GROUP)
    assert user_of(look_up(root, "al")) == (41, "/home/al", (41, 42, (51, 52, 53, 54)))
    assert user_of(look_up(root, "41")) == (43, "/odd", (43, 44, ()))  # a name comes before a number
    assert user_of(look_up(root, "43")) == (43, "/odd", (43, 44, ()))
    assert user_of(look_up(root, "99:two")) == (99, "/", (99, 52, ()))
    assert user_of(look_up(root, "al:52")) == (41, "/home/al", (41, 52, ()))


def slow_find(data: bytes, name: bytes, columns: int, by_number: bool) -> list[bytes] | None:
    rows = [row for row in (line.split(b":", 6) for line in data.split(b"\n")) if len(row) >= columns]
    found = [row for row in rows if row[0] == name] or [row for row in rows if by_number and row[2] == name]
    return found[0] if found else None


def slow_groups(data: bytes, name: bytes) -> tuple[int, ...]:
    rows = [row for row in (line.split(b":", 6) for line in data.split(b"\n")) if len(row) >= 4]
    numbers = [
        int(row[2])
        for row in rows
        if row[2].isdigit() and len(row[2]) <= 10 and int(row[2]) < 0xFFFFFFFF and name in row[3].split(b",")
    ]
    return tuple(dict.fromkeys(numbers))


@pytest.mark.parametrize("seed", range(20))
def test_the_scan_finds_what_a_simple_one_finds(seed: int) -> None:
    rng = random.Random(seed)
    words = [b"", b"a", b"ab", b"1", b"12", b"4294967294", b"4294967295", b"99999999999", b"\xff", b"\0", b"a,1", b"1a"]
    for _ in range(500):
        data = b"".join(rng.choice([*words, b":", b":", b":", b",", b"\n"]) for _ in range(rng.randrange(60)))
        for name in words:
            for columns in (3, 6):
                for by_number in (False, True):
                    assert find(data, name, columns, by_number) == slow_find(data, name, columns, by_number)
            assert groups_of(data, name, 65536) == slow_groups(data, name)


@pytest.mark.parametrize("line", [b"\n", b":", b":\n", b":::::::", b"a:b:41:al", b"x:x:5:al\n", b",", b"x:x:7:al,"])
def test_a_file_of_any_content_is_scanned_soon_and_in_little_memory(tmp_path: Path, line: bytes) -> None:
    file = (line * MAX_FILE)[:MAX_FILE]
    root = rootfs_of(tmp_path, file, file)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    assert look_up(root, "0").uid == 0
    with pytest.raises(BadRequestError, match="no such name in the passwd file"):
        look_up(root, "al")
    with pytest.raises(BadRequestError, match="no such name in the group file"):
        look_up(root, "0:nobody")
    assert time.monotonic() - start < patience(10)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_no_more_groups_are_taken_than_the_kernel_takes(tmp_path: Path) -> None:
    lines = b"".join(b"g:x:%d:al\n" % number for number in range(70_000))
    assert look_up(rootfs_of(tmp_path, PASSWD, lines), "al").ids == (41, 42, tuple(range(65536)))


@pytest.mark.parametrize("file", ["passwd", "group"])
def test_a_file_that_is_too_large_is_an_error_that_names_it(tmp_path: Path, file: str) -> None:
    root = rootfs_of(tmp_path, PASSWD, GROUP)
    os.truncate(tmp_path / "etc" / file, MAX_FILE)
    assert look_up(root, "al").uid == 41
    os.truncate(tmp_path / "etc" / file, MAX_FILE + 1)
    with pytest.raises(BadRequestError, match=f"the /etc/{file} of the container is larger than {MAX_FILE} bytes"):
        look_up(root, "al")


@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "link out", "socket in the way"])
def test_what_is_no_file_is_no_passwd(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    path = Path(rootfs_of(root, b"", GROUP)) / "etc" / "passwd"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
    elif kind == "link out":
        (tmp_path / "passwd").write_bytes(PASSWD)
        path.symlink_to("../../passwd")
    else:
        path.parent.joinpath("group").unlink()
        path.parent.rmdir()
        os.mkfifo(root / "etc")
    assert look_up(str(root), "41").home == "/"
    with pytest.raises(BadRequestError, match="unknown user 'al'"):
        look_up(str(root), "al")

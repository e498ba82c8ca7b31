"""_spawn: plans of every kind, most of them wrong; names resolved inside a root; the ends of processes.

    data: 0    a path, opened in a root that has links out of it
          1..  a plan: it is refused, or a harmless program runs and ends

The judge: typed errors only, no descriptor and no process left, and nothing opened outside the root.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from arcbox_agent import _spawn
from tools.fuzz.draw import Draw
from tools.fuzz.target import Target

_world: list[tuple[int, Path, int]] = []  # the root's descriptor and path, and /dev/null
PIECES = [b"..", b".", b"", b"dir", b"out", b"loop", b"up", b"file", b"passwd", b"x" * 256, b"\xff", b"nul\0"]
PROGRAMS: list[Any] = ["/bin/true", "/nonexistent", "/", "/dev/null", "/etc/passwd", "", b"\xff", "\udcff", "a\0b", 7]


def world() -> tuple[int, Path, int]:
    """A root with a directory, a file, and links that lead out of it and into themselves."""
    if not _world:
        root = Path(tempfile.mkdtemp())
        (root / "dir").mkdir()
        (root / "file").write_bytes(b"inside")
        (root / "out").symlink_to("/etc")
        (root / "up").symlink_to("../../..")
        (root / "dir" / "loop").symlink_to("loop")
        (root / "loop").symlink_to("dir/../loop")
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        # Where a plan's descriptors may be: low numbers are refused.
        high = os.dup2(null, 200, inheritable=False)
        os.close(null)
        _world.append((os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), root, high))
    return _world[0]


def corpus() -> list[bytes]:
    return [
        b"\0\3\3\7\0",
        b"\0\6\4\10\1",
        b"\0\5\5\5",
        b"\1" + bytes(30),
        b"\1\0\1\0\0" + b"\1\2\3\4" * 8,
        b"\2" + bytes(range(40)),
        b"\3" + bytes(range(200, 255)),
    ]


def run(data: bytes, thorough: bool) -> Hashable:
    draw = Draw(data)
    return opened(draw) if draw.byte() % 4 == 0 else planned(draw, thorough)


def opened(draw: Draw) -> Hashable:
    fd, root, _ = world()
    path = b"/".join(PIECES[draw.byte() % len(PIECES)] for _ in range(draw.byte() % 12))
    flags = draw.choice([os.O_RDONLY, os.O_PATH, os.O_RDONLY | os.O_DIRECTORY, os.O_RDONLY | os.O_NOFOLLOW, -1])
    given: Any = draw.choice([path, os.fsdecode(path), path + b"/" * draw.byte()])
    try:
        found = _spawn.open_in_root(draw.choice([fd, fd, fd, fd, -1, 999]), given, flags)
    except ValueError:
        assert b"\0" in path
        return "NUL"
    except OSError as error:
        return "refused", error.errno
    try:
        assert not os.get_inheritable(found)
        assert Path(os.readlink(f"/proc/self/fd/{found}")).is_relative_to(root), "outside the root"
    finally:
        os.close(found)
    return "opened", path.count(b"/")


def planned(draw: Draw, thorough: bool) -> Hashable:
    plan = plans(draw)
    # A process costs a millisecond: few plans come so far, and only where every judge is at work.
    if not thorough:
        plan["argv"] = draw.choice([[], ["a\0b"], [7], None, 5])
    try:
        _, pidfd = _spawn.spawn(**plan)
    except (ValueError, TypeError, OverflowError, KeyError, IndexError, AttributeError) as error:
        return type(error).__name__, str(error)[:12]
    except _spawn.SpawnError as error:
        assert error.step in _spawn.STEPS and error.errno > 0
        return error.step, error.errno
    try:
        assert not os.get_inheritable(pidfd)
        ended = None
        while ended is None:
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
            ended = _spawn.take_status(pidfd)
        assert ended[1] in (0, signal.SIGKILL, signal.SIGXCPU, signal.SIGSEGV, signal.SIGSYS) or ended[0] == 127
        try:
            _spawn.take_status(pidfd)
            raise AssertionError("a status was taken twice")
        except ChildProcessError:
            pass
    finally:
        os.close(pidfd)
    return "ran", ended


def plans(draw: Draw) -> dict[str, Any]:
    fd, root, null = world()
    wrong: list[Any] = [-1, 0, 2, 999, 1 << 40, None, "x"]
    plan: dict[str, Any] = {
        "programs": [draw.choice(PROGRAMS) for _ in range(draw.byte() % 4)] or ["/bin/true"],
        "argv": ["true", *(draw.block() for _ in range(draw.byte() % 3))],
        "env": [draw.choice(["A=B", b"\xff=\xfe", "", "x" * 200]) for _ in range(draw.byte() % 4)],
        "stdio": [null] * 3,
    }
    if draw.chance(6):
        plan["stdio"] = draw.choice(
            [[], (), (null,), [null, null], [null] * 3 + [7] * draw.byte(), "abc", [draw.choice(wrong)] * 3]
        )
    if draw.chance(4):
        plan[draw.choice(["keep_fd", "pid_fd", "cgroup_fd", "join_fd"])] = draw.choice([*wrong, null, fd])
    if draw.chance(8):
        plan["cwd"] = draw.choice(["/", "/nonexistent", "a\0b", b"\xff", "x" * 5000, 3])
    if draw.chance(8):
        plan["root"] = draw.choice([str(root), "/", "/nonexistent", b"\0", 5])
    if draw.chance(8):
        plan["terminal"] = True
    if draw.chance(8):
        plan["new_session"] = False
    if draw.chance(6):
        plan["ids"] = draw.choice(
            [
                (65534, 65534, ()),
                (65534, 65534, [1, 2, 3]),
                (-1, -1, []),
                (1 << 40, 0, []),
                (0,),
                (1, 2, ["x"]),
                (1, 1, range(70000)),
                5,
            ]
        )
    if draw.chance(6):
        # Nothing that a fork of this process would need: these are the program's own.
        plan["rlimits"] = [
            (draw.choice([0, 4, 7, 99, -1]), draw.choice([64, 1 << 20, -1, 1 << 70]), draw.choice([1 << 20, 0, -1]))
            for _ in range(draw.byte() % 20)
        ]
    if draw.chance(6):
        # In a mount namespace of the child's own, whatever else the plan says.
        plan["new_namespace"] = True
        plan["mounts"] = [
            (
                draw.choice(["bind", "tmpfs", "other"]),
                draw.choice([str(root / "dir"), str(root / "file"), "/nonexistent", "\0", b"\xff"]),
                draw.choice([f"{root}/dir", f"{root}/file", f"{root}/new/a", f"{root}/out/x", "x" * 4100]),
                draw.choice(["", "size=4k", "bad=1", "x" * 5000]),
                draw.byte() % 2,
                False,
            )
            for _ in range(draw.byte() % 4)
        ]
    return plan


TARGET = Target(run, corpus, share=8)

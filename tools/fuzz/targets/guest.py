"""_guest: the system calls of an init, asked for by somebody who may not make them.

    data: which call, then its arguments

The worker gives up root's rights first: nothing is mounted and nothing is restarted, whatever the input
says.  The judge: OSError that names what it was about, or ValueError where no such text can be passed.
"""

from __future__ import annotations

import os
from collections.abc import Hashable

from arcbox_agent import _guest
from tools.fuzz.draw import Draw
from tools.fuzz.target import Target

NOBODY = 65534


def prepare() -> None:
    """For good: no call below may succeed."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def corpus() -> list[bytes]:
    return [b"\0\4none\4/mnt\5tmpfs\0\0\0\0\0\0\0\0\0\6size=1", b"\1\0\0\0\0", b"\2\0\0\0", b"\0\2\xff\xfe\3a\0b\0"]


def run(data: bytes, thorough: bool) -> Hashable:
    assert os.geteuid() != 0, "root could mount what the input says"
    draw = Draw(data)
    call = draw.byte() % 4
    try:
        if call == 0:
            source, target, kind = (draw.block().decode("utf-8", "surrogateescape") for _ in range(3))
            flags = draw.number(8)
            options = draw.block().decode("utf-8", draw.choice(["surrogateescape", "replace", "replace"]))
            subject = target
            _guest.mount(source, target, kind, flags, options)
        elif call == 1:
            subject = "reboot"
            _guest.reboot(draw.number(4) - (1 << 31))
        elif call == 2:
            subject = "adjtime"
            _guest.slew_clock(draw.number(7) - (1 << 50))
        else:
            subject = "finit_module"
            _guest.load_module(draw.choice([-1, 0, 1, 999, -(1 << 31)]), draw.number(2))
    except OSError as error:
        assert error.filename == subject and error.errno
        return call, error.errno
    except UnicodeEncodeError:
        return call, "no UTF-8"
    raise AssertionError("a call of init's was made")


TARGET = Target(run, corpus, share=20, prepare=prepare)

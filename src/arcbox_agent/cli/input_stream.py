"""Our standard input, read as the event loop allows; and the keys that leave a command."""

from __future__ import annotations

import os
import select
import stat
import sys
from typing import TYPE_CHECKING

import click

from arcbox_agent.readiness import until_readable

if TYPE_CHECKING:
    from arcbox_agent.client import ByteWriter

STDIN = 0
_PIECE = 64 * 1024

#: docker's.
DETACH_KEYS = "ctrl-p,ctrl-q"


def parse_keys(text: str) -> bytes:
    """The bytes of `ctrl-p,ctrl-q`, `ctrl-@`, `ctrl-[,x`; empty: none.  Raises click.BadParameter."""
    keys = bytearray()
    for name in text.split(",") if text else []:
        letter = name.removeprefix("ctrl-")
        if len(name) == 1 and name.isascii():
            keys += name.encode()
        elif name.startswith("ctrl-") and len(letter) == 1 and letter.lower() in "@abcdefghijklmnopqrstuvwxyz[\\]^_":
            keys.append(ord(letter.upper()) & 0x1F)
        else:
            raise click.BadParameter(
                f"{name!r} is no key: a letter, or ctrl- and one of a to z, @, [, \\, ], ^, _; separated by commas"
            )
    return bytes(keys)


class Detached(Exception):
    """The detach keys were typed."""


class KeyWatch:
    """Passes on what is typed, and raises Detached for the detach keys.

    A beginning of them is held back until it is clear what it is, as docker does.
    """

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def typed(self, data: bytes) -> bytes:
        """What of it is for the command.  Raises Detached; what was typed before the keys is its argument."""
        keys = self._keys
        if not keys:
            return data
        data = self._held + data
        at = data.find(keys)
        if at >= 0:
            raise Detached(data[:at])
        for size in range(min(len(keys) - 1, len(data)), 0, -1):
            if data.endswith(keys[:size]):
                self._held = data[-size:]
                return data[:-size]
        self._held = b""
        return data


async def feed(stdin: ByteWriter, keys: bytes = b"") -> None:
    """Send standard input to a command, to its end; return when the command does not read it any more.

    Raises Detached.
    """
    watch = KeyWatch(keys)
    # epoll takes no files, which are always ready.
    plain = stat.S_ISREG(os.fstat(STDIN).st_mode) or not _can_wait()
    poll = select.poll()
    poll.register(STDIN, select.POLLIN)
    try:
        while not stdin.closed:
            if not plain and not poll.poll(0):
                await until_readable(STDIN)
            try:
                data = os.read(STDIN, _PIECE)
            except BlockingIOError:
                continue  # Somebody else has read it.
            except OSError:
                break  # EIO: the terminal has hung up
            if not data:
                break
            try:
                stdin.write(watch.typed(data))
            except Detached as detached:
                stdin.write(detached.args[0])
                raise
            await stdin.drain()
        stdin.close()
    except BrokenPipeError:
        pass  # The command has closed its input, and goes on without.


def _can_wait() -> bool:
    """Whether the event loop can watch standard input: not a file, nor /dev/null."""
    if sys.platform != "linux":
        return True
    with select.epoll() as epoll:
        try:
            epoll.register(STDIN, select.EPOLLIN)
        except PermissionError:
            return False
    return True

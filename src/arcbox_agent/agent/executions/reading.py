"""Reads what an execution wrote out of its spools, from any cursor."""

from __future__ import annotations

import asyncio
import os

from arcbox_agent.errors import AgentFailedError, NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.executions.execution import Execution


class SpoolReader:
    """`close` closes what it has opened."""

    __slots__ = ("_directory", "_execution", "_files")

    def __init__(self, execution: Execution, directory: str) -> None:
        self._execution = execution
        self._directory = directory
        self._files: dict[str, int] = {}

    async def next(self, name: str, cursor: int, most: int) -> tuple[int, bytes, bool]:
        """What comes next of an output: bytes that are lost, else bytes; and whether there is no more of it.

        Neither: there is nothing at present.  NotFoundError: the execution was removed.
        """
        begin, end, over = self._range(name)
        if cursor < begin:
            return begin - cursor, b"", False
        if cursor >= end:
            return 0, b"", over
        data = await self._read(name, cursor, min(end - cursor, most)) if most > 0 else b""
        if self._range(name)[0] > cursor:
            # It was given back meanwhile, so these may be zeros.
            return self._range(name)[0] - cursor, b"", False
        return 0, data, False

    def _range(self, name: str) -> tuple[int, int, bool]:
        if not self._execution.gone:
            for each, begin, end, over in self._execution.outputs():
                if each == name:
                    return begin, end, over
        raise NotFoundError(f"execution {self._execution.id} was removed")

    async def _read(self, name: str, cursor: int, size: int) -> bytes:
        try:
            file = self._files.get(name)
            if file is None:
                path = os.path.join(self._directory, name)
                file = self._files[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            room = bytearray(size)
            try:
                n = os.preadv(file, [room], cursor, os.RWF_NOWAIT)
            except OSError:
                # Not in the page cache, or a file system that cannot tell.
                return await asyncio.get_running_loop().run_in_executor(None, os.pread, file, size, cursor)
        except FileNotFoundError:
            raise NotFoundError(f"execution {self._execution.id} was removed") from None
        except OSError as error:
            raise AgentFailedError(
                f"the output of execution {self._execution.id} cannot be read: {error.strerror}"
            ) from error
        return bytes(room[:n]) if n < size else bytes(room)

    def close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()

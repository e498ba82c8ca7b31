from typing import Final

MODIFY: Final[int]
ATTRIB: Final[int]
MOVE_SELF: Final[int]
DELETE_SELF: Final[int]
CREATE: Final[int]
MOVED_TO: Final[int]
DELETE: Final[int]
ONLYDIR: Final[int]
Q_OVERFLOW: Final[int]
IGNORED: Final[int]

def init() -> int: ...
def add_watch(fd: int, path: str, mask: int) -> int: ...
def remove_watch(fd: int, wd: int) -> None: ...
def parse(buffer: bytes) -> tuple[dict[int, int], list[tuple[int, int, bytes]]]: ...

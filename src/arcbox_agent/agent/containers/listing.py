"""A list of containers that fits: in pages for who asks for them, with long texts cut for who does not.

A command may be a mebibyte long, and there may be thousands of containers: all of them in one
frame would be too large for it, would cost the agent as much memory, and hold up everybody else
while it is made.
"""

from __future__ import annotations

from bisect import bisect_right

from arcbox_agent.errors import BadRequestError
from arcbox_agent.wire import ListContainersResponse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from arcbox_agent.agent.containers.model import Container
    from arcbox_agent.wire import ContainerInfo, ListContainersRequest

#: A page is full with so many containers, or bytes.
PAGE_ROWS = 512
PAGE_BYTES = 1 << 20

#: The most bytes of a list that is not asked for in pages, if a frame may be that long.
WHOLE_BYTES = 4 << 20

#: What each text costs besides its bytes: with it, a page has far fewer values than a message may have.
TEXT_COST = 32

#: What a container costs besides its texts: numbers, state, id.
ROW_COST = 256

#: The least that is left of a container's texts.
LEAST_TEXT = 64

#: What a text that was cut ends with.
CUT = "…"


def listing(found: Sequence[Container], request: ListContainersRequest, frame: int) -> ListContainersResponse:
    """The reply: `found`, in order of creation, or a page of it.  `frame`: bytes that a reply may have.

    BadRequestError: `after` is no page's end.
    """
    most = max(LEAST_TEXT, frame - (frame >> 4) - ROW_COST)  # room for the parts of the encoding
    if request.text_limit:
        most = min(most, request.text_limit)
    if not request.limit:
        return ListContainersResponse(containers=_whole(found, request.detail, most, frame))
    if request.after:
        found = found[bisect_right(found, _key_of(request.after), key=_key) :]
    rows: list[ContainerInfo] = []
    size = 0
    for container in found:
        row = container.describe(request.detail)
        cost = _cost(row)
        if cost > most:
            cost = cut(row, most)
        if (rows and size + cost > min(PAGE_BYTES, frame >> 1)) or len(rows) >= min(request.limit, PAGE_ROWS):
            last = rows[-1].id
            before = next(each for each in found if each.id == last)
            return ListContainersResponse(containers=rows, next=_cursor(before))
        rows.append(row)
        size += cost + ROW_COST
    return ListContainersResponse(containers=rows)


def _whole(found: Sequence[Container], detail: bool, most: int, frame: int) -> list[ContainerInfo]:
    """All of them, each cut to its part of the reply where they are too long together."""
    rows = [container.describe(detail) for container in found]
    costs = [_cost(row) for row in rows]
    room = min(WHOLE_BYTES, frame >> 1) - ROW_COST * len(rows)
    if sum(costs) > room:
        most = min(most, max(LEAST_TEXT, room // len(rows)))
    for row, cost in zip(rows, costs, strict=True):
        if cost > most:
            cut(row, most)
    return rows


def _key(container: Container) -> tuple[int, str]:
    return container.record.created_ns, container.id


def _cursor(container: Container) -> str:
    return f"{container.record.created_ns}:{container.id}"


def _key_of(cursor: str) -> tuple[int, str]:
    created, colon, id = cursor.partition(":")
    if not (colon and created.isascii() and created.isdigit() and len(created) < 20):
        raise BadRequestError("after: not the `next` of a page")
    return int(created), id


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _cost(row: ContainerInfo) -> int:
    """Bytes of a row's texts, about."""
    texts = [row.name, row.image, row.error, row.user, row.rootfs, *row.command, *row.warnings]
    return sum(map(len, texts) if all(map(str.isascii, texts)) else map(_size, texts)) + TEXT_COST * len(texts)


def cut(row: ContainerInfo, most: int) -> int:
    """Cut the texts of a row to `most` bytes together, the rarely long ones first come; what it costs then.

    The name stays whole.  What was cut ends with CUT.
    """
    room = max(0, most - _size(row.name))
    for field in ("image", "user", "rootfs", "error"):
        text = getattr(row, field)
        shown = _cut_text(text, room // 2)
        if shown is not text:
            setattr(row, field, shown)
        room = max(0, room - _size(shown))
    for field in ("command", "warnings"):
        texts = []
        for text in getattr(row, field):
            room -= TEXT_COST
            if room <= 0:
                texts.append(CUT)
                break
            shown = _cut_text(text, room)
            texts.append(shown)
            room -= _size(shown)
            if shown is not text:
                break
        setattr(row, field, texts)
    return _cost(row)


def _cut_text(text: str, most: int) -> str:
    """`text`, or its beginning and CUT where it has more than `most` bytes."""
    if len(text) <= most and _size(text) <= most:
        return text
    return text[:most].encode()[:most].decode("utf-8", "ignore") + CUT

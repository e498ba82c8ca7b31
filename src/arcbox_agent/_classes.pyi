"""Message objects; `arcbox_agent.wire` is the public face."""

from typing import Any, ClassVar, Final, Self

from typing_extensions import disjoint_base

_Buffer = bytes | bytearray | memoryview

#: What the modules above take from this one when they are imported.
__pyx_capi__: Final[dict[str, object]]

@disjoint_base
class Message:
    """What all messages have in common."""

    #: The type number of its frame; None: it travels in no frame of its own.
    TYPE: ClassVar[int | None]
    #: The only frame version with this layout; None: every version.
    FRAME_VERSION: ClassVar[int | None]
    __match_args__: ClassVar[Any]

    def encode(self) -> bytes: ...
    @classmethod
    def decode(cls, buffer: _Buffer) -> Self: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __copy__(self) -> Self: ...

def message_class(type: int, version: int = 1) -> type[Message] | None: ...

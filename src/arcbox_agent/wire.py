"""The wire: messages and the frames that carry them.

    frame = encode_message(PingRequest(message="hello"))
    decoder = FrameDecoder()
    decoder.feed(frame)
    frame = decoder.next_frame()
    PingRequest.decode(frame.payload).message     # "hello"

docs/protocol.md draws the bytes.  The classes are made from schema/agent.proto.
"""

from __future__ import annotations

from arcbox_agent import _messages
from arcbox_agent._classes import Message, message_class
from arcbox_agent._frames import (
    MAX_FRAME_SIZE,
    Frame,
    FrameDecoder,
    decode_error,
    encode_error,
    encode_frame,
    encode_message,
    serve_pings,
)
from arcbox_agent._messages import *
from arcbox_agent.errors import (
    DecodeError,
    DecoderFailedError,
    EncodeError,
    FrameError,
    FrameTooLargeError,
    FrameTooShortError,
    TraceLengthError,
    TruncatedFrameError,
    WireError,
)
from arcbox_agent.message_types import MessageType

__all__ = [
    "MAX_FRAME_SIZE",
    "DecodeError",
    "DecoderFailedError",
    "EncodeError",
    "Frame",
    "FrameDecoder",
    "FrameError",
    "FrameTooLargeError",
    "FrameTooShortError",
    "Message",
    "MessageType",
    "TraceLengthError",
    "TruncatedFrameError",
    "WireError",
    "decode_error",
    "encode_error",
    "encode_frame",
    "encode_message",
    "message_class",
    "serve_pings",
]
__all__ += _messages.__all__

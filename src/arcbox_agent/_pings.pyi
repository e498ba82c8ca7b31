"""Plain pings; `arcbox_agent.wire` is the public face."""

from arcbox_agent._frames import FrameDecoder

def serve_pings(decoder: FrameDecoder, out: bytearray, version: str | bytes, limit: int = 1024) -> int: ...

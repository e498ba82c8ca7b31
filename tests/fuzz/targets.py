"""The fuzz targets: one for each decoder, each naming the only exceptions it allows.

    python -m tests.fuzz.targets NAME [libFuzzer's options]

libFuzzer changes the input by what code it reaches; Python's own part is instrumented
here, and the compiled part by what it lets through.  Any exception but those named, a
crash, a hang, or memory out of proportion is a finding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from arcbox_agent import wire

CLASSES = [getattr(wire, name) for name in wire.__all__ if hasattr(getattr(wire, name), "FRAME_VERSION")]
CLASSES.remove(wire.Message)


def messages(data: bytes) -> None:
    """Every message class on the same bytes: DecodeError, or a message that encodes again."""
    if not data:
        return
    cls = CLASSES[data[0] % len(CLASSES)]
    try:
        message = cls.decode(data[1:])
    except wire.DecodeError as error:
        assert str(error).startswith(cls.__name__)
        return
    encoded = message.encode()
    # NaN is not equal to itself, so the bytes are compared.
    assert cls.decode(encoded).encode() == encoded


def frames(data: bytes) -> None:
    """A stream in pieces: FrameError, or the frames that one piece gives."""
    if len(data) < 2:
        return
    version = (None, 1, 2, None)[data[0] & 3]
    step = data[1] % 17 + 1
    stream = data[2:]

    def run(pieces: list[bytes]) -> tuple[list[str], str]:
        decoder = wire.FrameDecoder(max_frame_size=4096, version=version)
        found = []
        try:
            for piece in pieces:
                decoder.feed(piece)
                while (frame := decoder.next_frame()) is not None:
                    found.append(repr(frame))
                assert decoder.__sizeof__() <= 2 * len(stream) + 16384
            decoder.eof()
        except wire.FrameError as error:
            return found, type(error).__name__
        return found, ""

    whole = run([stream])
    assert run([stream[at : at + step] for at in range(0, len(stream), step)]) == whole


def batches(data: bytes) -> None:
    """next_messages and serve_pings against next_frame: the same frames, FrameError only."""
    expected = []
    decoder = wire.FrameDecoder(max_frame_size=4096)
    decoder.feed(data)
    failure = ""
    try:
        while (frame := decoder.next_frame()) is not None:
            expected.append(frame.type)
    except wire.FrameError as error:
        failure = type(error).__name__
    found = []
    out = bytearray()
    decoder = wire.FrameDecoder(max_frame_size=4096)
    decoder.feed(data)
    try:
        while True:
            served = wire.serve_pings(decoder, out, "1", 2)
            found += [1] * served
            batch, _, _ = decoder.next_messages(2)
            found += [message.TYPE for message in batch]
            if served or batch:
                continue
            frame = decoder.next_frame()
            if frame is None:
                break
            found.append(frame.type)
    except wire.FrameError as error:
        assert type(error).__name__ == failure
    else:
        assert failure == ""
    assert found == expected
    assert len(out) <= 64 * len(data) + 64


def errors(data: bytes) -> None:
    """An Error frame's payload: decode_error takes everything, Error.decode raises DecodeError."""
    error = wire.decode_error(data)
    assert -(2**31) <= error.code < 2**31
    assert len(error.message) <= len(data)
    try:
        exact = wire.Error.decode(data)
    except wire.DecodeError:
        return
    assert exact == error


TARGETS: dict[str, Callable[[bytes], None]] = {
    "messages": messages,
    "frames": frames,
    "batches": batches,
    "errors": errors,
}


def main() -> None:
    import atheris

    name = sys.argv.pop(1)
    target = TARGETS[name]
    atheris.instrument_func(target)
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

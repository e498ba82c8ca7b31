"""The fuzz targets: one for each decoder, each naming the only exceptions it allows.

    python -m tests.fuzz.targets NAME [libFuzzer's options]

The compiled decoders run beside the plain-Python ones of tests/reference, which are
instrumented: libFuzzer is led by the branches of the rules, and the two must agree.  Any
exception but those named, a crash, a hang, memory out of proportion or a difference is a
finding.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Literal

from arcbox_agent import wire
from tests.reference import frames as plain_frames
from tests.reference import messages as plain_messages

CLASSES = [getattr(wire, name) for name in wire.__all__ if hasattr(getattr(wire, name), "FRAME_VERSION")]
# Error is not protobuf and has a target of its own.
CLASSES = [cls for cls in CLASSES if cls not in (wire.Message, wire.Error)]


def messages(data: bytes) -> None:
    """A message class on any bytes: DecodeError where the plain rules refuse, else the same."""
    if not data:
        return
    cls = CLASSES[data[0] % len(CLASSES)]
    try:
        expected = plain_messages.decode(cls, data[1:])
    except plain_messages.Broken:
        expected = None
    try:
        message = cls.decode(data[1:])
    except wire.DecodeError as error:
        assert expected is None, error
        assert error.path.split(".")[0] == cls.__name__
        return
    assert expected is not None
    # NaN is not equal to itself, so the bytes are compared.
    encoded = message.encode()
    assert encoded == expected.encode()
    assert cls.decode(encoded).encode() == encoded


def frames(data: bytes) -> None:
    """A stream in pieces: the frames and the FrameError of the plain rules."""
    if len(data) < 2:
        return
    versions: tuple[Literal[1, 2] | None, ...] = (None, 1, 2, None)
    version = versions[data[0] & 3]
    step = data[1] % 17 + 1
    stream = data[2:]
    expected, wrong = plain_frames.split(stream, 4096, version)
    for pieces in ([stream], [stream[at : at + step] for at in range(0, len(stream), step)]):
        decoder = wire.FrameDecoder(max_frame_size=4096, version=version)
        found = []
        failure = ""
        try:
            for piece in pieces:
                decoder.feed(piece)
                while (frame := decoder.next_frame()) is not None:
                    found.append((frame.type, frame.version, frame.trace_id, frame.payload))
                assert decoder.__sizeof__() <= 2 * len(stream) + 16384
            decoder.eof()
        except wire.FrameError as error:
            failure = FAILURES[type(error)]
        assert found == expected
        assert failure == wrong


FAILURES = {
    wire.FrameTooShortError: "too short",
    wire.FrameTooLargeError: "too large",
    wire.TraceLengthError: "trace",
    wire.TruncatedFrameError: "truncated",
}


def batches(data: bytes) -> None:
    """next_messages and serve_pings by turns: the frames of the plain rules, FrameError only."""
    expected, wrong = plain_frames.split(data, 4096)
    found: list[int | None] = []
    out = bytearray()
    decoder = wire.FrameDecoder(max_frame_size=4096)
    decoder.feed(data)
    failure = ""
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
        decoder.eof()
    except wire.FrameError as error:
        failure = FAILURES[type(error)]
    assert found == [frame.type for frame in expected]
    assert failure == wrong
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
    for module in (plain_frames, plain_messages):
        for function in vars(module).values():
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                atheris.instrument_func(function)
    atheris.instrument_func(target)
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

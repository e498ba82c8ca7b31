"""Runs in the guest: a vsock server whose streams do what the first line asks of them.

echo                 sends back what comes, and ends when that ends
sink                 reads to the end; answers with count and SHA-256
stall NAME           reads nothing until `go NAME` comes on another stream, then as sink
go NAME              answers `gone`
source SIZE NAME     sends SIZE bytes of a known pattern
sent NAME            answers how many of them have been taken from it so far
dial PORT TEXT       connects to the host's port, sends TEXT; answers with what came back

python -m tests.vm.streams PORT
"""

from __future__ import annotations

import hashlib
import socket
import sys
import threading

HOST_CID = 2
_BLOCK = 1 << 16

_events: dict[str, threading.Event] = {}
_sent: dict[str, int] = {}


def pattern(size: int, block: int = 0) -> bytes:
    """Bytes in which a part that is lost, doubled or out of place shows; from a block on."""
    first = block * _BLOCK // 16
    return b"".join(b"%015d\n" % number for number in range(first, first + size // 16 + 1))[:size]


def _read_line(stream: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = stream.recv(1)
        if not byte:
            break
        line += byte
    return line


def _drain(stream: socket.socket) -> bytes:
    """Reads to the end; what it was, in one line."""
    count, digest = 0, hashlib.sha256()
    while block := stream.recv(_BLOCK):
        count += len(block)
        digest.update(block)
    return b"%d %s\n" % (count, digest.hexdigest().encode())


def _serve(stream: socket.socket) -> None:
    with stream:
        command, *words = _read_line(stream).decode().split()
        if command == "echo":
            while block := stream.recv(_BLOCK):
                stream.sendall(block)
        elif command == "sink":
            stream.sendall(_drain(stream))
        elif command == "stall":
            _events.setdefault(words[0], threading.Event()).wait()
            stream.sendall(_drain(stream))
        elif command == "go":
            _events.setdefault(words[0], threading.Event()).set()
            stream.sendall(b"gone\n")
        elif command == "source":
            size, name = int(words[0]), words[1]
            _sent[name] = 0
            # Made a block at a time: the guest has not the memory for all of it.
            for number in range(-(-size // _BLOCK)):
                data = pattern(min(_BLOCK, size - number * _BLOCK), number)
                while data:
                    count = stream.send(data)
                    _sent[name] += count
                    data = data[count:]
        elif command == "sent":
            stream.sendall(b"%d\n" % _sent.get(words[0], 0))
        elif command == "dial":
            with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as outward:
                outward.connect((HOST_CID, int(words[0])))
                outward.sendall(words[1].encode())
                outward.shutdown(socket.SHUT_WR)
                while block := outward.recv(_BLOCK):
                    stream.sendall(block)


def _serve_quietly(stream: socket.socket) -> None:
    try:
        _serve(stream)
    except (OSError, ValueError):
        pass  # the peer went away, or said nothing: tests do that


def main() -> None:
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, int(sys.argv[1])))
    listener.listen(1024)
    while True:
        stream, _ = listener.accept()
        threading.Thread(target=_serve_quietly, args=(stream,), daemon=True).start()


if __name__ == "__main__":
    main()

"""A proxy in front of an agent that cuts connections where it is told: at a number of bytes, or now."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator

#: How many bytes the next connection lives for; None: as long as it likes.
Life = Callable[[], int | None]


class CutProxy:
    """Passes bytes between its clients and the agent at `target`; `cuts`: how many connections it has cut.

    While `told` is not set, the agent does not hear of a client that is gone.
    """

    def __init__(self, directory: str, target: str, life: Life) -> None:
        self.path = os.path.join(directory, "proxy")
        self.address = f"unix://{self.path}"
        self.cuts = 0
        self.told = threading.Event()
        self.told.set()
        self._target = target
        self._life = life
        self._open: set[socket.socket] = set()
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(128)
        self._threads: set[threading.Thread] = set()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def cut_all(self) -> None:
        """Cut every connection there is."""
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            self.cuts += len(self._open) // 2

    def cut_clients(self) -> None:
        """Cut every connection on the side of its client."""
        with self._lock:
            for each in self._clients:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            self.cuts += len(self._clients)

    def close(self) -> None:
        self.told.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        self.cut_all()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                agent = socket.socket(socket.AF_UNIX)
                try:
                    agent.connect(self._target)
                except OSError:
                    client.close()
                    agent.close()
                    continue
                with self._lock:
                    self._open |= {client, agent}
                    self._clients.add(client)
                thread = threading.Thread(target=self._relay, args=(client, agent), daemon=True)
                self._threads.add(thread)
                thread.start()

    def _relay(self, client: socket.socket, agent: socket.socket) -> None:
        left = [self._life()]
        other = threading.Thread(target=self._pass_on, args=(agent, client, left), daemon=True)
        with client, agent:
            other.start()
            self._pass_on(client, agent, left)
            other.join()
            with self._lock:
                self._open -= {client, agent}
                self._clients.discard(client)

    def _pass_on(self, source: socket.socket, sink: socket.socket, left: list[int | None]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                limit = left[0]
                if limit is not None:
                    left[0] = limit - len(data)
                    if len(data) >= limit:
                        sink.sendall(data[: max(0, limit)])
                        with self._lock:
                            self.cuts += 1
                        break
                sink.sendall(data)
        self.told.wait()
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def cut_proxy(target: str, life: Life = lambda: None) -> Iterator[CutProxy]:
    directory = tempfile.mkdtemp(prefix="arcbox-")
    proxy = CutProxy(directory, target, life)
    try:
        yield proxy
    finally:
        proxy.close()
        shutil.rmtree(directory)


def random_lives(seed: int, most: int) -> Life:
    """Each connection lives for a random number of bytes, so that every place of a frame is met."""
    chosen = random.Random(seed)
    return lambda: chosen.randrange(1, most)

"""Counts how much code one request passes through in the agent: calls, files, changes of file.

    python -m tools.walk [--show] [logs] [line] [spawn] [exec]

An agent runs with a profiler in every thread that notes each call of a Python function of
this package; the compiled modules do not appear.  The walks:

    logs   a connection and a LogsRequest with follow, from the socket to the first frame
    line   one new line in that log, from inotify to its frame
    spawn  an ExecRequest with stream, from the socket to the spawn
    exec   the same, to the first frame of output

The way ends with the call that sends the frame.  A change of file is a call that lands in another
file than the call before it: what a reader who follows the request has to turn over.  Two things
that a profiler sees are no such change, and are left out:

    - A coroutine that is resumed only to resume the one it awaits.  The reader goes from what ends
      a wait to the `await` that waited for it, and not through all who wait behind that one.
    - The counters, the thread pools and what wakes for a descriptor (_BY_NAME).  A call of theirs is
      read where it stands, as one of an executor or of the event loop would be.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import arcbox_agent
from arcbox_agent import sync, wire

if TYPE_CHECKING:
    from types import FrameType

Call = tuple[int, int, str, str]  # time in ns, thread, file, function

_ROOT = os.path.dirname(arcbox_agent.__file__) + os.sep
#: Modules whose calls say by their names all that happens: count one up, run this in that pool, wake for that.
_BY_NAME = ("agent/metrics.py", "agent/processes/lanes.py", "agent/processes/pool.py", "agent/processes/ready.py")
_AFTER_AWAIT = 3
_SETTLED = 0.3
_PATIENCE = 30.0


# ------------------------------------------------------------- in the agent


def _agent(trace: str, arguments: list[str]) -> int:
    """The agent, with each call noted; SIGUSR1 begins a new trace, SIGUSR2 writes it to a file."""
    calls: dict[int, list[Call]] = {}  # by thread
    #: Of each thread: the frame that was noted last, where that was a coroutine that was resumed.
    resumed: dict[int, int] = {}
    # The file that defines the calling function is asked for once for each code object.
    names: dict[object, tuple[str, str] | None] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        try:
            name = names[code]
        except KeyError:
            file = code.co_filename.removeprefix(_ROOT)
            inside = file != code.co_filename and file not in _BY_NAME and code.co_name != "<module>"
            name = names[code] = (file, code.co_qualname) if inside else None
        if name is None:
            return
        thread = threading.get_ident()
        noted = calls.setdefault(thread, [])
        # The argument of RESUME, where a call begins: 0 for the start of a function, 3 behind an await.
        goes_on = code.co_code[frame.f_lasti + 1] == _AFTER_AWAIT
        if goes_on and resumed.get(thread) == id(frame.f_back):
            noted.pop()
        resumed[thread] = id(frame) if goes_on else 0
        noted.append((time.monotonic_ns(), thread, *name))

    def begin(*_: object) -> None:
        calls.clear()
        resumed.clear()

    def write(*_: object) -> None:
        with open(trace + ".new", "w", encoding="utf-8") as file:
            json.dump(sorted(call for noted in calls.values() for call in noted), file)
        os.rename(trace + ".new", trace)

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, write)
    threading.setprofile(note)
    sys.setprofile(note)
    from arcbox_agent.agent.daemon import main

    return main(arguments)


# --------------------------------------------------------------- the client


class Traced:
    """An agent that notes its calls, and a client of it."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._trace = os.path.join(directory, "trace.json")
        self.path = os.path.join(directory, "agent.sock")
        arguments = [
            "--listen",
            f"unix:{directory}/agent.sock",
            "--state-dir",
            f"{directory}/state",
            "--run-dir",
            f"{directory}/run",
        ]
        self.process = subprocess.Popen([sys.executable, "-m", "tools.walk", "--agent", self._trace, *arguments])
        try:
            self.client = sync.connect(f"unix://{self.path}", wait=_PATIENCE)
        except BaseException:
            self.process.kill()
            raise

    def begin(self) -> None:
        time.sleep(_SETTLED)
        self.process.send_signal(signal.SIGUSR1)
        time.sleep(_SETTLED)

    def calls_until(self, end: int) -> list[Call]:
        """What was called before `end`, in ns of the monotonic clock."""
        time.sleep(_SETTLED)
        self.process.send_signal(signal.SIGUSR2)
        deadline = time.monotonic() + _PATIENCE
        while not os.path.exists(self._trace):
            if time.monotonic() > deadline:
                raise TimeoutError("the agent has written no trace")
            time.sleep(0.01)
        calls: list[Call] = [tuple(call) for call in json.loads(Path(self._trace).read_text(encoding="utf-8"))]
        os.unlink(self._trace)
        seen = [call for call in calls if call[0] < end]
        # What follows the last `send` is what comes after the frame, and not the way to it.
        sent = [number for number, call in enumerate(seen) if call[3].rpartition(".")[2].startswith("send")]
        way = seen[: sent[-1] + 1]
        # A loop inside one function is one place to read.
        return [
            call for before, call in zip([None, *way], way, strict=False) if before is None or before[2:] != call[2:]
        ]

    def close(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(_PATIENCE)


def _ask(agent: Traced, request: wire.Message) -> socket.socket:
    """A connection with nothing on it but this request, and its first reply read."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_PATIENCE)
    connection.connect(agent.path)
    connection.sendall(wire.encode_message(request))
    connection.recv(65536)
    return connection


def _walk_logs(agent: Traced) -> dict[str, list[Call]]:
    fifo = os.path.join(agent.directory, "lines")
    os.mkfifo(fifo)
    made = agent.client.create_container(cmd=["sh", "-c", f"echo first; exec cat {fifo}"])
    agent.client.start_container(made.id)
    agent.begin()
    with _ask(agent, wire.LogsRequest(container_id=made.id, follow=True)) as connection:
        logs = agent.calls_until(time.monotonic_ns())
        with open(fifo, "wb", buffering=0) as writer:
            writer.write(b"second\n")  # the first line after the start has more to do: let it pass
            connection.recv(65536)
            agent.begin()
            writer.write(b"third\n")
            connection.recv(65536)
            line = agent.calls_until(time.monotonic_ns())
    agent.client.remove_container(made.id, force=True)
    return {"logs": logs, "line": line}


def _walk_exec(agent: Traced) -> dict[str, list[Call]]:
    agent.client.exec(["true"])  # the first command of an agent has more to do: let it pass
    agent.begin()
    with _ask(agent, wire.ExecRequest(cmd=["echo", "hello"], stream=True)):
        calls = agent.calls_until(time.monotonic_ns())
    spawned = next(number for number, call in enumerate(calls) if call[3] == "SpawnSpec.run")
    return {"spawn": calls[: spawned + 1], "exec": calls}


def main() -> int:
    if sys.argv[1:2] == ["--agent"]:
        return _agent(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description="How much code a request passes through in the agent.")
    parser.add_argument("--show", action="store_true", help="every call, as the reader meets it")
    parser.add_argument("walks", nargs="*", metavar="logs|line|spawn|exec")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        agent = Traced(directory)
        try:
            found = _walk_logs(agent) | _walk_exec(agent)
        finally:
            agent.close()
    for name, calls in found.items():
        if options.walks and name not in options.walks:
            continue
        files = [file for _, _, file, _ in calls]
        changes = sum(a != b for a, b in pairwise(files))
        if options.show:
            first = calls[0][1] if calls else 0
            for _, thread, file, function in calls:
                print(f"  {'' if thread == first else '[thread] '}{file}: {function}")
        print(f"{name}: {len(calls)} calls, {len(set(files))} files, {changes} changes of file")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The Logs call of a real agent, in both versions of the protocol."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent import sync, wire
from arcbox_agent.errors import AgentFailedError, BadRequestError, NotFoundError
from tests.conftest import RunningAgent
from tests.logs.support import joined

SHELL = ["/bin/sh", "-c"]
OUTPUT = "printf 'one\\n\\ntwo\\n'; printf 'bad \\377\\000\\r\\n' >&2; printf end"


@pytest.fixture
def client(agent: RunningAgent) -> Iterator[Any]:
    with sync.connect(agent.address) as client:
        yield client


def run(client: Any, script: str, **fields: Any) -> str:
    id = client.create_container(cmd=[*SHELL, script], **fields).id
    client.start_container(id)
    return str(id)


def finished(client: Any, script: str) -> str:
    id = run(client, script)
    client.wait_container(id)
    return id


def call(agent: RunningAgent, request: wire.LogsRequest, trace: str | None = None) -> list[wire.Frame]:
    """All frames of the reply, until Empty, Error or (without follow and stream) the one entry."""
    decoder = wire.FrameDecoder(version=1 if trace is None else 2)
    frames: list[wire.Frame] = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(agent.socket_path))
        connection.sendall(wire.encode_message(request, trace))
        while True:
            while (frame := decoder.next_frame()) is not None:
                frames.append(frame)
                if frame.type in (0, 0xFFFF) or not (request.follow or request.stream):
                    return frames
            data = connection.recv(65536)
            assert data, "the agent closed the connection"
            decoder.feed(data)


def test_without_follow_the_whole_log_is_one_entry_as_in_alpha_1(agent: RunningAgent, client: Any) -> None:
    id = finished(client, OUTPUT)
    [frame] = call(agent, wire.LogsRequest(container_id=id, stdout=True))
    entry = wire.LogEntry.decode(frame.payload)
    assert (entry.stream, entry.data) == ("stdout", b"one\n\ntwo\nend")
    assert abs(entry.timestamp - time.time_ns()) < 3600 * 10**9
    [frame] = call(agent, wire.LogsRequest(container_id=id, stderr=True), "trace")
    entry_v2 = wire.LogEntryV2.decode(frame.payload)
    assert (frame.trace_id, entry_v2.stream, entry_v2.data) == ("trace", "stderr", b"bad \xff\0\r")
    [frame] = call(agent, wire.LogsRequest(container_id=id))
    assert sorted(wire.LogEntry.decode(frame.payload).data.split(b"\n")) == sorted(
        [b"one", b"", b"two", b"end", b"bad \xff\0\r"]
    )


def test_whole_logs_for_many_at_once_take_the_memory_of_a_few(start_agent: Any) -> None:
    agent = start_agent(max_frame_size="4MiB", max_queued_total="8MiB")
    with sync.connect(agent.address) as client, ExitStack() as open_sockets:
        id = finished(client, "yes 0123456789abcdef | head -c 3000000")
        before = peak(agent)
        request = wire.encode_message(wire.LogsRequest(container_id=id))
        askers = [open_sockets.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(60)]
        for asker in askers:
            asker.connect(str(agent.socket_path))
            asker.sendall(request)
        # Nobody reads: who holds most is closed where the replies together are too large.
        deadline = time.monotonic() + 60
        while client.agent_info().counters["bound_queued_total"] < 50:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert peak(agent) - before < 100 << 20


def test_a_log_counts_towards_what_is_held_while_it_is_collected(tmp_path: Path, start_agent: Any) -> None:
    agent = start_agent(metrics_listen=f"unix:{tmp_path}/metrics")

    def metrics() -> dict[str, float]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(f"{tmp_path}/metrics")
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            with connection.makefile("rb") as file:
                lines = [line.split() for line in file.read().decode().splitlines() if line.startswith("arcbox_agent_")]
        return {name: float(value) for name, value in lines}

    def collected() -> bool:
        """Whether much is held, and none of it is a reply that waits to be read."""
        now = metrics()
        return now["arcbox_agent_held_bytes"] > 1 << 20 and now["arcbox_agent_queued_bytes"] == 0

    with sync.connect(agent.address) as client:
        id = finished(client, "yes 0123456789abcdef | head -c 13999993")
        ended = threading.Event()

        def ask() -> None:
            while not ended.is_set():
                [frame] = call(agent, wire.LogsRequest(container_id=id))
                assert len(wire.LogEntry.decode(frame.payload).data) == 13_999_992

        asker = threading.Thread(target=ask)
        asker.start()
        try:
            deadline = time.monotonic() + 60
            while not collected():
                assert time.monotonic() < deadline
        finally:
            ended.set()
            asker.join()
        assert metrics()["arcbox_agent_held_bytes"] == 0


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("trace", [None, "", "a trace"])
def test_a_stream_has_an_entry_a_line_and_ends_with_empty(
    agent: RunningAgent, client: Any, follow: bool, trace: str | None
) -> None:
    id = finished(client, OUTPUT)
    request = wire.LogsRequest(container_id=id, follow=follow, stream=True, stdout=True)
    frames = call(agent, request, trace)
    assert [frame.trace_id for frame in frames] == [trace] * 5
    assert [frame.type for frame in frames] == [0x1021] * 4 + [0]
    message = wire.LogEntry if trace is None else wire.LogEntryV2
    entries = [message.decode(frame.payload) for frame in frames[:-1]]
    assert [entry.data for entry in entries] == [b"one", b"", b"two", b"end"]
    # The last one ends without a newline.
    assert [entry.partial for entry in entries] == [False, False, False, True]


def test_tail_and_timestamps(agent: RunningAgent, client: Any) -> None:
    id = finished(client, "seq 1 10")
    for follow in (False, True):
        frames = call(agent, wire.LogsRequest(container_id=id, follow=follow, stream=True, tail=2, timestamps=True))
        entries = [wire.LogEntry.decode(frame.payload) for frame in frames[:-1]]
        assert [bytes(entry.data)[31:] for entry in entries] == [b"9", b"10"]
        assert all(entry.data[29:31] == b"Z " for entry in entries)


def test_since_and_until_are_the_same_for_follow_and_not(agent: RunningAgent, client: Any) -> None:
    id = finished(client, "echo early; sleep 0.3; echo late")
    [early, late] = list(client.logs(id))
    between = early.timestamp + 150_000_000
    seconds, nanos = divmod(between, 10**9)
    for follow in (False, True):
        since = call(
            agent, wire.LogsRequest(container_id=id, follow=follow, stream=True, since=seconds, since_nanos=nanos)
        )
        assert [wire.LogEntry.decode(frame.payload).data for frame in since[:-1]] == [b"late"]
        until = call(
            agent, wire.LogsRequest(container_id=id, follow=follow, stream=True, until=seconds, until_nanos=nanos)
        )
        assert [wire.LogEntry.decode(frame.payload).data for frame in until[:-1]] == [b"early"]
    assert late.timestamp > between


@pytest.mark.parametrize(
    ("bounds", "lines"),
    [
        ({"until": 1}, []),
        ({"until_nanos": 1}, []),
        ({"since": 1 << 40}, []),
        ({"since_nanos": 1}, [b"line"]),
        ({}, [b"line"]),
    ],
)
def test_a_bound_in_time_may_be_seconds_or_nanoseconds_alone(
    agent: RunningAgent, client: Any, bounds: dict[str, Any], lines: list[bytes]
) -> None:
    id = finished(client, "echo line")
    frames = call(agent, wire.LogsRequest(container_id=id, stream=True, **bounds))
    assert [wire.LogEntry.decode(frame.payload).data for frame in frames[:-1]] == lines


def test_a_follow_delivers_lines_as_they_come_and_ends_with_the_container(agent: RunningAgent, client: Any) -> None:
    id = run(client, 'read line; echo "got $line"; read line; printf bye', open_stdin=True)
    found: list[bytes] = []
    ended = threading.Event()

    def follow() -> None:
        with sync.connect(agent.address) as other:
            found.extend(bytes(entry.data) for entry in other.logs(id, follow=True))
        ended.set()

    thread = threading.Thread(target=follow)
    thread.start()
    fifo = agent.run_dir / "containers" / id / "stdin"
    with fifo.open("wb", buffering=0) as stdin:
        stdin.write(b"hello\n")
        deadline = time.monotonic() + 30
        while not list(client.logs(id)):
            assert time.monotonic() < deadline
        assert not ended.is_set()
        stdin.write(b"more\n")
        thread.join(30)
    assert ended.is_set()
    assert found == [b"got hello", b"bye"]


def test_ten_thousand_lines_at_full_speed_are_followed_whole(agent: RunningAgent, client: Any) -> None:
    id = run(client, "seq 1 300000; seq 1 1000 >&2")
    streams = joined(list(client.logs(id, follow=True)))
    assert streams["stdout"] == b"".join(b"%d\n" % n for n in range(1, 300_001))
    assert streams["stderr"] == b"".join(b"%d\n" % n for n in range(1, 1001))


def test_a_created_container_has_an_empty_log(agent: RunningAgent, client: Any) -> None:
    id = client.create_container(cmd=["true"]).id
    assert list(client.logs(id)) == []
    assert list(client.logs(id, follow=True)) == []
    [frame] = call(agent, wire.LogsRequest(container_id=id))
    assert wire.LogEntry.decode(frame.payload) == wire.LogEntry(stream="stdout")


def test_errors_say_what_is_wrong(agent: RunningAgent, client: Any) -> None:
    with pytest.raises(NotFoundError, match="container not found: nope"):
        list(client.logs("nope"))
    id = finished(client, "echo x")
    with pytest.raises(BadRequestError, match="tail must not be negative: -1"):
        list(client.logs(id, tail=-1))
    log = agent.state_dir / "logs" / f"{id}.log"
    log.unlink()
    log.mkdir()
    with pytest.raises(AgentFailedError, match=f"cannot read the log of container {id}: not a regular file"):
        list(client.logs(id))
    log.rmdir()
    log.symlink_to(log)
    with pytest.raises(
        AgentFailedError, match="cannot read the log of container .*: Too many levels of symbolic links"
    ):
        list(client.logs(id))


def test_a_log_larger_than_a_frame_is_refused_with_advice(start_agent: Any) -> None:
    agent = start_agent(max_frame_size="64KiB")
    with sync.connect(agent.address) as client:
        id = finished(client, "seq 1 20000")
        [frame] = call(agent, wire.LogsRequest(container_id=id))
        error = wire.decode_error(frame.payload)
        assert error.code == 400
        assert "larger than one reply can hold" in error.message
        assert "stream" in error.message
        [frame] = call(agent, wire.LogsRequest(container_id=id, tail=3))
        assert wire.LogEntry.decode(frame.payload).data == b"19998\n19999\n20000"


def test_memory_stays_small_whatever_the_size_of_the_log(agent: RunningAgent, client: Any) -> None:
    id = finished(client, "echo begin")
    log = agent.state_dir / "logs" / f"{id}.log"
    stamp = b"2026-11-23T17:45:12.255151664Z stdout F "
    with log.open("ab") as file:
        block = (stamp + b"x" * 100 + b"\n") * 10_000
        for _ in range(50):
            file.write(block)  # 70 MB
        file.write((stamp + b"y" * 100 + b"\n") * 3)
    before = peak(agent)
    assert sum(1 for _ in client.logs(id, tail=3)) == 3
    assert list(client.logs(id, stderr=True)) == []
    assert list(client.logs(id, stderr=True, tail=5)) == []
    assert list(client.logs(id, until=1)) == []
    assert peak(agent) - before < 8 << 20
    taken = 0
    for entry in client.logs(id):
        taken += len(entry.data)
    assert taken == 500_003 * 100 + len(b"begin")
    assert peak(agent) - before < 16 << 20  # with what its connection may hold


def test_a_follow_that_waits_keeps_nothing_of_what_it_has_sent(agent: RunningAgent, client: Any) -> None:
    id = run(client, "sleep 1000")
    log = agent.state_dir / "logs" / f"{id}.log"
    log.touch()
    with ExitStack() as connections:
        followers = []
        for since in range(1, 101):  # another each: nobody shares a reader with another
            follower = connections.enter_context(socket.socket(socket.AF_UNIX))
            follower.settimeout(30)
            follower.connect(str(agent.socket_path))
            follower.sendall(wire.encode_message(wire.LogsRequest(container_id=id, follow=True, since=since)))
            followers.append(follower)
        before = status(agent, "VmRSS")
        with log.open("ab") as file:
            file.write((b"2026-11-23T17:45:12.255151664Z stdout F " + b"x" * 100 + b"\n") * 900)
        for follower in followers:
            received = b""
            while received.count(b"x" * 100) < 900:
                received += follower.recv(1 << 20)
        # 90 kB each, were the last output kept.
        assert status(agent, "VmRSS") - before < 5 << 20
    client.remove_container(id, force=True)


def peak(agent: RunningAgent) -> int:
    """The most bytes of memory that the agent ever had in use."""
    return status(agent, "VmHWM")


def status(agent: RunningAgent, field: str) -> int:
    text = Path(f"/proc/{agent.process.pid}/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) * 1024


@pytest.mark.parametrize("version", [1, 2])
def test_the_output_of_a_container_outlives_the_agent(start_agent: Any, version: int) -> None:
    agent = start_agent(containers_at_exit="leave")
    with sync.connect(agent.address) as client:
        id = run(client, "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done; sleep 0.5; echo last")
    (agent.kill if version == 1 else agent.stop)()
    agent.restart()
    with sync.connect(agent.address) as client:
        lines = [entry.data for entry in client.logs(id, follow=True)]
        client.wait_container(id)
    assert lines == [b"%d" % number for number in range(2000)] + [b"last"]


def test_a_reader_that_stops_holds_up_nobody(agent: RunningAgent, client: Any) -> None:
    id = run(client, "seq 1 200000; sleep 1000")
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.connect(str(agent.socket_path))
        stopped.sendall(wire.encode_message(wire.LogsRequest(container_id=id, follow=True)))
        reader = subprocess.run(
            [
                sys.executable, "-c",
                "import sys; from arcbox_agent import sync\n"
                "with sync.connect(sys.argv[1]) as c:\n"
                "    text = bytearray()\n"
                "    for e in c.logs(sys.argv[2], follow=True):\n"
                "        text += e.data if e.partial else e.data + b'\\n'\n"
                "        if text.endswith(b'\\n200000\\n'): break\n"
                "    assert text == b''.join(b'%d\\n' % n for n in range(1, 200001))\n",
                agent.address, id,
            ],
            timeout=60, env=os.environ,
        )  # fmt: skip
        assert reader.returncode == 0
        # It has lost nothing, and goes on from where it stood.
        stopped.settimeout(30)
        decoder = wire.FrameDecoder(version=1)
        text = bytearray()
        while not text.endswith(b"\n200000\n"):
            decoder.feed(stopped.recv(1 << 20))
            while (frame := decoder.next_frame()) is not None:
                entry = wire.LogEntry.decode(frame.payload)
                text += entry.data if entry.partial else entry.data + b"\n"
        assert text == b"".join(b"%d\n" % n for n in range(1, 200_001))
    client.remove_container(id, force=True)

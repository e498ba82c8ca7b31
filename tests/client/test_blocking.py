"""The client without async: the same calls, from any thread."""

from __future__ import annotations

import gc
import inspect
import os
import pickle
import pydoc
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import arcbox_agent
from arcbox_agent import sync
from arcbox_agent.errors import CallTimeoutError, ConnectError, ConnectionLostError

from .servers import EMPTY, Request, answer_pings, closed_by_client, frame, pong, read_request, server
from .test_pool import Agent
from .test_streams import entry, forever, stream_of, to_the_next_request


def client_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "arcbox-agent-client"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert client_threads() == []


def methods(client: type) -> dict[str, Callable[..., object]]:
    return {
        name: method
        for name, method in inspect.getmembers(client, inspect.isfunction)
        # `duplex` gives what only a task can use.
        if not name.startswith("_") and name not in ("close", "aclose", "duplex")
    }


def test_both_clients_have_the_same_methods_with_the_same_arguments_and_docstrings() -> None:
    def shown(client: type) -> dict[str, list[object]]:
        return {
            name: [
                *((p.name, p.kind, p.default, p.annotation) for p in inspect.signature(method).parameters.values()),
                inspect.getdoc(method),
            ]
            for name, method in methods(client).items()
        }

    assert shown(sync.Client) == shown(arcbox_agent.Client)
    assert all(inspect.getdoc(method) for method in methods(sync.Client).values())
    assert list(inspect.signature(sync.connect).parameters.values()) == list(
        inspect.signature(arcbox_agent.connect).parameters.values()
    )


def test_help_shows_every_keyword_with_its_default_and_what_the_blocking_client_returns() -> None:
    assert str(inspect.signature(sync.Client.logs)).replace("'", "") == (
        "(self, container: str, *, follow: bool = False, tail: int = 0, since: Time | None = None, "
        "until: Time | None = None, stdout: bool = False, stderr: bool = False, timestamps: bool = False, "
        "after: str = , only_new: bool = False, attach: bool = False) -> BlockingStream[LogEntry]"
    )
    assert list(inspect.signature(sync.Client.exec).parameters) == [
        *("self", "cmd", "check", "output_limit", "tty", "tty_width", "tty_height", "timeout"),
        *("container", "env", "working_dir", "user", "stdin"),
    ]
    assert str(inspect.signature(sync.connect)).replace("'", "").endswith("-> Client")
    assert "exec_detached(self, cmd: " in pydoc.plain(pydoc.render_doc(sync.Client))


def test_a_misspelt_keyword_is_refused_before_anything_is_sent() -> None:
    with server(answer_pings) as agent, sync.connect(agent.address) as client:
        calls: tuple[tuple[Callable[..., object], object], ...] = (
            (client.exec, ["true"]),
            (client.exec_stream, ["true"]),
            (client.exec_detached, ["true"]),
            (client.logs, "web"),
        )
        for call, what in calls:
            with pytest.raises(TypeError, match="unexpected keyword argument 'contaner'"):
                call(what, contaner="web")
        # A detached command has no terminal.
        with pytest.raises(TypeError, match="unexpected keyword argument 'tty'"):
            client.exec_detached(["sh"], tty=True)  # type: ignore[call-arg]


def test_a_call_is_a_function_call() -> None:
    with server(answer_pings) as agent, sync.connect(agent.address) as client:
        assert client.ping().message == "pong"
        assert len(client_threads()) == 1


def test_many_threads_use_one_client() -> None:
    with server(answer_pings) as agent:
        with sync.connect(agent.address, max_connections=4) as client, ThreadPoolExecutor(16) as threads:
            replies = list(threads.map(lambda _: client.ping().message, range(400)))
        assert replies == ["pong"] * 400
        assert agent.accepted <= 4


def test_an_address_where_nobody_is_leaves_no_thread(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match="there is no such socket"):
        sync.connect(f"unix://{tmp_path}/none")
    assert client_threads() == []


def test_a_log_is_an_iterator_that_ends() -> None:
    def reply(request: Request) -> Iterator[bytes]:
        for number in range(1000):
            yield entry(b"%d" % number, request.trace)
        yield frame(EMPTY, b"", request.trace)

    with server(stream_of(reply)) as agent, sync.connect(agent.address) as client:
        stream = client.logs("web")
        assert [item.data for item in stream] == [b"%d" % number for number in range(1000)]
        assert list(stream) == []


@pytest.mark.parametrize("way", ["close", "with", "drop"])
def test_leaving_an_iterator_early_closes_its_connection(way: str) -> None:
    def serve(connection: socket.socket) -> None:
        to_the_next_request(connection, forever)
        left.set()

    left = threading.Event()
    with server(serve, answer_pings) as agent, sync.connect(agent.address) as client:
        if way == "close":
            stream = client.logs("web", follow=True)
            next(stream)
            stream.close()
            assert list(stream) == []
        elif way == "with":
            with client.logs("web", follow=True) as stream:
                next(stream)
        else:
            for _ in client.logs("web", follow=True):
                break
            gc.collect()
        assert left.wait(30)
        assert client.ping().message == "pong"


def test_another_thread_may_close_an_iterator_that_waits() -> None:
    waiting = threading.Event()

    def silent(request: Request) -> list[bytes]:
        waiting.set()
        return []

    with server(stream_of(silent)) as agent, sync.connect(agent.address) as client:
        stream = client.logs("web", follow=True)
        with ThreadPoolExecutor(1) as thread:
            reading = thread.submit(list, stream)
            waiting.wait()
            stream.close()
            assert reading.result(30) == []


def test_an_iterator_keeps_its_client_open() -> None:
    with server(stream_of(lambda r: [entry(b"one", r.trace) + frame(EMPTY, b"", r.trace)])) as agent:
        stream = sync.connect(agent.address).logs("web")
        gc.collect()
        assert [item.data for item in stream] == [b"one"]
        del stream
        gc.collect()


def test_closing_the_client_ends_the_calls_of_other_threads() -> None:
    behaviour = Agent()
    with server(behaviour) as agent:
        client = sync.connect(agent.address)
        with ThreadPoolExecutor(2) as threads:
            stopping = threads.submit(client.stop_container, "a")
            following = threads.submit(list, client.logs("a", follow=True))
            while behaviour.long < 2:
                time.sleep(0.001)
            client.close()
            for call in (stopping, following):
                with pytest.raises(ConnectionLostError, match="the client was closed"):
                    call.result(30)
        with pytest.raises(ConnectionLostError, match="the client was closed"):
            client.ping()
        client.close()
        behaviour.open.set()


def test_a_client_that_is_forgotten_is_closed() -> None:
    with server(answer_pings) as agent:
        sync.connect(agent.address).ping()
        gc.collect()
        # The server's end checks that the connection is closed.


def test_a_time_out_is_an_error_here_too() -> None:
    def silent(connection: socket.socket) -> None:
        connection.sendall(pong(read_request(connection)))
        read_request(connection)
        assert closed_by_client(connection)

    with server(silent) as agent, sync.connect(agent.address) as client:
        with pytest.raises(CallTimeoutError) as caught:
            client.ping(timeout=0.05)
        copy = pickle.loads(pickle.dumps(caught.value))
        assert (copy.call, copy.seconds) == ("Ping", 0.05)


def run_script(script: str, address: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # A shell that runs the tests in the background has SIGINT ignored, which Python respects.
        ["env", "--default-signal=INT", sys.executable, "-W", "error", "-c", script, address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        **options,
    )


def test_the_interpreter_ends_though_a_client_was_not_closed() -> None:
    script = """
import sys
from arcbox_agent import sync
client = sync.connect(sys.argv[1])
print(client.ping().message)
"""
    with server(answer_pings) as agent, run_script(script, agent.address) as process:
        out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == (b"pong\n", b"", 0)


def test_a_forked_process_is_told_to_connect_anew() -> None:
    script = """
import os, signal, sys, warnings
from arcbox_agent import sync
from arcbox_agent.errors import ConnectionLostError
warnings.simplefilter("ignore")  # Python warns of a fork with threads, which this is about.
client = sync.connect(sys.argv[1])
entries = client.logs("web", follow=True)
if os.fork() == 0:
    signal.alarm(30)  # Only what hangs takes this long.
    try:
        client.ping()
    except ConnectionLostError as error:
        print(error)
    entries.close()
    client.close()
    with sync.connect(sys.argv[1]) as own:
        print(own.ping().message)
else:
    _, status = os.wait()
    print(status, client.ping().message)
"""
    with server(answer_pings) as agent, run_script(script, agent.address) as process:
        out, err = process.communicate(timeout=60)
    assert (err, process.returncode) == (b"", 0)
    assert out.decode().splitlines() == [
        "the client belongs to the process that this one was forked from: connect anew",
        "pong",
        "0 pong",
    ]


def test_ctrl_c_ends_a_call_and_its_connection() -> None:
    script = """
import sys
from arcbox_agent import sync
with sync.connect(sys.argv[1]) as client:
    try:
        print("calling", flush=True)
        client.wait_container("web")
    except KeyboardInterrupt:
        print(client.ping().message)
"""
    waiting, left = threading.Event(), threading.Event()

    def silent(request: Request) -> list[bytes]:
        waiting.set()
        return []

    def serve(connection: socket.socket) -> None:
        to_the_next_request(connection, silent)
        left.set()

    with server(serve, answer_pings) as agent, run_script(script, agent.address) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"calling\n"
        assert waiting.wait(30)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (out, err, process.returncode) == (b"pong\n", b"", 0)
        assert left.is_set()

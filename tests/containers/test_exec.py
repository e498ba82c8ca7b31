"""Commands: in the guest and in containers, in one reply and as a stream."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import signal
import socket
import struct
import sys
import termios
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import arcbox_agent
from arcbox_agent import sync, wire
from arcbox_agent.agent.containers.runtimes.guest import SPARE_SCOPES
from arcbox_agent.agent.processes import cgroups
from arcbox_agent.agent.processes.scopes import cgroup_name
from arcbox_agent.errors import AgentFailedError, BadRequestError, BusyError, NotFoundError
from arcbox_agent.wire import Mount

from .support import alive, eventually, leased, run, text_of


def raw(agent: Any, request: wire.ExecRequest) -> wire.ExecOutput:
    """One request without a stream, as an old client sends it."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(agent.socket_path))
        connection.sendall(wire.encode_message(request))
        octets = b""
        while len(octets) < 4 or len(octets) < 4 + struct.unpack(">I", octets[:4])[0]:
            more = connection.recv(1 << 20)
            assert more
            octets += more
    kind = struct.unpack(">I", octets[4:8])[0]
    if kind == 0xFFFF:
        error = wire.decode_error(octets[8:])
        raise arcbox_agent.errors.RequestError.from_reply(error.code, error.message)
    return wire.ExecOutput.decode(octets[8:])


def test_streams_exit_code_and_input(client: sync.Client) -> None:
    result = client.exec(["sh", "-c", "cat; echo err >&2; exit 42"], stdin=b"in\0put\xff")
    assert (result.stdout, result.stderr, result.exit_code, result.signal) == (b"in\0put\xff", b"err\n", 42, 0)
    assert client.exec(["cat"]).stdout == b""


def test_a_signal_is_told(client: sync.Client, agent: Any) -> None:
    result = client.exec(["sh", "-c", "kill -SEGV $$"])
    assert (result.exit_code, result.signal) == (139, 11)
    output = raw(agent, wire.ExecRequest(cmd=["sh", "-c", "echo e >&2; kill -9 $$"], detail=True))
    assert (output.exit_code, output.signal, output.stderr) == (-1, 9, b"e\n")
    output = raw(agent, wire.ExecRequest(cmd=["sh", "-c", "echo e >&2; kill -9 $$"]))
    assert output == wire.ExecOutput(stream="stdout", exit_code=-1, done=True)


def test_much_input_and_much_output_at_once(client: sync.Client) -> None:
    octets = os.urandom(1 << 20) * 8
    assert client.exec(["cat"], stdin=octets).stdout == octets
    assert client.exec(["true"], stdin=octets).exit_code == 0
    assert client.exec(["sh", "-c", "head -c 3; cat >/dev/null"], stdin=octets).stdout == octets[:3]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"cmd": ["/no/such"]}, AgentFailedError, "exec failed: No such file or directory (os error 2): /no/such"),
        ({"cmd": ["nosuchprogram"]}, AgentFailedError, "exec failed: No such file or directory (os error 2): nosuch"),
        ({"cmd": ["/etc/passwd"]}, AgentFailedError, "exec failed: Permission denied (os error 13): /etc/passwd"),
        (
            {"cmd": ["true"], "working_dir": "/no/such"},
            AgentFailedError,
            "exec failed: working directory /no/such: No such file or directory",
        ),
        ({"cmd": ["true"], "working_dir": "x"}, BadRequestError, "the working directory must be an absolute path"),
        ({"cmd": ["true"], "user": "nosuch"}, BadRequestError, "unknown user 'nosuch'"),
        ({"cmd": ["true"], "env": {"=": ""}}, BadRequestError, "invalid environment variable name '='"),
        ({"cmd": []}, BadRequestError, "empty command"),
        ({"cmd": ["true"], "container": "nope"}, NotFoundError, "container not found: nope"),
    ],
)
def test_what_cannot_be_run_says_why(
    client: sync.Client, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        client.exec(options.pop("cmd"), **options)
    assert text_of(caught.value).startswith(text)  # type: ignore[arg-type]


def test_environment_user_and_directory(client: sync.Client) -> None:
    result = client.exec(["env"], env={"A": "b"})
    assert sorted(result.stdout.split()) == [
        b"A=b",
        b"HOME=/root",
        b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ]
    assert client.exec(["pwd"], working_dir="/usr").stdout == b"/usr\n"
    assert client.exec(["pwd"]).stdout == b"/\n"
    assert client.exec(["sh", "-c", "id -u; id -g; echo x >/dev/stdout"], user="4242:4343").stdout == b"4242\n4343\nx\n"


@pytest.mark.parametrize("where", ["guest", "container"])
def test_a_terminal_has_a_term_unless_one_is_asked_for(client: sync.Client, where: str) -> None:
    id = ""
    if where == "container":
        id = client.create_container(cmd=["sleep", "60"]).id
        client.start_container(id)
    show = ["sh", "-c", 'printf "[%s]" "$TERM"']
    assert client.exec(show, container=id, tty=True).stdout == b"[xterm]"
    assert client.exec(show, container=id, tty=True, env={"TERM": "vt100"}).stdout == b"[vt100]"
    assert client.exec(show, container=id, tty=True, env={"TERM": ""}).stdout == b"[]"
    assert client.exec(show, container=id).stdout == b"[]"


def test_a_term_of_the_container_holds_for_its_commands(client: sync.Client) -> None:
    id = client.create_container(cmd=["sleep", "60"], env={"TERM": "linux"}).id
    client.start_container(id)
    assert client.exec(["printenv", "TERM"], container=id, tty=True).stdout == b"linux\r\n"


#: The user that a program has taken opens each of its streams again.
REOPEN = ["setpriv", "--reuid", "4242", "--regid", "4343", "--clear-groups", "sh", "-c"]


@pytest.mark.parametrize("options", [{}, {"user": "0:0"}, {"tty": True}], ids=str)
def test_a_command_that_changes_its_user_can_open_its_streams_again(
    client: sync.Client, options: dict[str, Any]
) -> None:
    script = "echo out >/dev/stdout && echo err >/dev/stderr"
    if not options.get("tty"):
        script = "cat </dev/stdin && " + script
    result = client.exec([*REOPEN, script], stdin=b"" if options.get("tty") else b"in\n", **options)
    assert result.exit_code == 0
    expected = (b"out\r\nerr\r\n", b"") if options.get("tty") else (b"in\nout\n", b"err\n")
    assert (result.stdout, result.stderr) == expected


def test_a_container_that_changes_its_user_can_open_its_streams_again(client: sync.Client) -> None:
    for options in ({}, {"tty": True}, {"open_stdin": True}):
        script = "echo out >/dev/stdout && echo err >/dev/stderr"
        if "open_stdin" in options:
            script = "exec 3</dev/stdin && " + script
        id = client.create_container(cmd=[*REOPEN, script], **options).id  # type: ignore[arg-type]
        client.start_container(id)
        assert client.wait_container(id).status_code == 0, [entry.data for entry in client.logs(id)]
        assert sorted(entry.data.strip() for entry in client.logs(id)) == [b"err", b"out"]


def test_nobody_reads_the_output_of_a_command_by_its_descriptor(client: sync.Client) -> None:
    result = client.exec([*REOPEN, "cat </dev/stdout"])
    assert result.exit_code != 0
    assert b"Permission denied" in result.stderr


def test_a_grandchild_that_holds_the_output_does_not_hold_the_command(client: sync.Client, tmp_path: Path) -> None:
    kept = tmp_path / "pid"
    result = client.exec(["sh", "-c", f"echo out; echo err >&2; sleep 1000 & echo $! >{kept}; exit 3"])
    assert (result.stdout, result.stderr, result.exit_code) == (b"out\n", b"err\n", 3)
    os.kill(int(kept.read_text()), signal.SIGKILL)
    # One that writes without end does not either: it meets a closed pipe, and ends.
    result = client.exec(["sh", "-c", f"yes >&2 & echo $! >{kept}; echo out; exit 4"])
    assert (result.stdout, result.exit_code) == (b"out\n", 4)
    eventually(lambda: not alive(int(kept.read_text())))


def test_all_that_the_command_itself_wrote_comes_though_it_has_ended_long_ago(agent: Any, tmp_path: Path) -> None:
    """The client reads nothing until the command is gone; what lay in its pipe is not cut."""
    kept = tmp_path / "pid"

    async def main() -> None:
        async with arcbox_agent.connect(agent.address, wait=10) as client:
            script = f"head -c 300000 /dev/zero; sleep 1000 & echo $! >{kept}; echo end"
            async with client.exec_stream(["sh", "-c", script]) as parts:
                await asyncio.sleep(1.5)
                data = b"".join([part.data async for part in parts])
            assert data == bytes(300000) + b"end\n"

    run(main())
    os.kill(int(kept.read_text()), signal.SIGKILL)


def test_a_command_that_takes_too_long_is_killed_with_all_it_started(client: sync.Client, agent: Any) -> None:
    script = "echo $$; setsid sleep 1000 & echo $!; wait"
    result = client.exec(["sh", "-c", script], timeout=0.5)
    assert (result.timed_out, result.signal, result.exit_code) == (True, 9, 137)
    pids = [int(line) for line in result.stdout.split()]
    assert len(pids) == 2
    eventually(lambda: not any(map(alive, pids)))
    output = raw(agent, wire.ExecRequest(cmd=["sleep", "1000"], timeout_ms=200, detail=True))
    assert (output.timed_out, output.exit_code, output.signal) == (True, -1, 9)
    assert not client.exec(["true"], timeout=50).timed_out


def test_a_client_that_goes_away_ends_its_command_with_all_it_started(agent: Any) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(agent.socket_path))
        script = "echo $$; setsid sleep 1000 & echo $!; wait"
        connection.sendall(wire.encode_message(wire.ExecRequest(cmd=["sh", "-c", script], stream=True)))
        decoder = wire.FrameDecoder(version=1)
        text = b""
        while text.count(b"\n") < 2:
            decoder.feed(connection.recv(65536))
            while (frame := decoder.next_frame()) is not None:
                text += wire.ExecOutput.decode(frame.payload).data
        pids = [int(line) for line in text.split()]
        assert all(map(alive, pids))
    eventually(lambda: not any(map(alive, pids)))


def test_a_client_that_goes_away_ends_a_command_without_a_stream_too(agent: Any, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(agent.socket_path))
        script = f"echo $$ >{tmp_path}/pid.tmp; mv {tmp_path}/pid.tmp {tmp_path}/pid; sleep 1000"
        connection.sendall(wire.encode_message(wire.ExecRequest(cmd=["sh", "-c", script])))
        eventually((tmp_path / "pid").exists)
    pid = int((tmp_path / "pid").read_text())
    eventually(lambda: not alive(pid))


def test_a_detached_command_goes_on_without_its_client(agent: Any) -> None:
    with sync.connect(agent.address, wait=10) as client:
        pid = client.exec_detached(["sleep", "1000"])
        assert alive(pid)
    assert alive(pid)
    with sync.connect(agent.address) as client:
        assert client.exec(["sh", "-c", f"kill {pid}"]).exit_code == 0
        eventually(lambda: not os.path.exists(f"/proc/{pid}"))  # it was reaped too
        assert client.exec_detached(["true"]) > 0


def test_a_detached_command_goes_on_though_its_client_goes_away_while_it_is_started(agent: Any, tmp_path: Path) -> None:
    parent = cgroups.find_parent(cgroup_name(str(agent.state_dir)))
    assert parent is not None, "this test needs cgroup2"
    with sync.connect(agent.address, wait=10) as client, leased(tmp_path / "sh") as release:
        for detach in (True, False):
            with socket.socket(socket.AF_UNIX) as leaving:
                leaving.connect(str(agent.socket_path))
                script = f"echo $$ >{tmp_path}/{detach}; exec sleep 1000"
                request = wire.ExecRequest(cmd=[f"{tmp_path}/sh", "-c", script], detach=detach)
                leaving.sendall(wire.encode_message(request))
                born = 2 - detach
                eventually(lambda: len(cgroups.Cgroup(parent).pids()) >= born)
        eventually(lambda: client.agent_info().connections == 1)
        release()
        eventually(lambda: (tmp_path / "True").exists() and (tmp_path / "True").read_text() != "")
        pid = int((tmp_path / "True").read_text())
        eventually(lambda: cgroups.Cgroup(parent).pids() == {pid})
    os.kill(pid, signal.SIGKILL)


def test_the_agent_ends_though_the_start_of_a_command_hangs(start_agent: Callable[..., Any], tmp_path: Path) -> None:
    agent = start_agent(shutdown_timeout="0.2")
    parent = cgroups.find_parent(cgroup_name(str(agent.state_dir)))
    assert parent is not None, "this test needs cgroup2"
    with leased(tmp_path / "sh"), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(agent.socket_path))
        connection.sendall(wire.encode_message(wire.ExecRequest(cmd=[f"{tmp_path}/sh", "-c", "true"])))
        eventually(lambda: len(cgroups.Cgroup(parent).pids()) == 1)
        agent.stop()
    assert "ended with something under way that hangs threads=spawn_0" in agent.log()


def test_the_agent_ends_without_a_word_of_failure_while_detached_commands_go_on(agent: Any) -> None:
    with sync.connect(agent.address, wait=10) as client:
        reply = raw(agent, wire.ExecRequest(cmd=["sleep", "1000"], detach=True, detail=True, timeout_ms=900_000))
        also = client.exec_detached(["sleep", "1000"])
    agent.stop()
    assert alive(reply.pid) and alive(also)
    for pid in (reply.pid, also):
        os.kill(pid, signal.SIGKILL)
    assert " error " not in agent.log()


def test_what_a_command_leaves_in_the_background_goes_on(client: sync.Client) -> None:
    result = client.exec(["sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"])
    pid = int(result.stdout)
    time.sleep(0.3)
    assert alive(pid)
    os.kill(pid, signal.SIGKILL)


def test_output_over_the_limit_ends_the_command_and_says_to_stream(start_agent: Callable[..., Any]) -> None:
    agent = start_agent(exec_output_limit="100000")
    at_limit = raw(agent, wire.ExecRequest(cmd=["head", "-c", "100000", "/dev/zero"]))
    assert at_limit.data == bytes(100000)
    with pytest.raises(BadRequestError, match="larger than exec_output_limit = 100000 bytes: ask for a stream"):
        raw(agent, wire.ExecRequest(cmd=["head", "-c", "100001", "/dev/zero"]))
    with pytest.raises(BadRequestError):
        raw(agent, wire.ExecRequest(cmd=["sh", "-c", "yes >&2"], detail=True))
    with sync.connect(agent.address) as client:
        assert len(client.exec(["head", "-c", "1000000", "/dev/zero"]).stdout) == 1000000
    # Nobody asked for its errors: they are not read, and do not count.
    assert raw(agent, wire.ExecRequest(cmd=["sh", "-c", "head -c 1000000 /dev/zero >&2"])).exit_code == 0


def test_there_is_a_bound_on_commands(start_agent: Callable[..., Any]) -> None:
    agent = start_agent(max_execs="2")

    async def main() -> None:
        async with arcbox_agent.connect(agent.address, wait=10) as client:
            running = [asyncio.create_task(client.exec(["sleep", "1000"])) for _ in range(2)]
            await asyncio.sleep(0.5)
            with pytest.raises(BusyError, match="max_execs = 2 commands run already"):
                await client.exec(["true"])
            running[0].cancel()
            async with asyncio.timeout(20):
                while True:
                    try:
                        assert (await client.exec(["true"])).exit_code == 0
                        break
                    except BusyError:
                        await asyncio.sleep(0.02)
            running[1].cancel()
            await asyncio.gather(*running, return_exceptions=True)

    run(main())


def test_a_stream_begins_before_the_command_ends(agent: Any) -> None:
    async def main() -> None:
        async with arcbox_agent.connect(agent.address, wait=10) as client:
            async with client.exec_stream(["sh", "-c", "echo one; read x; echo two"], tty=True) as parts:
                async for part in parts:
                    assert part.data == b"one\r\n"
                    break

    run(main())


def test_a_slow_reader_holds_up_its_command_and_nobody_else(agent: Any) -> None:
    with socket.socket(socket.AF_UNIX) as slow:
        slow.connect(str(agent.socket_path))
        slow.sendall(wire.encode_message(wire.ExecRequest(cmd=["yes"], stream=True)))
        with sync.connect(agent.address) as client:
            for _ in range(20):
                assert client.exec(["echo", "a"]).stdout == b"a\n"
            time.sleep(0.5)
            memory = client.exec(["sh", "-c", f"grep VmRSS /proc/{agent.process.pid}/status"]).stdout
            assert int(memory.split()[1]) < 100_000  # kB


@pytest.mark.parametrize("ends", [True, False])
def test_a_command_that_takes_back_what_it_wrote_harms_nobody_else(agent: Any, ends: bool) -> None:
    script = """
        import os, time
        os.write(1, bytes(1_000_000))
        while not os.path.exists("go"):
            time.sleep(0.02)
        back = os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK)
        try:
            while os.read(back, 1 << 20):
                pass
        except BlockingIOError:
            pass
        with open("done", "w") as file:
            file.write(f"{os.getpid()}\\n")
        os.close(back)
        while os.path.exists("go"):
            time.sleep(0.02)
    """
    go, done = agent.directory / "go", agent.directory / "done"
    request = wire.ExecRequest(
        cmd=[sys.executable, "-c", textwrap.dedent(script)], working_dir=str(agent.directory), stream=True
    )
    with sync.connect(agent.address) as client, socket.socket(socket.AF_UNIX) as slow:
        slow.connect(str(agent.socket_path))
        slow.settimeout(30)
        slow.sendall(wire.encode_message(request))
        # One frame has begun: of some of it the socket is full, and the rest waits in the pipe.
        eventually(lambda: unread(slow) > 100_000)
        go.touch()
        eventually(lambda: done.exists() and done.read_text().endswith("\n"))
        if ends:
            go.unlink()
            eventually(lambda: not alive(int(done.read_text())))
        with contextlib.suppress(ConnectionResetError):
            while slow.recv(1 << 20):
                pass
        assert client.exec(["echo", "a"]).stdout == b"a\n"
        eventually(lambda: client.agent_info().connections == 1)


def unread(connection: socket.socket) -> int:
    return int.from_bytes(fcntl.ioctl(connection, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_terminal(client: sync.Client) -> None:
    result = client.exec(["sh", "-c", "tty; stty size; echo err >&2"], tty=True, tty_width=132, tty_height=50)
    lines = result.stdout.split(b"\r\n")
    assert lines[0].startswith(b"/dev/pts/") and lines[1:] == [b"50 132", b"err", b""]
    assert result.stderr == b""
    result = client.exec(["sh", "-c", "stty -echo; read a; echo got $a; cat; exit 9"], tty=True, stdin=b"hello\n")
    assert result.stdout.endswith(b"got hello\r\n")
    assert result.exit_code == 9


def test_the_input_of_a_terminal_ends_though_its_last_line_does_not(client: sync.Client) -> None:
    for octets in (b"one\ntwo", b"one\ntwo\n"):
        result = client.exec(["sh", "-c", "stty -echo; cat; exit 9"], tty=True, stdin=octets, timeout=30)
        assert result.stdout.endswith(octets.replace(b"\n", b"\r\n"))
        assert (result.exit_code, result.timed_out) == (9, False)


def test_a_command_may_close_its_terminal_and_open_it_again(client: sync.Client) -> None:
    close = "echo before; exec <&- >&- 2>&-; sleep 0.3; "
    result = client.exec(["sh", "-c", close + "exit 7"], tty=True)
    assert (result.exit_code, result.stdout) == (7, b"before\r\n")
    result = client.exec(["sh", "-c", close + "seq 50000 >/dev/tty; exit 8"], tty=True)
    assert (result.exit_code, result.stdout.split()) == (8, [b"before", *(b"%d" % n for n in range(1, 50001))])


def test_in_a_container(client: sync.Client, rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "file").write_text("mounted\n")
    client.create_container(
        cmd=["sleep", "1000"],
        name="x",
        rootfs=str(rootfs),
        env={"A": "container", "B": "container"},
        user="alice",
        working_dir="/data",
        mounts=[Mount(source=str(tmp_path / "m"), target="/m"), Mount(type="tmpfs", target="/t")],
    )
    with pytest.raises(BadRequestError, match="container is not running: "):
        client.exec(["true"], container="x")
    client.start_container("x")
    info = client.list_containers()[0]
    script = "echo $A $B $C; id -u; id -G; pwd; cat /m/file; echo t >/t/file; ls /t; ls /"
    result = client.exec(["sh", "-c", script], container="x", env={"B": "command", "C": "command"})
    assert result.stdout.decode().splitlines()[:6] == [
        "container command command",
        "4100",
        "4200 4400 4500",
        "/data",
        "mounted",
        "file",
    ]
    assert "m" in result.stdout.decode().splitlines() and "usr" not in result.stdout.decode().splitlines()
    assert client.exec(["id", "-u"], container="x", user="root").stdout == b"0\n"
    assert client.exec(["pwd"], container="x", working_dir="/tmp").stdout == b"/tmp\n"
    with pytest.raises(AgentFailedError, match="exec failed: No such file or directory"):
        client.exec(["/usr/bin/env"], container=info.id[:8])
    # It is part of the container: it ends with it.
    pid = client.exec_detached(["sleep", "1000"], container="x")
    assert alive(pid)
    client.stop_container("x", timeout=5)
    assert not alive(pid)
    with pytest.raises(BadRequestError, match="container is not running: "):
        client.exec(["true"], container="x")


def test_a_command_that_runs_in_a_container_ends_with_it_and_tells_its_client(agent: Any) -> None:
    async def main() -> None:
        async with arcbox_agent.connect(agent.address, wait=10) as client:
            await client.create_container(cmd=["sleep", "1000"], name="x")
            await client.start_container("x")
            command = asyncio.create_task(client.exec(["sleep", "1000"], container="x"))
            await asyncio.sleep(0.3)
            await client.kill_container("x")
            assert (await command).signal == 9

    run(main())


def test_no_command_outlives_the_container_that_ends_while_it_is_started(agent: Any) -> None:
    async def begin(client: arcbox_agent.Client, id: str, pids: list[int]) -> None:
        await asyncio.sleep(random.random() * 0.004)
        with contextlib.suppress(BadRequestError, AgentFailedError):
            pids.append(await client.exec_detached(["sleep", "1000"], container=id))

    async def main() -> None:
        pids: list[int] = []
        async with arcbox_agent.connect(agent.address, wait=10) as client:
            for number in range(64):
                id = (await client.create_container(cmd=["sh", "-c", "read x"], open_stdin=True)).id
                await client.start_container(id)
                commands = [asyncio.create_task(begin(client, id, pids)) for _ in range(6)]
                await asyncio.sleep(number % 4 * 0.001)
                (agent.run_dir / "containers" / id / "stdin").write_text("x\n")
                await asyncio.gather(*commands)
                await client.wait_container(id)
                await client.remove_container(id)
        assert pids
        await asyncio.to_thread(eventually, lambda: not any(map(alive, pids)))

    run(main(), 120)


def test_many_at_once_leave_nothing(agent: Any) -> None:
    async def main() -> None:
        async with arcbox_agent.connect(agent.address, wait=10) as client:
            await client.exec(["true"])
            descriptors = len(os.listdir(f"/proc/{agent.process.pid}/fd"))

            async def one(n: int) -> None:
                result = await client.exec(["sh", "-c", f"cat; echo {n} >&2; exit {n % 256}"], stdin=b"x" * n)
                assert (result.stdout, result.stderr) == (b"x" * n, f"{n}\n".encode())
                assert result.exit_code == n % 256

            for _ in range(3):
                await asyncio.gather(*(one(n) for n in range(100)))
                await asyncio.gather(*(client.exec(["/no/such"]) for _ in range(50)), return_exceptions=True)
        # The scopes of some commands are kept for the next ones, each with a descriptor.
        most = descriptors + SPARE_SCOPES - 1
        eventually(lambda: len(os.listdir(f"/proc/{agent.process.pid}/fd")) <= most)

    run(main())
    with open(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children") as file:
        assert file.read().split() == []


def test_a_command_that_cannot_be_prepared_leaves_no_cgroup(client: sync.Client, agent: Any) -> None:
    parent = cgroups.find_parent(cgroup_name(str(agent.state_dir)))
    assert parent is not None, "this test needs cgroup2"
    for _ in range(5):
        client.exec(["true"])  # leaves its cgroup for the next one
        with pytest.raises(BadRequestError, match="unknown user"):
            client.exec(["true"], user="nobody-of-that-name")
    assert len([entry for entry in os.scandir(f"{parent}/.commands") if entry.is_dir()]) <= 1


def test_a_time_that_is_over_before_the_command_has_started_is_told_as_such(client: sync.Client) -> None:
    for _ in range(20):
        result = client.exec(["sleep", "1000"], timeout=0.0001)
        assert (result.timed_out, result.signal) == (True, signal.SIGKILL)


def test_more_arguments_than_one_command_may_have_are_refused(client: sync.Client) -> None:
    for call in (client.exec, client.create_container):
        with pytest.raises(BadRequestError, match="more than 65536 items"):
            call(cmd=["true", *["x"] * 65536])
    with pytest.raises(BadRequestError, match="more than 65536 items"):
        client.exec(["true"], env={f"v{n}": "" for n in range(65537)})


@pytest.mark.parametrize("trace", [None, "", "8f1c", "x" * 3000])
@pytest.mark.parametrize("size", [1, 127, 128, 16383, 16384, 1 << 20])
def test_a_frame_made_of_a_head_and_data_is_the_one_that_the_message_class_makes(trace: str | None, size: int) -> None:
    octets = os.urandom(size)
    for stream in ("stdout", "stderr"):
        expected = wire.encode_message(wire.ExecOutput(stream=stream, data=octets), trace)
        assert wire.encode_exec_output_head(stream, size, trace) + octets == expected

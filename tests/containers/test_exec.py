"""Commands in the guest: output, exit codes, streams, time, and what goes on after them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arcbox_agent import sync
from arcbox_agent.errors import AgentFailedError, BadRequestError, BusyError, NotFoundError
from arcbox_agent.wire import ExecOutput, ExecRequest
from tests.conftest import PATIENCE, RunningAgent


@pytest.fixture
def client(agent: RunningAgent) -> Iterator[sync.Client]:
    with sync.connect(agent.address) as client:
        yield client


def until(what: Callable[[], object], message: str = "it never happened") -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, message
        time.sleep(0.01)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def descriptors(agent: RunningAgent) -> int:
    return len(os.listdir(f"/proc/{agent.process.pid}/fd"))


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


# --------------------------------------------------------------- one reply


def test_stdout_stderr_and_the_exit_code_come_back(client: sync.Client) -> None:
    result = client.exec(sh("echo out; echo err >&2; exit 42"))
    assert (result.stdout, result.stderr, result.exit_code, result.signal) == (b"out\n", b"err\n", 42, 0)


def test_a_command_ended_by_a_signal_is_128_and_the_signal(client: sync.Client) -> None:
    result = client.exec(sh("kill -TERM $$"))
    assert (result.exit_code, result.signal) == (143, 15)


def test_an_old_client_gets_one_reply_with_stdout_alone(client: sync.Client) -> None:
    reply = client.call(ExecRequest(cmd=sh("echo out; echo err >&2; kill -9 $$")), ExecOutput)
    assert reply == ExecOutput(stream="stdout", data=b"out\n", exit_code=-1, done=True)


def test_one_reply_with_detail_has_stderr_and_signal(client: sync.Client) -> None:
    reply = client.call(ExecRequest(cmd=sh("echo out; echo err >&2; kill -9 $$"), detail=True), ExecOutput)
    assert reply == ExecOutput(
        stream="stdout", data=b"out\n", exit_code=-1, done=True, stderr=b"err\n", signal=9
    )


def test_output_that_is_no_text_comes_unchanged(client: sync.Client) -> None:
    octets = bytes(range(256)) * 3
    assert client.exec(["cat"], stdin=octets).stdout == octets


def test_more_output_than_one_reply_may_have_is_an_error_and_ends_the_command(
    start_agent: Callable[..., RunningAgent],
) -> None:
    agent = start_agent(exec_output_limit="64KiB")
    with sync.connect(agent.address) as client:
        with pytest.raises(BadRequestError, match="larger than exec_output_limit = 65536 bytes: ask for a stream"):
            client.call(ExecRequest(cmd=["yes"]), ExecOutput)
        assert client.call(ExecRequest(cmd=sh("head -c 65536 /dev/zero")), ExecOutput).data == bytes(65536)
        # A stream has no such limit.
        assert len(client.exec(sh("head -c 200000 /dev/zero")).stdout) == 200000


# --------------------------------------------------------------- surroundings


def test_a_command_gets_the_environment_that_was_asked_and_nothing_else(client: sync.Client) -> None:
    result = client.exec(["/usr/bin/env", "-0"], env={"A": "b c", "EMPTY": "", "UNICODE": "ä\n"})
    found = dict(entry.split("=", 1) for entry in result.stdout.decode().split("\0") if entry)
    assert found == {
        "A": "b c",
        "EMPTY": "",
        "UNICODE": "ä\n",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
    }


def test_a_command_has_three_descriptors_and_no_other(client: sync.Client) -> None:
    # The fourth is the directory that ls reads.
    assert client.exec(["ls", "/proc/self/fd"]).stdout.split() == [b"0", b"1", b"2", b"3"]


def test_a_command_runs_where_it_was_asked_to(client: sync.Client) -> None:
    assert client.exec(["pwd"], working_dir="/usr").stdout == b"/usr\n"
    assert client.exec(["pwd"]).stdout == b"/\n"


def test_a_relative_working_directory_is_refused(client: sync.Client) -> None:
    with pytest.raises(BadRequestError, match="working directory must be an absolute path, not 'usr'"):
        client.exec(["pwd"], working_dir="usr")


def test_a_missing_working_directory_is_named(client: sync.Client) -> None:
    with pytest.raises(AgentFailedError, match=r"exec failed: .*/no/such: No such file or directory \(os error 2\)"):
        client.exec(["pwd"], working_dir="/no/such")


def test_a_command_runs_as_the_user_that_was_asked(client: sync.Client) -> None:
    script = 'echo "$(id -u) $(id -g) $(id -G) $HOME"'
    assert client.exec(sh(script), user="daemon").stdout.split()[0] == b"1"
    assert client.exec(sh(script), user="1234:5678").stdout == b"1234 5678 5678 /\n"


def test_a_user_without_rights_may_open_its_own_output_again(client: sync.Client) -> None:
    assert client.exec(sh("echo again > /dev/stdout"), user="daemon").stdout == b"again\n"


def test_an_unknown_user_is_an_error(client: sync.Client) -> None:
    with pytest.raises(BadRequestError, match="unknown user 'nobody-at-all'"):
        client.exec(["true"], user="nobody-at-all")


def test_a_missing_program_is_told_as_alpha1_tells_it(client: sync.Client) -> None:
    with pytest.raises(AgentFailedError, match=r"^exec failed: No such file or directory \(os error 2\)"):
        client.exec(["/no/such/program"])
    with pytest.raises(AgentFailedError, match=r"^exec failed: Permission denied \(os error 13\)"):
        client.exec(["/etc/passwd"])


def test_an_empty_command_and_a_bad_environment_are_refused(client: sync.Client) -> None:
    with pytest.raises(BadRequestError, match="^empty command"):
        client.exec([])
    with pytest.raises(BadRequestError, match="invalid environment variable name 'A=B'"):
        client.exec(["true"], env={"A=B": "c"})


def test_an_unknown_container_is_not_found(client: sync.Client) -> None:
    with pytest.raises(NotFoundError, match="^container not found: nope"):
        client.exec(["true"], container="nope")


# --------------------------------------------------------------------- input


def test_more_input_than_a_pipe_holds_goes_in_while_output_comes_out(client: sync.Client) -> None:
    octets = os.urandom(5 << 20)
    assert client.exec(["cat"], stdin=octets).stdout == octets


def test_input_that_nobody_reads_holds_nothing_up(client: sync.Client) -> None:
    assert client.exec(sh("exec <&-; echo done"), stdin=bytes(1 << 20)).stdout == b"done\n"


def test_without_input_a_command_finds_its_end_at_once(client: sync.Client) -> None:
    assert client.exec(["cat"]).stdout == b""


# -------------------------------------------------------------------- streams


def test_a_stream_brings_output_while_the_command_runs(client: sync.Client, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    with client.exec_stream(sh(f"echo first; read x < {tmp_path}/go; echo second >&2")) as parts:
        first = next(parts)
        assert (first.stream, first.data, first.done) == ("stdout", b"first\n", False)
        (tmp_path / "go").write_text("go\n")
        second = next(parts)
        assert (second.stream, second.data) == ("stderr", b"second\n")
        last = next(parts)
        assert (last.done, last.exit_code, last.data) == (True, 0, b"")


def test_a_slow_reader_pauses_the_command_and_loses_nothing(agent: RunningAgent, client: sync.Client) -> None:
    size = 32 << 20
    with client.exec_stream(sh(f"head -c {size} /dev/zero")) as parts:
        received = len(next(parts).data)
        time.sleep(0.5)  # everything on the way is full by now
        assert client.ping().message == "pong"
        rss = next(
            int(line.split()[1])
            for line in Path(f"/proc/{agent.process.pid}/status").read_text().splitlines()
            if line.startswith("VmRSS")
        )
        assert rss < 100_000, "the agent holds the output in memory"
        for part in parts:
            received += len(part.data)
    assert (received, part.done, part.exit_code) == (size, True, 0)


def test_both_streams_at_full_speed_arrive_whole(client: sync.Client) -> None:
    result = client.exec(sh("head -c 3000000 /dev/zero & head -c 2000000 /dev/zero >&2; wait"))
    assert (len(result.stdout), len(result.stderr), result.exit_code) == (3000000, 2000000, 0)


def test_a_client_that_leaves_a_stream_ends_all_of_the_command(
    agent: RunningAgent, client: sync.Client, tmp_path: Path
) -> None:
    script = f"setsid sleep 1000 & echo $! > {tmp_path}/pid; echo started; sleep 1000"
    with client.exec_stream(sh(script)) as parts:
        assert next(parts).data == b"started\n"
        pid = int((tmp_path / "pid").read_text())
        assert runs(pid)
    until(lambda: not runs(pid), "what the command started goes on")


# ------------------------------------------------------------------------ end


def test_a_process_left_behind_holds_the_pipe_and_nobody_up(client: sync.Client, tmp_path: Path) -> None:
    started = time.monotonic()
    result = client.exec(sh(f"sleep 1000 & echo $! > {tmp_path}/pid; echo done"))
    assert (result.stdout, result.exit_code) == (b"done\n", 0)
    assert time.monotonic() - started < PATIENCE
    pid = int((tmp_path / "pid").read_text())
    assert runs(pid), "what it left behind on purpose goes on"
    os.kill(pid, signal.SIGKILL)


def test_all_that_was_written_before_the_end_is_read_though_another_holds_the_pipe(
    client: sync.Client, tmp_path: Path
) -> None:
    result = client.exec(sh(f"sleep 1000 & echo $! > {tmp_path}/pid; head -c 60000 /dev/zero"))
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert len(result.stdout) == 60000


def test_a_process_left_behind_that_writes_for_ever_does_not_keep_the_call_open(
    client: sync.Client, tmp_path: Path
) -> None:
    script = f"(while :; do echo x; sleep 0.01; done) & echo $! > {tmp_path}/pid; echo done"
    try:
        assert client.exec(sh(script)).stdout.startswith((b"done\n", b"x\n"))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_a_command_that_closes_its_output_is_waited_for(client: sync.Client) -> None:
    assert client.exec(sh("exec >&- 2>&-; sleep 0.3; exit 3")).exit_code == 3


def test_a_time_out_kills_all_that_the_command_started(client: sync.Client, tmp_path: Path) -> None:
    script = f"setsid sleep 1000 & echo $! > {tmp_path}/pid; echo before; trap '' TERM; sleep 1000"
    result = client.exec(sh(script), timeout=0.5)
    assert (result.stdout, result.timed_out, result.signal, result.exit_code) == (b"before\n", True, 9, 137)
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not runs(pid), "what the command started goes on")


def test_commands_leave_no_descriptor_no_process_and_no_cgroup(agent: RunningAgent, client: sync.Client) -> None:
    client.exec(["true"])
    before = descriptors(agent)
    for _ in range(20):
        client.exec(sh("echo x; sleep 0 &"))
        with pytest.raises(AgentFailedError):
            client.exec(["/no/such/program"])
    until(lambda: descriptors(agent) == before, "descriptors are left open")
    children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children")
    until(lambda: not children.read_text(), "processes are left")
    until(lambda: client.agent_info().counters["commands_started"] >= 21)


def test_no_more_commands_than_allowed_run_at_one_time(start_agent: Callable[..., RunningAgent]) -> None:
    agent = start_agent(max_execs="2")
    with sync.connect(agent.address) as client:
        with client.exec_stream(sh("echo; sleep 1000")) as one, client.exec_stream(sh("echo; sleep 1000")) as two:
            next(one), next(two)
            with pytest.raises(BusyError, match="max_execs = 2 commands run already"):
                client.exec(["true"])

        def runs_again() -> bool:
            try:
                return client.exec(["true"]).exit_code == 0
            except BusyError:
                return False

        until(runs_again, "commands that have ended are still counted")


# --------------------------------------------------------------------- detach


def test_a_detached_command_outlives_client_and_agent(
    start_agent: Callable[..., RunningAgent], tmp_path: Path
) -> None:
    agent = start_agent()
    script = f"read x < {tmp_path}/go; echo done > {tmp_path}/done"
    os.mkfifo(tmp_path / "go")
    with sync.connect(agent.address) as client:
        pid = client.exec_detached(sh(script))
        assert runs(pid)
    agent.kill()
    agent.restart()
    assert runs(pid)
    (tmp_path / "go").write_text("go\n")
    until(lambda: (tmp_path / "done").exists(), "it did not go on")


def test_a_detached_command_gets_its_input_and_leaves_no_zombie(client: sync.Client, tmp_path: Path) -> None:
    pid = client.exec_detached(sh(f"cat > {tmp_path}/new && mv {tmp_path}/new {tmp_path}/out"), stdin=b"x" * 100_000)
    until(lambda: (tmp_path / "out").exists())
    assert (tmp_path / "out").read_bytes() == b"x" * 100_000
    until(lambda: not Path(f"/proc/{pid}").exists(), "a zombie is left")


# ------------------------------------------------------------------- terminals


def test_a_terminal_has_the_size_that_was_asked(client: sync.Client) -> None:
    result = client.exec(sh("stty size; tty; test -t 0 && test -t 1 && test -t 2"), tty=True, tty_width=101, tty_height=33)
    size, name = result.stdout.split(b"\r\n")[:2]
    assert (size, name[:9], result.exit_code) == (b"33 101", b"/dev/pts/", 0)


def test_a_terminal_is_the_commands_own_and_takes_input(client: sync.Client) -> None:
    result = client.exec(sh("read line; echo got $line > /dev/tty"), tty=True, stdin=b"hello\n")
    assert b"got hello\r\n" in result.stdout

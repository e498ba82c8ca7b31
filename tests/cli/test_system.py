"""ping, info, and what is said where there is no agent."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from click.testing import CliRunner

import arcbox_agent
from arcbox_agent import wire
from arcbox_agent.cli.main import COMMANDS, arcboxctl
from tests.cli.conftest import ARCBOXCTL, environment
from tests.client import servers
from tests.conftest import PATIENCE

if TYPE_CHECKING:
    from tests.cli.conftest import Arcboxctl
    from tests.conftest import RunningAgent

VERSION = arcbox_agent.__version__


def test_ping_tells_the_version_the_address_and_the_time_it_took(ctl: Arcboxctl) -> None:
    assert re.fullmatch(rf"pong \(agent {VERSION} at {re.escape(ctl.address)}, \d+\.\d\d ms\)\n", ctl("ping").stdout)
    assert ctl("ping", "hello").stdout.startswith("pong: hello (agent ")


def test_ping_for_programs(ctl: Arcboxctl) -> None:
    for arguments in (["--json", "ping", "x"], ["ping", "--json", "x"]):
        reply = json.loads(ctl(*arguments).stdout)
        assert list(reply) == ["message", "version", "seconds"]
        assert (reply["message"], reply["version"]) == ("pong: x", VERSION)
        assert 0 < reply["seconds"] < 60


def test_the_address_is_taken_from_the_option_then_the_environment(ctl: Arcboxctl, tmp_path: Path) -> None:
    elsewhere = {**os.environ, "ARCBOX_HOST": f"unix://{tmp_path}/none.sock"}
    assert ctl("ping", env=elsewhere, code=125).stdout == ""
    assert ctl("--host", ctl.address, "ping", env=elsewhere).stdout.startswith("pong ")
    assert ctl("-H", ctl.address, "ping", env=elsewhere).stdout.startswith("pong ")


def test_info_shows_the_guest(ctl: Arcboxctl) -> None:
    lines = dict(line.split(": ", 1) for line in ctl("info").stdout.splitlines() if ": " in line)
    system = os.uname()
    assert lines["Hostname"].strip() == system.nodename
    assert lines["Kernel Version"].strip() == system.release
    assert lines["Architecture"].strip() == system.machine
    assert lines["CPUs"].strip() == str(os.cpu_count())
    reply = json.loads(ctl("info", "--json").stdout)
    assert reply["hostname"] == system.nodename
    assert reply["total_memory"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_info_shows_the_agent(ctl: Arcboxctl, shared_agent: RunningAgent) -> None:
    agent = shared_agent
    text = ctl("info", "--agent").stdout
    assert re.search(rf"^Version: +{VERSION}$", text, re.MULTILINE)
    assert re.search(rf"^PID: +{agent.process.pid}$", text, re.MULTILINE)
    assert re.search(rf"^State Directory: +{re.escape(str(agent.state_dir))}$", text, re.MULTILINE)
    assert re.search(rf"^unix:{re.escape(str(agent.socket_path))} +full +1$", text, re.MULTILINE)
    assert re.search(r"^LIMIT +VALUE$", text, re.MULTILINE)
    assert re.search(r"^max_connections +4096$", text, re.MULTILINE)
    reply = json.loads(ctl("info", "--agent", "--json").stdout)
    assert reply["pid"] == agent.process.pid
    assert reply["limits"]["max_connections"] == 4096
    assert reply["listeners"] == [{"address": f"unix:{agent.socket_path}", "connections": 1, "mode": "full"}]


def test_the_runtime_is_told_of(ctl: Arcboxctl) -> None:
    assert re.search(r"^containerd: +no$", ctl("runtime").stdout, re.MULTILINE)
    reply = json.loads(ctl("runtime", "--json").stdout)
    assert (reply["containerd_ready"], reply["docker_ready"]) == (False, False)


def test_where_there_is_no_agent_it_says_what_to_do(start_ctl: Callable[[str], Arcboxctl], tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/none.sock"
    for arguments in (["ping"], ["ps"], ["run", "x", "true"], ["exec", "x", "true"], ["logs", "x"], ["stop", "x"]):
        done = start_ctl(address)(*arguments, code=125)
        assert done.stdout == ""
        first, second = done.stderr.splitlines()
        assert first.startswith(f"arcboxctl: cannot connect to {address}: ")
        assert second == "--host or ARCBOX_HOST names another address; --wait 30 waits for a guest that boots."


def test_an_error_for_programs_is_one_object_on_standard_error(
    start_ctl: Callable[[str], Arcboxctl], tmp_path: Path
) -> None:
    done = start_ctl(f"unix://{tmp_path}/none.sock")("ps", "--json", code=125)
    assert done.stdout == ""
    error = json.loads(done.stderr)["error"]
    assert (error["type"], error["code"]) == ("ConnectError", None)
    assert error["message"].startswith("cannot connect to unix://")


def test_an_address_that_cannot_be_understood_is_told_of(start_ctl: Callable[[str], Arcboxctl]) -> None:
    done = start_ctl("http://localhost")("ping", code=125)
    assert done.stderr.startswith("arcboxctl: not an agent's address: 'http://localhost': ")


def test_wait_waits_for_an_agent_that_comes_later(
    start_agent: Callable[..., RunningAgent], start_ctl: Callable[[str], Arcboxctl]
) -> None:
    agent = start_agent()
    agent.stop()
    ctl = start_ctl(agent.address)
    waiting = ctl.start("--wait", "50", "ping")
    try:
        # Long enough for it to have tried; whenever it does, the answer must be the same.
        time.sleep(0.5)
        assert waiting.poll() is None
        agent.restart()
        out, err = waiting.communicate(timeout=60)
    finally:
        waiting.kill()
        waiting.wait()
    assert (waiting.returncode, err) == (0, b"")
    assert out.startswith(b"pong ")


def test_an_agent_that_goes_away_in_the_middle_is_an_error(
    start_agent: Callable[..., RunningAgent], start_ctl: Callable[[str], Arcboxctl]
) -> None:
    agent = start_agent()
    ctl = start_ctl(agent.address)
    ctl.container("web", "sh", "-c", "echo up; exec sleep 600")
    following = ctl.start("logs", "-f", "web")
    try:
        assert following.stdout is not None
        assert following.stdout.readline() == b"up\n"
        agent.kill()
        out, err = following.communicate(timeout=PATIENCE)
    finally:
        following.kill()
        following.wait()
    assert (following.returncode, out) == (125, b"")
    assert err.startswith(b"arcboxctl: ") and err.count(b"\n") == 1
    # The container outlived it; the next agent finds it, and stops it at its own end.
    agent.restart()
    assert ctl("ps", "-q").stdout != ""


def test_a_mistake_in_the_arguments_is_told_with_the_usage(start_ctl: Callable[[str], Arcboxctl]) -> None:
    ctl = start_ctl("unix:///nowhere")
    assert ctl("nope", code=125).stderr.splitlines()[0].startswith("arcboxctl: No such command 'nope'")
    assert ctl("ps", "--nope", code=125).stderr.splitlines()[1] == "Usage: arcboxctl ps [OPTIONS]"
    assert ctl("stop", code=125).stderr.splitlines()[0] == "arcboxctl: Missing argument 'CONTAINER...'."
    assert ctl("exec", "web", code=125).stderr.splitlines()[0] == "arcboxctl: no command is given"


def test_a_mistake_in_the_arguments_is_told_to_programs_too(start_ctl: Callable[[str], Arcboxctl]) -> None:
    ctl = start_ctl("unix:///nowhere")
    for arguments in (
        ["--json", "nope"],
        ["--json", "ps", "--nope"],
        ["ps", "--json", "--nope"],
        ["ps", "--nope", "--json"],
    ):
        assert json.loads(ctl(*arguments, code=125).stderr)["error"]["code"] is None


def test_no_command_at_all_is_a_question_for_help(start_ctl: Callable[[str], Arcboxctl]) -> None:
    ctl = start_ctl("unix:///nowhere")
    assert ctl().stdout == ctl("--help").stdout


def test_no_help_in_the_list_of_commands_is_cut_off(start_ctl: Callable[[str], Arcboxctl]) -> None:
    assert "..." not in start_ctl("unix:///nowhere")("--help").stdout.partition("Commands:")[2]


def test_streams_that_were_closed_before_the_start_are_as_if_null(ctl: Arcboxctl) -> None:
    def run(redirection: str, *arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {redirection}', "sh", *ARCBOXCTL, *arguments],
            env=environment(ctl.address),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    ctl.container("web", "sh", "-c", "echo up; exec sleep 600")
    assert run("<&-", "exec", "-i", "web", "sh", "-c", "cat; echo done") == (0, "done\n", "")
    assert run(">&-", "ps") == (0, "", "")
    assert run(">&-", "exec", "web", "sh", "-c", "echo out; echo err >&2") == (0, "", "err\n")
    assert run("2>&-", "exec", "web", "sh", "-c", "echo out; echo err >&2; exit 3") == (3, "out\n", "")
    assert run("<&- >&- 2>&-", "logs", "web") == (0, "", "")


def test_a_disk_that_is_full_is_an_error_in_words(ctl: Arcboxctl) -> None:
    for arguments in (["ps"], ["exec", "--guest", "echo", "hi"]):
        with open("/dev/full", "wb") as full:
            process = ctl.start(*arguments, stdout=full)
            _, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (125, b"arcboxctl: No space left on device\n")


def test_an_error_that_cannot_be_told_has_its_exit_code_all_the_same(ctl: Arcboxctl) -> None:
    read, closed_at_its_other_end = os.pipe()
    os.close(read)
    with open("/dev/full", "wb") as full, open(closed_at_its_other_end, "wb") as broken:
        # What arcboxctl refuses, what the agent does, and what a command says.
        for arguments in (["bogus"], ["stop", "nope"], ["exec", "-", "sh", "-c", "echo no >&2"]):
            assert ctl.start(*arguments, stderr=full).wait(PATIENCE) == 125
            assert ctl.start(*arguments, stderr=broken).wait(PATIENCE) == 141


def test_an_encoding_without_a_letter_shows_a_question_mark(ctl: Arcboxctl) -> None:
    ctl("create", "x", "sh", "-c", "a long command of many words")
    latin = {**environment(ctl.address), "PYTHONIOENCODING": "latin-1"}
    assert '"sh -c a long comman?"' in ctl("ps", "-a", env=latin).stdout


def test_an_error_of_the_agent_cannot_steer_the_terminal(ctl: Arcboxctl) -> None:
    assert ctl("exec", "\x1b[31m", "true", code=125).stderr == "arcboxctl: container not found: \\x1b[31m\n"
    assert ctl("ping", "\x1b[31m").stdout.startswith("pong: \\x1b[31m ")


def test_help_and_version_need_no_agent(start_ctl: Callable[[str], Arcboxctl]) -> None:
    ctl = start_ctl("unix:///nowhere")
    assert ctl("--version").stdout == f"arcboxctl {VERSION}\n"
    listed = re.findall(r"^  ([a-z][a-z-]*)  ", ctl("--help").stdout, re.MULTILINE)
    assert listed == list(COMMANDS)
    assert ctl(listed[0], "-h").stdout.startswith(f"Usage: arcboxctl {listed[0]} ")
    for command in listed:
        done = CliRunner().invoke(arcboxctl, ["-H", ctl.address, command, "-h"], prog_name="arcboxctl")
        assert (done.exit_code, done.output.startswith(f"Usage: arcboxctl {command} ")) == (0, True)


def test_help_imports_neither_asyncio_nor_the_client() -> None:
    """A person waits for every import."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from arcbox_agent.cli.main import run; run(['--version'])\n"
            "print(sorted({'asyncio', 'arcbox_agent.client', 'arcbox_agent.wire'} & set(sys.modules)))",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"arcboxctl {VERSION}\n[]\n"


def test_sync_time_tells_how_far_the_clock_is_off(ctl: Arcboxctl) -> None:
    # The agent's clock is this one.
    told = json.loads(ctl("sync-time", "--json").stdout)
    assert told["how"] == "left"
    assert told["before_seconds"] == told["after_seconds"]
    assert abs(told["after_seconds"]) <= told["round_trip_seconds"] / 2
    assert re.fullmatch(
        rf"{re.escape(ctl.address)}: the clock is \d+\.\d ms (ahead|behind), and was left alone "
        r"\(to within \d+\.\d ms\)\n",
        ctl("sync-time", "--slew").stdout,
    )


def test_shutdown_says_what_the_agent_will_do(start_ctl: Callable[[str], Arcboxctl]) -> None:
    asked: list[wire.ShutdownRequest] = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(servers.pong(servers.read_request(connection)))
        request = servers.read_request(connection)
        asked.append(wire.ShutdownRequest.decode(request.payload))
        reply = wire.ShutdownResponse(accepted=asked[-1].timeout_seconds != 7)
        connection.sendall(servers.frame(reply.TYPE, reply.encode(), request.trace))
        assert servers.closed_by_client(connection)

    with servers.server(serve) as agent:
        ctl = start_ctl(agent.address)
        assert ctl("shutdown").stdout == "shutting down\n"
        assert ctl("shutdown", "--reboot", "-t", "5").stdout == "rebooting\n"
        assert json.loads(ctl("shutdown", "--json").stdout) == {"accepted": True}
        refused = ctl("shutdown", "-t", "7", code=125)
        assert refused.stderr == "arcboxctl: the agent does not shut this guest down; its log says why\n"
        assert json.loads(ctl("shutdown", "-t", "7", "--json", code=125).stdout) == {"accepted": False}
    assert [(one.timeout_seconds, one.reboot) for one in asked] == [
        (0, False), (5, True), (0, False), (7, False), (7, False),
    ]  # fmt: skip


def test_a_closed_pipe_is_silent(ctl: Arcboxctl) -> None:
    for arguments in (["ps", "--no-trunc"], ["info"], ["info", "--agent", "--json"]):
        reader, writer = os.pipe()
        os.close(reader)
        process = ctl.start(*arguments, stdout=writer)
        os.close(writer)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (141, b"")

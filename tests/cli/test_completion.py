"""Completion scripts, run by the shells they are for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from arcbox_agent import wire
from tests.cli.conftest import environment
from tests.client import servers
from tests.conftest import PATIENCE

if TYPE_CHECKING:
    from tests.cli.conftest import Arcboxctl

BASH = r"""
source <(arcboxctl completion bash)
words=("$@")
COMP_WORDS=("${words[@]}")
COMP_CWORD=$((${#words[@]} - 1))
COMPREPLY=()
_arcboxctl_completion arcboxctl
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def bash(tmp_path: Path) -> Callable[..., list[str]]:
    """`bash(address, "ps", "--n")`: what bash offers for the last of the words."""
    program = tmp_path / "arcboxctl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m arcbox_agent.cli "$@"\n')
    program.chmod(0o755)

    def complete(address: str, *words: str) -> list[str]:
        done = subprocess.run(
            ["bash", "-c", BASH, "bash", "arcboxctl", *words],
            env={**environment(address), "PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()

    return complete


def test_bash_completes_commands_and_options(bash: Callable[..., list[str]]) -> None:
    assert bash("unix:///nowhere", "st") == ["start", "stop", "stats"]
    assert bash("unix:///nowhere", "ps", "--no") == ["--no-trunc"]
    assert bash("unix:///nowhere", "wait", "--condition", "n") == ["not-running", "next-exit"]


def test_bash_completes_containers_by_asking_the_agent(ctl: Arcboxctl, bash: Callable[..., list[str]]) -> None:
    for name in ("web-1", "web-2", "query"):
        ctl("create", "--name", name, "x", "true")
    ctl("create", "--id", "nameless", "x", "true")
    assert sorted(bash(ctl.address, "start", "web")) == ["web-1", "web-2"]
    assert sorted(bash(ctl.address, "start", "web-1", "")) == ["nameless", "query", "web-2"]
    assert bash("unix:///nowhere", "--host", ctl.address, "logs", "q") == ["query"]
    assert bash(ctl.address, "exec", "q") == ["query"]
    assert bash(ctl.address, "exec", "query", "q") == []


def test_without_an_agent_nothing_is_offered_and_nothing_said(bash: Callable[..., list[str]]) -> None:
    assert bash("unix:///nowhere", "start", "w") == []
    assert bash("not an address", "start", "w") == []


def test_no_word_is_offered_that_a_shell_would_take_for_more(bash: Callable[..., list[str]]) -> None:
    listed = wire.ListContainersResponse(
        containers=[
            wire.ContainerInfo(id="1", name=name)
            for name in ("web-1", "web;reboot", "web$(reboot)", "web\nweb-2", "web x")
        ]
    )

    def serve(connection: socket.socket) -> None:
        connection.sendall(servers.pong(servers.read_request(connection)))
        request = servers.read_request(connection)
        connection.sendall(servers.frame(listed.TYPE, listed.encode(), request.trace))
        assert servers.closed_by_client(connection)

    with servers.server(serve) as server:
        assert bash(server.address, "start", "web") == ["web-1"]


def test_the_script_of_each_shell_names_our_command(start_ctl: Callable[[str], Arcboxctl]) -> None:
    ctl = start_ctl("unix:///nowhere")
    assert "_ARCBOXCTL_COMPLETE=bash_complete" in ctl("completion", "bash").stdout
    assert ctl("completion", "zsh").stdout.startswith("#compdef arcboxctl")
    assert "complete --no-files --command arcboxctl" in ctl("completion", "fish").stdout
    assert "'tcsh' is not one of" in ctl("completion", "tcsh", code=125).stderr

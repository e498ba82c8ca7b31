"""arcboxctl, and an agent of 0.0.1-alpha.1 as it was recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.client.alpha1 import CONTAINER, Alpha1
from tests.client.servers import server

if TYPE_CHECKING:
    from tests.cli.conftest import Arcboxctl


def test_what_it_can_do_is_done_and_what_it_cannot_is_said(start_ctl: Callable[[str], Arcboxctl]) -> None:
    with server(Alpha1().serve) as agent:
        ctl = start_ctl(agent.address)
        assert ctl("ping").stdout.startswith("pong (agent 0.1.0 at ")
        assert ctl("ps", "-aq").stdout == ""
        assert ctl("exec", "-", "echo", "hello").stdout == "hello\n"
        assert ctl("exec", "--guest", "sh", "-c", "printf out; exit 42", code=42).stdout == "out"
        assert ctl("exec", "--guest", "/no/such/program", code=127).stderr.startswith("arcboxctl: exec failed: ")

        refused = ctl("run", "--name", "n", "img:1", "sleep", "60", code=125)
        assert refused.stderr == (
            "arcboxctl: this agent cannot tell when a container ends; --detach leaves it running\n"
        )
        assert ctl("run", "-d", "--name", "n", "img:1", "sleep", "60").stdout == f"{CONTAINER}\n"
        assert ctl("logs", CONTAINER).stdout == "one\n\ntwo\n"
        assert ctl("wait", CONTAINER, code=125).stderr == (
            "arcboxctl: the agent in the guest is too old for WaitContainerRequest\n"
        )
        assert ctl("start", CONTAINER).stdout == f"{CONTAINER}\n"
        ctl("rm", CONTAINER, code=125)
        assert ctl("stop", "-t", "2", CONTAINER).stdout == f"{CONTAINER}\n"
        assert ctl("stop", "-t", "2", CONTAINER).stdout == f"{CONTAINER}\n"
        assert ctl("ps", "-a").stdout.splitlines()[1].split()[-2:] == ["Stopped", "n"]
        assert ctl("rm", CONTAINER).stdout == f"{CONTAINER}\n"

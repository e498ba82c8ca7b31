"""Refusals and failures whose client has gone away: what the agent's log says of them."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from typing import Any

import pytest

from arcbox_agent import sync, wire
from arcbox_agent.agent.containers.tasks import Tasks
from arcbox_agent.agent.observe import log
from arcbox_agent.agent.observe.log import Sink
from arcbox_agent.errors import ConflictError

from .support import eventually, run


def test_refused_calls_whose_clients_have_gone_are_no_errors(client: sync.Client, agent: Any) -> None:
    client.create_container(id="x", cmd=["sleep", "1000"])
    asked = wire.encode_message(wire.StartContainerRequest(id="x"))
    for _ in range(3):
        leaving = []
        for _ in range(60):
            each = socket.socket(socket.AF_UNIX)
            each.connect(str(agent.socket_path))
            each.sendall(asked)
            leaving.append(each)
        for each in leaving:
            each.close()
        eventually(lambda: client.agent_info().connections == 1)
        client.stop_container("x", timeout=0)
    assert "Traceback" not in agent.log() and " error " not in agent.log()


@pytest.mark.parametrize(("failure", "lines"), [(ConflictError("refused"), 0), (ZeroDivisionError("failed"), 1)])
def test_of_work_whose_client_has_gone_a_failure_is_logged_once_and_a_refusal_not(
    failure: Exception, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(log, "sink", Sink(writing, log.INFO))
    monkeypatch.setattr("arcbox_agent.agent.containers.tasks._failed._seen", {})

    async def main() -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        tasks = Tasks()

        async def work() -> None:
            await asyncio.sleep(0.02)
            raise failure

        for _ in range(3):
            call = asyncio.create_task(tasks.own(work()))
            await asyncio.sleep(0.001)
            call.cancel()
        await asyncio.sleep(0.1)
        gc.collect()
        assert complaints == []
        await tasks.close()

    run(main())
    os.write(writing, b"end\n")
    written = os.read(reading, 1 << 16).decode().splitlines()
    os.close(reading)
    os.close(writing)
    assert len(written) == lines + 1
    assert all("work that nobody waits for failed" in line for line in written[:-1])

"""ExecStart, Attach, AttachInput, ExecResize: executions for those who speak these."""

from __future__ import annotations

import pytest

from arcbox_agent import wire
from tests.agent.peer import Peer
from tests.conftest import RunningAgent
from tests.executions.support import SHELL, connect


def exec_start(peer: Peer, script: str, **options: object) -> None:
    request = wire.ExecStartRequest(exec_id="e", cmd=[*SHELL, script], **options)  # type: ignore[arg-type]
    reply = peer.ask(request)
    assert isinstance(reply, wire.ExecStartResponse), reply
    assert reply.pid > 0


def output_of(peer: Peer) -> tuple[dict[str, bytes], wire.Message]:
    """All output, and the frame that ends the stream."""
    data = {"stdout": b"", "stderr": b""}
    while isinstance(message := peer.reply(), wire.AttachOutput):
        data[message.stream] += message.data
    return data, message


def test_input_and_output_of_a_command(peer: Peer) -> None:
    exec_start(peer, "echo err >&2; cat; echo end")
    peer.send(wire.AttachRequest(exec_id="e", attach_stdin=True, attach_stdout=True, attach_stderr=True))
    peer.send(wire.AttachInput(data=b"hello "), wire.AttachInput(data=b"world\n"), wire.AttachInput())
    data, last = output_of(peer)
    assert (data, last) == ({"stdout": b"hello world\nend\n", "stderr": b"err\n"}, wire.Empty())
    # The connection goes on, and the exit code is known.
    end = peer.ask(wire.WaitExecutionRequest(id="e"))
    assert isinstance(end, wire.Execution)
    assert (end.cause, end.exit_code) == ("exited", 0)


def test_a_terminal_is_resized(peer: Peer) -> None:
    exec_start(peer, "read a; stty size; read b; stty size", tty=True, tty_width=100, tty_height=30)
    peer.send(wire.AttachRequest(exec_id="e", attach_stdin=True, attach_stdout=True, tty_width=90, tty_height=20))
    peer.send(wire.AttachInput(data=b"\n"))
    while b"20 90" not in (message := peer.reply()).data:  # type: ignore[attr-defined]
        assert isinstance(message, wire.AttachOutput)
    peer.send(wire.AttachInput(resize=True, width=132, height=43), wire.AttachInput(data=b"\n"))
    data, last = output_of(peer)
    assert data["stdout"].endswith(b"43 132\r\n")
    assert last == wire.Empty()


def test_much_output_waits_for_a_client_that_reads_late(agent: RunningAgent, peer: Peer) -> None:
    exec_start(peer, "seq 1 3000000")
    attached = connect(agent.socket_path)
    attached.send(wire.AttachRequest(exec_id="e", attach_stdout=True))
    data, last = output_of(attached)
    assert data["stdout"] == b"".join(b"%d\n" % n for n in range(1, 3_000_001))
    assert last == wire.Empty()


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (wire.AttachRequest(exec_id="none"), 404, "execution not found: none"),
        (wire.AttachRequest(container_id="c"), 400, "no exec_id"),
        (wire.ExecStartRequest(cmd=["true"]), 400, "no exec_id"),
        (wire.ExecResizeRequest(exec_id="none"), 404, "execution not found: none"),
    ],
)
def test_errors_say_what_is_wrong(peer: Peer, request_: wire.Message, code: int, text: str) -> None:
    reply = peer.ask(request_)
    assert isinstance(reply, wire.Error)
    assert (reply.code, text in reply.message) == (code, True)

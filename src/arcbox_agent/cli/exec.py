"""exec: run a command in a running container, or in the guest itself."""

from __future__ import annotations

import os
import select
import shutil
import sys
from typing import TYPE_CHECKING

import click

from arcbox_agent.cli.completion import first_is_container
from arcbox_agent.cli.environment import environment, environment_options
from arcbox_agent.cli.failures import ForwardedError
from arcbox_agent.cli.input_stream import DETACH_KEYS, parse_keys
from arcbox_agent.cli.invocation import Invocation, json_option, pass_invocation
from arcbox_agent.cli.output import TIMED_OUT, payload, stream_fd, warn

if TYPE_CHECKING:
    from arcbox_agent.cli.signals import Signals
    from arcbox_agent.client import Client
    from arcbox_agent.client.keywords import CommandOptions, ExecOptions, StartOptions

#: Where all of the input is part of one request: a request has at most 16 MiB.
MAX_INPUT = 16 * 1024 * 1024 - 64 * 1024


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("-d", "--detach", is_flag=True, help="Run the command in the background, and print its pid in the guest.")
@environment_options
@click.option("-w", "--workdir", default="", metavar="DIR", help="Working directory of the command.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="User (and group) to run as, by name or number.")
@click.option("-t", "--tty", is_flag=True, help="Allocate a pseudo-terminal.")
@click.option("-i", "--interactive", is_flag=True, help="Send standard input to the command, as it comes.")
@click.option(
    "--detach-keys",
    default=DETACH_KEYS,
    show_default=True,
    metavar="KEYS",
    help="With -it: what to type to leave the command, which goes on; empty: nothing.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help=f"Kill the command after this time; the exit code is then {TIMED_OUT}.",
)
@click.option(
    "--guest", is_flag=True, help="Run in the guest itself, without a CONTAINER; the same as - for CONTAINER."
)
@json_option
@click.argument(
    "words",
    nargs=-1,
    required=True,
    type=click.UNPROCESSED,
    metavar="CONTAINER COMMAND [ARG]...",
    shell_complete=first_is_container,
)
@pass_invocation
def exec_command(
    invocation: Invocation,
    words: tuple[str, ...],
    guest: bool,
    detach: bool,
    env: tuple[str, ...],
    env_files: tuple[str, ...],
    workdir: str,
    user: str,
    tty: bool,
    interactive: bool,
    detach_keys: str,
    timeout: float | None,
) -> int:
    """Run a command in a running container.

    The exit code is the command's.  Ctrl-C ends the command; with -it the command gets it, as it gets
    all keys.
    """
    keys = parse_keys(detach_keys)
    container, cmd = ("", words) if guest else (words[0], words[1:])
    if not guest and not container:
        # An empty word comes from an unset shell variable, and must not mean the guest itself.
        raise click.UsageError("the CONTAINER is empty; the guest itself is --guest, or -")
    if not cmd:
        raise click.UsageError("no command is given")
    if detach and (tty or timeout is not None):
        raise click.UsageError("--detach goes with neither --tty nor --timeout")
    command: CommandOptions = {
        "container": "" if container == "-" else container,
        "env": environment(env, env_files),
        "working_dir": workdir,
        "user": user,
    }
    if detach:
        if interactive:
            command["stdin"] = _read_input()

        async def start(client: Client, _: Signals) -> int:
            pid = await client.exec_detached(cmd, **command)
            invocation.show({"pid": pid}, str(pid))
            return 0

        return invocation.call(start)

    async def attend(client: Client, _: Signals) -> int:
        from arcbox_agent.cli.session import attended
        from arcbox_agent.wire import AttachExecutionRequest

        if not client.knows(AttachExecutionRequest):
            raise _NoStreams
        options: StartOptions = {
            "container": command["container"],
            "env": command["env"],
            "working_dir": workdir,
            "user": user,
            "tty": tty,
            "stdin": interactive,
            "timeout": timeout,
        }
        return await attended(client, cmd, options, keys=keys, as_json=invocation.json)

    async def stay(client: Client, _: Signals) -> int:
        return await _stay(invocation, client, cmd, {**command, **_terminal(tty), "timeout": timeout})

    if interactive or tty:
        try:
            return invocation.call(attend)
        except _NoStreams:
            # An agent that takes input only as a part of the request.  It is read before the event
            # loop runs again, so Ctrl-C just ends us.
            if interactive:
                command["stdin"] = _read_input()
    return invocation.call(stay)


class _NoStreams(Exception):
    """The agent has no executions."""


async def _stay(invocation: Invocation, client: Client, cmd: tuple[str, ...], options: ExecOptions) -> int:
    from arcbox_agent.cli.output_stream import OutputStream
    from arcbox_agent.client import exit_code

    # Leaving early, by a signal or a closed pipe, ends the command.
    async with OutputStream() as output, client.exec_stream(cmd, **options) as parts:
        async for part in parts:
            if part.data:
                if invocation.json:
                    await output.write_json({"stream": part.stream, **payload(part.data)})
                else:
                    await output.write(stream_fd(part.stream), part.data)
            if part.done:
                break
        else:
            raise ForwardedError("the agent did not say how the command ended")
        code = exit_code(part)
        if invocation.json:
            await output.write_json(
                {
                    "exit_code": code,
                    "signal": part.signal,
                    "timed_out": part.timed_out,
                    "output_cut": part.output_cut,
                }
            )
    if part.output_cut and not invocation.json:
        warn("the output may be cut off: the command has ended, and something it started still holds its output open")
    if part.timed_out:
        if not invocation.json:
            print(f"arcboxctl: the command was killed after {options['timeout']:g} s", file=sys.stderr)
        return TIMED_OUT
    return code


def _terminal(tty: bool) -> ExecOptions:
    if not tty:
        return {}
    width, height = shutil.get_terminal_size()
    return {"tty": True, "tty_width": width, "tty_height": height}


def _read_input() -> bytes:
    """All of standard input."""
    if sys.stdin.isatty():
        print("arcboxctl: reading standard input to its end (Ctrl-D); the command starts then", file=sys.stderr)
    chunks: list[bytes] = []
    size = 0
    fd = sys.stdin.fileno()
    while True:
        try:
            chunk = os.read(fd, 1 << 16)
        except BlockingIOError:
            # The descriptor is non-blocking: whoever started us made it so.
            select.select([fd], [], [])
            continue
        if not chunk:
            break
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_INPUT:
            raise ForwardedError(f"standard input is longer than the {MAX_INPUT} bytes that fit in a request")
    return b"".join(chunks)

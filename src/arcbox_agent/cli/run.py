"""run: create and start a container, and pass its output on until it ends."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import click

from arcbox_agent.cli.create_options import create_arguments, create_options
from arcbox_agent.cli.failures import OWN_FAILURE, ForwardedError
from arcbox_agent.cli.invocation import Invocation, json_option, pass_invocation
from arcbox_agent.cli.output import fields_of, warn
from arcbox_agent.cli.printable import printable
from arcbox_agent.errors import ArcboxError, RequestError

if TYPE_CHECKING:
    from arcbox_agent.cli.signals import Signals
    from arcbox_agent.client import Client
    from arcbox_agent.wire import WaitContainerResponse


@click.command("run", context_settings={"allow_interspersed_args": False})
@create_options
@click.option("-d", "--detach", is_flag=True, help="Run the container in the background, and print its id.")
@click.option("--rm", "remove", is_flag=True, help="Remove the container when it has ended.")
@click.option(
    "-i", "--interactive", is_flag=True, help="Keep standard input of the container open; only with --detach."
)
@json_option
@click.argument("image")
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED)
@pass_invocation
def run_command(invocation: Invocation, /, detach: bool, remove: bool, **options: Any) -> int:
    """Create and start a container.

    Its output is shown, and the exit code is its own.  Ctrl-C is forwarded to the container; a
    second Ctrl-C kills it.
    """
    if options["interactive"] and not detach:
        raise click.UsageError(
            "--interactive: the agent cannot attach to a container's input; "
            "give a command its input with `arcboxctl exec -i`"
        )
    if detach and remove:
        raise click.UsageError("--rm needs someone to stay until the container ends: leave --detach out")
    arguments = create_arguments(**options)

    async def work(client: Client, signals: Signals) -> int:
        from arcbox_agent.wire import WaitContainerRequest

        if not detach and not client.knows(WaitContainerRequest):
            raise ForwardedError("this agent cannot tell when a container ends; --detach leaves it running")
        forward = Forwarding(client, signals)
        created = await client.create_container(**arguments)
        for warning in created.warnings:
            warn(warning)
        try:
            if detach:
                await client.start_container(created.id)
                invocation.show(fields_of(created), printable(created.id))
                return 0
            return await _stay(invocation, client, forward, created.id)
        finally:
            # However it came to its end: the container's exit, a signal, a closed pipe.
            if remove:
                await _remove(client, created.id)

    return invocation.call(work)


async def _stay(invocation: Invocation, client: Client, forward: Forwarding, container: str) -> int:
    """Start the container, pass its output on until it has ended, and return its exit code."""
    from arcbox_agent.cli.output_stream import OutputStream
    from arcbox_agent.wire import LogsRequest

    ended: asyncio.Future[WaitContainerResponse] | None = None
    # Attached before it starts, or its first lines could be rotated away.
    attach = client.knows_field(LogsRequest, "attach")
    try:
        async with OutputStream() as output, client.logs(container, follow=True, attach=attach) as entries:
            if attach:
                await entries.batch(1)
            await client.start_container(container)
            # The wait begins at once: somebody may remove the container right after its end.
            ended = asyncio.ensure_future(client.wait_container(container))
            forward.begin(container)
            while batch := await entries.batch():
                await output.pass_on(batch, as_json=invocation.json)
            result = await ended
            if invocation.json:
                await output.write_json(
                    {
                        "id": container,
                        "exit_code": result.status_code,
                        "signal": result.signal,
                        "error": result.error,
                        "output_cut": result.output_cut,
                    }
                )
        if result.error:
            warn(result.error)
        if result.output_cut:
            warn("the output is cut off: its end was not seen, or what passed it on did not end in time and was killed")
        return OWN_FAILURE if output.gaps else result.status_code
    finally:
        if ended is not None:
            ended.cancel()


async def _remove(client: Client, container: str) -> None:
    try:
        await client.remove_container(container, force=True)
    except ArcboxError as error:
        # Somebody else may have removed it first.
        if not (isinstance(error, RequestError) and error.message.endswith(f"container not found: {container}")):
            warn(f"{container} is not removed: {error}")


class Forwarding:
    """Forwards arcboxctl's signals to the container: the first as it is, the second as SIGKILL.

    A signal that arrives before the container runs is kept until then.  A third signal ends
    arcboxctl, whatever the container does.
    """

    def __init__(self, client: Client, signals: Signals) -> None:
        self._client = client
        self._signals = signals
        self._container = ""
        self._kept: list[int] = []
        self._count = 0
        self._sending: set[asyncio.Task[None]] = set()
        signals.on_signal = self._arrived

    def begin(self, container: str) -> None:
        self._container = container
        for number in self._kept:
            self._send(number)

    def _arrived(self, number: int) -> None:
        self._count += 1
        if self._count > 2:
            self._signals.end(number)
            return
        wanted = number if self._count == 1 else int(signal.SIGKILL)
        if self._container:
            self._send(wanted)
        else:
            self._kept.append(wanted)

    def _send(self, number: int) -> None:
        task = asyncio.ensure_future(self._kill(number))
        # The event loop has only weak references to its tasks.
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _kill(self, number: int) -> None:
        try:
            await self._client.kill_container(self._container, signal=number)
        except RequestError:
            pass  # The container has ended in the meantime.
        except ArcboxError as error:
            warn(f"signal {number} did not reach the container: {error}")

"""Calls for a container's life."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from arcbox_agent import wire
from arcbox_agent.client import calls
from arcbox_agent.client.caller import Caller
from arcbox_agent.errors import DecodeError, ReplyLimitError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from arcbox_agent.wire import (
        ContainerInfo,
        ContainerStatsResponse,
        ContainerTopResponse,
        CreateContainerResponse,
        Mount,
        WaitContainerResponse,
    )


#: Seconds of a Stop where neither the caller nor the container names any.
STOP_TIMEOUT = 10


def signal_text(signal: str | int) -> str:
    return str(int(signal)) if isinstance(signal, int) else signal


#: Containers that are asked for at a time.
_PAGE = 256

#: The most bytes of a list, and what each container in it costs besides its own: a guest must not
#: be able to fill its host's memory with pages.
_LIST_LIMIT = 64 << 20
_ROW_COST = 256


class ContainerCalls(Caller):
    async def create_container(
        self,
        *,
        name: str = "",
        image: str = "",
        cmd: Iterable[str] = (),
        entrypoint: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
        working_dir: str = "",
        user: str = "",
        mounts: Sequence[Mount] = (),
        tty: bool = False,
        open_stdin: bool = False,
        rootfs: str = "",
        id: str = "",
        stop_signal: str | int = "",
        stop_timeout: float | None = None,
        timeout: float | None = None,
    ) -> CreateContainerResponse:
        """Create a container without starting it.

        The reply has the container's `id`, and in `warnings` what was asked for and will
        not be done.  `id`: an id to use instead of one that the agent makes.  `rootfs`: a
        directory of the guest that becomes the container's root.  `stop_signal`: what a Stop
        sends first, TERM otherwise.  `stop_timeout`: seconds from there to SIGKILL where a Stop
        does not name its own, math.inf: SIGKILL is never sent.
        """
        request = wire.CreateContainerRequest(
            name=name,
            image=image,
            cmd=calls.words("CreateContainerRequest.cmd", cmd),
            entrypoint=calls.words("CreateContainerRequest.entrypoint", entrypoint),
            env=calls.text_map(env),
            working_dir=working_dir,
            user=user,
            mounts=list(mounts),
            tty=tty,
            open_stdin=open_stdin,
            rootfs=rootfs,
            id=id,
            stop_signal=signal_text(stop_signal),
            stop_timeout_ms=calls.stop_milliseconds(stop_timeout),
            detail=True,
        )
        return await self.call(request, wire.CreateContainerResponse, timeout=timeout)

    async def start_container(self, id: str, *, timeout: float | None = None) -> None:
        """Start a container that was created, or has ended."""
        await self.call(wire.StartContainerRequest(id=id), wire.Empty, timeout=timeout)

    async def stop_container(self, id: str, *, timeout: float | None = None) -> None:
        """Ask a container to end by its stop signal, and kill it after `timeout` seconds.

        Without a `timeout` the container's own stop_timeout holds, or 10 seconds; with math.inf
        it is never killed, and the call has no limit.  Returns when every process of the
        container is dead.
        """
        request = wire.StopContainerRequest(
            id=id, timeout=calls.stop_seconds(STOP_TIMEOUT if timeout is None else timeout), own_timeout=timeout is None
        )
        # How long the container's own time is only the agent knows.
        limit = None if timeout is None or timeout == math.inf else self._added_to(timeout)
        await self._call(request, wire.Empty, seconds=limit, long=True, repeatable=False)

    async def kill_container(self, id: str, *, signal: str | int = "KILL", timeout: float | None = None) -> None:
        """Send a signal.  `signal`: its name, with or without SIG, or its number."""
        request = wire.KillContainerRequest(id=id, signal=signal_text(signal))
        await self.call(request, wire.Empty, timeout=timeout)

    async def wait_container(
        self, id: str, *, condition: str = "not-running", timeout: float | None = None
    ) -> WaitContainerResponse:
        """Wait for a container, and return how it ended.

        `condition`: `not-running`, `next-exit` or `removed`.  Without a `timeout` the wait
        has no limit.
        """
        request = wire.WaitContainerRequest(id=id, condition=condition)
        return await self._call(
            request,
            wire.WaitContainerResponse,
            seconds=timeout,
            long=True,
            # A second request for the next exit could wait for a later one.
            repeatable=condition in ("", "not-running"),
        )

    async def remove_container(self, id: str, *, force: bool = False, timeout: float | None = None) -> None:
        """Remove a container; with `force` a running one too, which is killed."""
        request = wire.RemoveContainerRequest(id=id, force=force)
        await self.call(request, wire.Empty, timeout=timeout, long=force)

    async def list_containers(
        self, *, all: bool = False, filter: str = "", text_limit: int = 0, timeout: float | None = None
    ) -> list[ContainerInfo]:
        """The running containers; with `all` the others too.  `filter`: only this id, id prefix or name.

        They come in pages, each within `timeout`.  `text_limit`: bytes of one container's texts
        that are wanted, of which a command is the longest; what is cut ends with `…`; 0: all of
        them.  A list of more than 64 MiB raises ReplyLimitError.
        """
        listed: list[ContainerInfo] = []
        size = 0
        after = ""
        while True:
            request = wire.ListContainersRequest(
                all=all, detail=True, filter=filter, after=after, limit=_PAGE, text_limit=text_limit
            )
            reply = await self.call(request, wire.ListContainersResponse, timeout=timeout, repeatable=True)
            listed += reply.containers
            size += sum(_ROW_COST + len(each.encode()) for each in reply.containers)
            if size > _LIST_LIMIT:
                raise ReplyLimitError("the list of containers", _LIST_LIMIT, "ask with a filter, or a text_limit")
            if not reply.next:
                return listed
            if not reply.containers or reply.next == after:
                raise DecodeError("ListContainersResponse.next", "there is a next page, and nothing in this one")
            after = reply.next

    async def container_top(self, id: str, *, ps_args: str = "", timeout: float | None = None) -> ContainerTopResponse:
        """The processes of a running container, commands of clients included: `titles`, and `processes` of `values`.

        `ps_args`: options of ps that choose the columns: `-ef` (the default), `aux`, or
        `-o` with names such as `pid,etime,args`.
        """
        request = wire.ContainerTopRequest(id=id, ps_args=ps_args)
        return await self.call(request, wire.ContainerTopResponse, timeout=timeout, repeatable=True)

    async def container_stats(self, id: str, *, timeout: float | None = None) -> ContainerStatsResponse:
        """What a container uses now; all zeros while it does not run.

        `cpu_usage` of the container and `system_cpu_usage` of the guest (ns, idle time
        included) grow with time: the share of CPUs lies in the difference of two replies.
        `memory_usage`, `memory_limit`, `block_read_bytes`, `block_write_bytes`: bytes.
        `pids`: processes and their threads.
        """
        request = wire.ContainerStatsRequest(id=id)
        return await self.call(request, wire.ContainerStatsResponse, timeout=timeout, repeatable=True)

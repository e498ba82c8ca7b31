"""The keeper: a small process that holds descriptors while there is no agent.

It runs as `python -ISE keeper_process.py`, with a listening SOCK_SEQPACKET socket as its
standard input.  It imports only what a bare interpreter has already loaded: every agent
with containers has a keeper beside it, so its memory counts.

The kernel keeps the contents of a FIFO only while a process has the FIFO open.  It keeps the
exit status of a process that nobody waits for only while a process has its pidfd.  If the
agent is killed, and a container ends before the next agent starts, the keeper is that
process.  It does nothing else: it reads no output and waits for no child.

A request is one packet, and so is its reply:

    k KEY + descriptors   keep these too                    -> ok, or full
    n KEY + descriptors   keep these, and no others         -> ok, or full
    g KEY                 give them                         -> ok + descriptors
    d KEY                 close them                        -> ok
    l                     list                              -> ok NUL KEY NUL KEY ...

The keeper serves the agent that connected last.  It ends when that agent is gone and
nothing is kept.  It also ends when its socket was removed from its directory, because then
no agent can find it any more.
"""

import _socket
import posix
import select
import sys

#: The most descriptors for a key, and the most keys.
MOST_EACH = 8
MOST_KEYS = 16384
PACKET = 4096
#: The longest list, in bytes.  A key that did not fit can still be asked for.
LIST = 65536
#: Milliseconds between two checks of the socket's path, while there is no agent.
LOOK = 10_000
#: Milliseconds between two attempts to accept an agent, while the system has no free descriptor.
PAUSE = 100


def main() -> None:
    try:
        with open("/proc/self/comm", "w") as comm:
            comm.write("arcbox-keeper")
    except OSError:
        pass
    listener = _socket.socket(fileno=0)
    kept: dict[bytes, list[int]] = {}
    agent: _socket.socket | None = None
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    path = listener.getsockname()
    mine = identity(path)
    while True:
        for fd, _ in poll.poll(LOOK if agent is None else None):
            if fd == listener.fileno():
                if agent is not None:
                    # Before the accept, which may need this very descriptor.
                    poll.unregister(agent)
                    agent.close()
                    agent = None
                try:
                    accepted, _ = listener._accept()  # type: ignore[attr-defined]
                except OSError:
                    select.poll().poll(PAUSE)
                    continue
                agent = _socket.socket(fileno=accepted)
                poll.register(agent, select.POLLIN)
                break  # another ready descriptor may be the former agent's, with the same number
            if agent is not None and fd == agent.fileno() and not serve(agent, kept):
                poll.unregister(agent)
                agent.close()
                agent = None
        if agent is None and not (kept and identity(path) == mine):
            return


def identity(path: str) -> tuple[int, int] | None:
    try:
        status = posix.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def serve(agent: _socket.socket, kept: dict[bytes, list[int]]) -> bool:
    """Answer one request.  False: the agent is gone."""
    try:
        packet, ancillary, flags, _ = agent.recvmsg(PACKET, _socket.CMSG_SPACE(4 * MOST_EACH), _socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return False
    if not packet:
        return False
    came = [
        int.from_bytes(data[at : at + 4], sys.byteorder)
        for level, kind, data in ancillary
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS
        for at in range(0, len(data) - len(data) % 4, 4)
    ]
    order, key = packet[:1], packet[1:]
    reply, given = b"ok", list[int]()
    if order in (b"k", b"n"):
        have = kept.pop(key, [])
        if order == b"n":
            for fd in have:
                _socket.close(fd)
            have = []
        # MSG_CTRUNC: the descriptor table is full.  A part of the descriptors is of no use.
        full = flags & _socket.MSG_CTRUNC or len(have) + len(came) > MOST_EACH or len(kept) >= MOST_KEYS
        if full:
            reply = b"full"
        else:
            have = have + came
            came = []
        if have:
            kept[key] = have
    elif order == b"g":
        given = kept.get(key, [])
    elif order == b"d":
        came += kept.pop(key, [])
    elif order == b"l":
        reply = b"\0".join((b"ok", *kept))[:LIST]
    else:
        reply = b"what?"
    for fd in came:
        _socket.close(fd)
    rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in given)
    try:
        agent.sendmsg([reply], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if rights else [])
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()

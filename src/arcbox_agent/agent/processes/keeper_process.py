"""The keeper: a small process that is the parent of containers, and holds descriptors while there is no agent.

It runs as `python -ISE keeper_process.py SPAWN`, with a listening SOCK_SEQPACKET socket as its
standard input; SPAWN is the file of the compiled module that starts processes.  It imports only
that, and what a bare interpreter has already loaded: every agent with containers has a keeper
beside it, so its memory counts.

The kernel keeps the contents of a FIFO only while a process has the FIFO open.  It keeps the
exit status of a process until its parent takes it.  If the agent is killed, and a container ends
before the next agent starts, the keeper is that process and that parent.  It reads no output,
and it waits for no child before the agent has that child's end on record and drops its key.

A request is one packet, and so is its reply:

    k KEY + descriptors   keep these too                         -> ok, or full
    n KEY + descriptors   keep these, and no others              -> ok, or full
    g KEY                 give them                              -> ok + descriptors
    d KEY                 close them, and reap the child         -> ok
    l                     list                                   -> ok NUL KEY NUL KEY ...
    i                     who are you                            -> ok PID + pidfd of the keeper
    s KEY + descriptors   start a child for KEY, which becomes one of its descriptors  -> ok
    e KEY                 how did the child end                  -> ok [PID STATUS]
    x KEY NUL PID SPACE STATUS   that is how the child ended, which was another's  -> ok

The first descriptor of `s` is a file with the marshalled arguments of `spawn`, where a descriptor
is given by its index; the second is a socket that gets the outcome, once the child has its
program or has failed: marshalled (pid,) with the pidfd, or the arguments of a SpawnError.

The keeper serves the agent that connected last.  It ends when that agent is gone and
nothing is kept.  It also ends when its socket was removed from its directory, because then
no agent can find it any more.
"""

import _socket
import _thread
import errno
import marshal
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
#: Milliseconds between two attempts to reap a child that was dropped before its end.
REAP = 1000

#: Arguments of `spawn` that are descriptors, beside `stdio`.
DESCRIPTORS = ("keep_fd", "pid_fd", "cgroup_fd", "join_fd")


def main() -> None:
    try:
        with open("/proc/self/comm", "w") as comm:
            comm.write("arcbox-keeper")
    except OSError:
        pass
    listener = _socket.socket(fileno=0)
    keeper = Keeper(_load_spawn(sys.argv[1]))
    agent: _socket.socket | None = None
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    path = listener.getsockname()
    mine = identity(path)
    while True:
        timeout = REAP if keeper.leaving else LOOK if agent is None else None
        for fd, _ in poll.poll(timeout):
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
            if agent is not None and fd == agent.fileno() and not keeper.serve(agent):
                poll.unregister(agent)
                agent.close()
                agent = None
        keeper.reap()
        if agent is None and not keeper.spawning and not (keeper.kept and identity(path) == mine):
            return


def identity(path: str) -> tuple[int, int] | None:
    try:
        status = posix.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _load_spawn(path: str):  # type: ignore[no-untyped-def]
    """The compiled module, by its file: by its name it would come with its package.  None: it cannot be loaded."""
    external = sys.modules["_frozen_importlib_external"]
    spec = external.spec_from_file_location("arcbox_agent._spawn", path)
    try:
        module = spec.loader.create_module(spec)
        spec.loader.exec_module(module)
    except ImportError:
        return None
    return module


class Keeper:
    """What is kept.  The threads that spawn change it too, with the lock."""

    def __init__(self, module) -> None:  # type: ignore[no-untyped-def]
        self._module = module
        self._lock = _thread.allocate_lock()
        self.kept: dict[bytes, list[int]] = {}
        #: Children that nobody has waited for, and ends that an agent told, by key.
        self._children: dict[bytes, int] = {}
        self._ends: dict[bytes, tuple[int, int]] = {}
        #: Children that were dropped before their end.
        self.leaving: list[int] = []
        self.spawning = 0

    def serve(self, agent: _socket.socket) -> bool:
        """Answer one request.  False: the agent is gone."""
        try:
            packet, ancillary, flags, _ = agent.recvmsg(
                PACKET, _socket.CMSG_SPACE(4 * MOST_EACH), _socket.MSG_CMSG_CLOEXEC
            )
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
        # MSG_CTRUNC: the descriptor table is full.  A part of the descriptors is of no use.
        with self._lock:
            reply, given, over = self._answer(packet[:1], packet[1:], came, bool(flags & _socket.MSG_CTRUNC))
        for fd in over:
            posix.close(fd)
        rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in given)
        try:
            agent.sendmsg([reply], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if rights else [])
        except OSError:
            return False
        finally:
            if packet == b"i":
                for fd in given:
                    posix.close(fd)
        return True

    def _answer(self, order: bytes, key: bytes, came: list[int], cut: bool) -> tuple[bytes, list[int], list[int]]:
        """The reply, the descriptors to send with it, and those to close."""
        if order in (b"k", b"n"):
            # A child stays one: an agent that thought this keeper gone gives it again what it has.
            over = self.kept.pop(key, []) if order == b"n" else []
            have = self.kept.pop(key, [])
            full = cut or len(have) + len(came) > MOST_EACH or len(self.kept) >= MOST_KEYS
            if not full:
                have = have + came
            if have:
                self.kept[key] = have
            return (b"full", [], over + came) if full else (b"ok", [], over)
        if order == b"g":
            return b"ok", self.kept.get(key, []), came
        if order == b"d":
            over = self._drop(key)
            self.reap()
            return b"ok", [], came + over
        if order == b"l":
            return b"\0".join((b"ok", *self.kept))[:LIST], [], came
        if order == b"i":
            try:
                return b"ok %d" % posix.getpid(), [posix.pidfd_open(posix.getpid())], came
            except OSError:
                return b"ok %d" % posix.getpid(), [], came
        if order == b"s" and self._module is not None and not cut and len(came) >= 2:
            try:
                _thread.start_new_thread(self._spawn, (key, came))
            except RuntimeError:
                return b"full", [], came
            self.spawning += 1
            return b"ok", [], []
        if order == b"e":
            end = self._end_of(key)
            return (b"ok %d %d" % end if end is not None else b"ok"), [], came
        if order == b"x":
            key, _, told = key.partition(b"\0")
            pid, _, status = told.partition(b" ")
            self._ends[key] = int(pid), int(status)
            return b"ok", [], came
        return b"what?", [], came

    def _drop(self, key: bytes) -> list[int]:
        """Forget a key; the descriptors to close."""
        child = self._children.pop(key, 0)
        if child:
            self.leaving.append(child)
        self._ends.pop(key, None)
        return self.kept.pop(key, [])

    def _end_of(self, key: bytes) -> tuple[int, int] | None:
        """The pid and the wait status of a child that has ended.  Its status stays where it is."""
        child = self._children.get(key, 0)
        if not child:
            return self._ends.get(key)
        info = posix.waitid(posix.P_PID, child, posix.WEXITED | posix.WNOHANG | posix.WNOWAIT)
        if info is None:
            return None
        exited = info.si_code == posix.CLD_EXITED
        return child, info.si_status << 8 if exited else info.si_status

    def reap(self) -> None:
        """Take the status of those that were dropped."""
        for child in self.leaving[:]:
            if posix.waitpid(child, posix.WNOHANG)[0]:
                self.leaving.remove(child)

    def _spawn(self, key: bytes, came: list[int]) -> None:
        """In a thread: a spawn takes as long as the file systems that it needs."""
        answer = _socket.socket(fileno=came[1])
        outcome: tuple[int | str, ...]
        rights = b""
        try:
            plan = marshal.loads(read_all(came[0]))
            for name in DESCRIPTORS:
                if plan[name] >= 0:
                    plan[name] = came[plan[name]]
            plan["stdio"] = tuple(came[index] for index in plan["stdio"])
            plan["reset_oom"] = has_oom_score_adj()
            pid, pidfd = self._module.spawn(**plan)
            outcome = (pid,)
            rights = pidfd.to_bytes(4, sys.byteorder)
        except self._module.SpawnError as error:
            outcome = error.__reduce__()[1]
        except Exception:
            outcome = errno.EINVAL, "clone", -1, ""
        for fd in (came[0], *came[2:]):
            posix.close(fd)
        with self._lock:
            if rights:
                if key in self._children:
                    self.leaving.append(self._children[key])  # of a run that is over
                self._children[key] = pid
                self.kept.setdefault(key, []).append(pidfd)
            try:
                answer.sendmsg(
                    [marshal.dumps(outcome)], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if rights else []
                )
            except OSError:
                pass  # that agent is gone: the next one finds the pid file
            self.spawning -= 1
        answer.close()


def read_all(fd: int) -> bytes:
    size = posix.fstat(fd).st_size
    return posix.pread(fd, size, 0)


def has_oom_score_adj() -> bool:
    """Whether the keeper is protected from the OOM killer, as its children must not be."""
    try:
        with open("/proc/self/oom_score_adj", "rb") as file:
            return int(file.read()) != 0
    except OSError:
        return False


if __name__ == "__main__":
    main()

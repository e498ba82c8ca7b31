"""Opening the sockets that the agent listens on: vsock ports, unix sockets, those that systemd passes."""

from __future__ import annotations

import os
import socket
import stat

from arcbox_agent.address import UnixAddress, VsockAddress, parse_listen
from arcbox_agent.agent.config.table import parse_listen_or_activated
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.serving.listeners import Listener
from arcbox_agent.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.config.table import Settings

log = Logger("listener")

#: systemd passes its sockets from this descriptor on.
FIRST_ACTIVATED = 3


def open_listeners(settings: Settings, environment: os._Environ[str] | dict[str, str] = os.environ) -> list[Listener]:
    """Open all that the settings name.  Raises ConfigError, and leaves none open then."""
    activated = activated_sockets(environment)
    addresses = settings.listen
    if activated and "listen" not in settings.given:
        # Whoever passes sockets wants those, and not the default port besides.
        addresses = ["systemd:"]
    listeners: list[Listener] = []
    try:
        for text in addresses:
            where, mode = parse_listen_or_activated(text)
            if where.startswith("systemd:"):
                listeners += _take_activated(activated, where.removeprefix("systemd:"), mode)
                continue
            address = parse_listen(where).address
            if isinstance(address, VsockAddress):
                listeners.append(Listener(_open_vsock(address), where, mode))
            else:
                listeners.append(Listener(open_unix(address), where, mode, address.path))
    except BaseException:
        for listener in listeners:
            listener.abandon()
        raise
    for name, sock in activated:
        log.warning("a socket from systemd is named by no listen address: closed", name=name)
        sock.close()
    return listeners


def activated_sockets(environment: os._Environ[str] | dict[str, str]) -> list[tuple[str, socket.socket]]:
    """What systemd passed to this process (sd_listen_fds(3)), by name."""
    # Taken out of the environment: they mean this process and none that it starts.
    pid = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "")
    if pid != str(os.getpid()):
        return []
    if not (count.isascii() and count.isdigit() and len(count) < 10):
        raise ConfigError("", f"LISTEN_FDS={count!r} from systemd is no number of descriptors")
    named = names.split(":") if names else []
    sockets = []
    for i in range(int(count)):
        fd = FIRST_ACTIVATED + i
        name = named[i] if i < len(named) else ""
        try:
            os.set_inheritable(fd, False)
            sock = socket.socket(fileno=fd)
        except OSError as error:
            raise ConfigError("", f"descriptor {fd} ({name!r}) from systemd is no socket: {error.strerror}") from error
        if sock.family not in (socket.AF_UNIX, socket.AF_VSOCK) or sock.type != socket.SOCK_STREAM:
            raise ConfigError(
                "", f"descriptor {fd} ({name!r}) from systemd is neither a unix nor a vsock stream socket"
            )
        sockets.append((name, sock))
    return sockets


def _take_activated(activated: list[tuple[str, socket.socket]], wanted: str, mode: str) -> list[Listener]:
    taken = [(name, sock) for name, sock in activated if not wanted or name == wanted]
    if not taken:
        raise ConfigError("listen", f"systemd:{wanted}: systemd passed no such socket")
    for one in taken:
        activated.remove(one)
    return [Listener(sock, _describe(sock), mode) for _, sock in taken]


def _describe(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_VSOCK:
        return f"vsock:{name[1]}"
    return f"unix:{os.fsdecode(name)}" if name else "unix:"


def _open_vsock(address: VsockAddress) -> socket.socket:
    try:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise ConfigError(
            "listen",
            f"vsock:{address.port}: this kernel has no vsock ({error.strerror}): load the module "
            "vmw_vsock_virtio_transport, or listen on unix:/path",
        ) from error
    try:
        sock.bind((address.cid, address.port))
        sock.listen(socket.SOMAXCONN)
    except OSError as error:
        sock.close()
        raise ConfigError("listen", f"vsock:{address.port}: {error.strerror}") from error
    return sock


def open_unix(address: UnixAddress) -> socket.socket:
    """A listening unix socket, 0600 from its first moment.

    A socket file that is already there is replaced only if nobody answers on it.
    """
    path = address.path
    directory = os.path.dirname(path)
    try:
        _make_private_directory(directory)
    except OSError as error:
        raise ConfigError("listen", f"unix:{path}: cannot make {directory}: {error.strerror}") from error
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _clear_stale(path)
        # bind() makes the file with 0777 less the umask.
        mask = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(mask)
        sock.listen(socket.SOMAXCONN)
    except OSError as error:
        sock.close()
        raise ConfigError("listen", f"unix:{path}: {error.strerror or error}") from error
    except ConfigError:
        sock.close()
        raise
    return sock


def _make_private_directory(path: str) -> None:
    """makedirs whose every new level is 0700."""
    if not path or os.path.isdir(path):
        return
    _make_private_directory(os.path.dirname(path))
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass  # somebody was faster; bind() finds out if it is no directory


def _clear_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError("listen", f"unix:{path}: there is a file that is no socket: move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        # A full backlog of a live listener must not hang us.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise ConfigError("listen", f"unix:{path}: somebody answers there: is another agent running?")

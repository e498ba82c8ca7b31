"""The agent's two directories, which are created, checked and locked before anything else starts."""

from __future__ import annotations

import errno
import fcntl
import os
import time

from arcbox_agent.agent.config import budget
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.config.table import Settings

log = Logger("agent")

#: errno -> what the user can do about it.
_ADVICE = {
    errno.EROFS: "it is on a read-only file system: mount one that can be written there, or name another directory",
    errno.EACCES: "permission denied: run the agent as root, or name a directory of its own user",
    errno.EPERM: "not permitted: run the agent as root, or name a directory of its own user",
    errno.ENOTDIR: "a part of the path is no directory: move it away, or name another directory",
    errno.EEXIST: "there is a file of that name: move it away, or name another directory",
    errno.ENOSPC: "no space is left there: make room, or name another directory",
}


def prepare(settings: Settings) -> list[int]:
    """Create both directories, private to the agent's user.  Returns the descriptors that lock them.

    The locks are on the directories themselves, so they leave no file behind.  The kernel
    releases them when the process ends, however it ends.  Each directory has its own lock,
    because an agent removes from both what belongs to none of its containers.
    """
    _make("run_dir", settings.run_dir)
    try:
        _make("state_dir", settings.state_dir)
    except ConfigError as error:
        if "state_dir" in settings.given or not _is_read_only(error.__cause__):
            raise
        # The guest's root is read-only by design.  A default directory may be elsewhere.
        where = settings.state_dir
        settings.state_dir = os.path.join(settings.run_dir, "state")
        _make("state_dir", settings.state_dir)
        log.warning(
            "state is kept in memory, and lost with this boot: its directory is read-only",
            state_dir=settings.state_dir,
            read_only=where,
        )
    locks = [_lock("state_dir", settings.state_dir)]
    try:
        locks.append(_lock("run_dir", settings.run_dir))
    except ConfigError:
        os.close(locks[0])
        raise
    return locks


def _is_read_only(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EROFS


def _make(setting: str, path: str) -> None:
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        status = os.stat(path)
        if status.st_mode & 0o077:
            # It holds output and environments of containers.
            os.chmod(path, 0o700)
        # Only a write shows whether it is writable: mode bits say nothing about a read-only mount
        # or a full disk.
        probe = os.path.join(path, f".probe.{os.getpid()}")
        # Not O_EXCL: an agent that was killed here may have left one, and PID 1 always has the same name for it.
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        os.unlink(probe)
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
        raise ConfigError(setting, f"cannot use {path}: {advice} ({_option(setting)} DIR)") from error


def _option(setting: str) -> str:
    return "--" + setting.replace("_", "-")


def _lock(setting: str, path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + budget.DIRECTORY_LOCK
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except OSError as error:
            # An agent that was killed during a spawn leaves a child that holds the lock too,
            # until it closes the descriptors that it inherited.
            if time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            os.close(fd)
            raise ConfigError(
                setting,
                f"{path} is in use by another agent: stop it, or name another directory ({_option(setting)} DIR)",
            ) from error

"""Starting a process, and the few system calls about processes that Python 3.11 does not have.

spawn_child.h holds what runs in the child; this module turns Python's values
into its plan and back.  Linux 5.6 or newer.
"""

cimport cython
from libc.errno cimport errno
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

import os


cdef extern from "spawn_child.h" nogil:
    """
    struct spawn_exit_info {          /* struct pidfd_info of Linux 6.15: 64 bytes */
        uint64_t mask;
        uint64_t other[6];
        uint32_t other_end;
        int32_t exit_code;
    };
    #define SPAWN_PIDFD_GET_INFO _IOWR(0xFF, 11, struct spawn_exit_info)
    #define SPAWN_PIDFD_INFO_EXIT (1ull << 3)

    static int spawn_read_exit(int pidfd, int *status) {
        struct spawn_exit_info info;
        memset(&info, 0, sizeof info);
        info.mask = SPAWN_PIDFD_INFO_EXIT;
        if (ioctl(pidfd, SPAWN_PIDFD_GET_INFO, &info) < 0) return -1;
        if (!(info.mask & SPAWN_PIDFD_INFO_EXIT)) return 0;
        *status = info.exit_code;
        return 1;
    }

    /* 1: ended, and the status is taken; 0: runs; -1: errno. */
    static int spawn_take_status(int pidfd, int *code, int *status) {
        siginfo_t info;
        int done;
        memset(&info, 0, sizeof info);
        do done = waitid(SPAWN_P_PIDFD, (id_t)pidfd, &info, WEXITED | WNOHANG);
        while (done < 0 && errno == EINTR);
        if (done < 0) return -1;
        if (!info.si_pid) return 0;
        *code = info.si_code;
        *status = info.si_status;
        return 1;
    }

    static int spawn_readable_bytes(int fd, int *size) { return ioctl(fd, FIONREAD, size); }
    static int spawn_set_pipe_size(int fd, int size) { return fcntl(fd, F_SETPIPE_SZ, size); }

    static int spawn_openat2(int dir, const char *path, int flags) {
        return spawn_open_in_root(dir, path, flags);
    }

    /* Bytes read from the beginning of a file; -1: errno. */
    static ssize_t spawn_read_at(int dir, const char *path, char *out, size_t size) {
        int fd = openat(dir, path, O_RDONLY | O_CLOEXEC), error;
        ssize_t n;
        if (fd < 0) return -1;
        n = read(fd, out, size);
        error = errno;
        close(fd);
        errno = error;
        return n;
    }
    """
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef unsigned int uid_t
    ctypedef unsigned int gid_t
    ctypedef int pid_t
    struct rlimit:
        unsigned long rlim_cur
        unsigned long rlim_max
    struct spawn_rlimit:
        int resource
        rlimit limit
    struct spawn_mount:
        int kind
        int readonly
        int create
        const char *source
        const char *target
        const char *options
        int source_fd
    struct spawn_plan:
        char **programs
        char **argv
        char **envp
        int stdio[3]
        int keep_fd
        int pid_fd
        int cgroup_fd
        int begun
        int made
        int at
        int cancelled
        pthread_mutex_t lock
        int join_fd
        int new_namespace
        int new_session
        int terminal
        int reset_oom
        const char *root
        const char *cwd
        spawn_mount *mounts
        int mount_count
        int set_ids
        uid_t uid
        gid_t gid
        const gid_t *groups
        size_t group_count
        spawn_rlimit rlimits[16]
        int rlimit_count
        int dumpable
        int keep[16]
        int keep_count
        int error
        int step
        int item
        char interpreter[256]
        pid_t pid
        int pidfd
    int SPAWN_MAX_RLIMITS
    int SPAWN_BIND
    int SPAWN_TMPFS
    int SPAWN_EXEC
    int PR_GET_DUMPABLE
    int CLD_EXITED
    int prctl(int option)
    int spawn_run(spawn_plan *plan)
    void spawn_kill(spawn_plan *plan, int cancel)
    int pthread_mutex_init(pthread_mutex_t *lock, void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *lock)
    int SPAWN_CLONE
    int ECANCELED
    int spawn_read_exit(int pidfd, int *status)
    int spawn_take_status(int pidfd, int *code, int *status)
    int spawn_openat2(int dir, const char *path, int flags)
    int spawn_readable_bytes(int fd, int *size)
    int spawn_set_pipe_size(int fd, int size)
    ssize_t spawn_read_at(int dir, const char *path, char *out, size_t size)
    int AT_FDCWD

cdef extern from "Python.h":
    bytes PyUnicode_EncodeFSDefault(object text)


#: What a failed step was about, in the order of `enum spawn_step`.
STEPS = (
    "",
    "clone",
    "session",
    "cgroup",
    "oom_score_adj",
    "resource limit",
    "pid file",
    "standard streams",
    "terminal",
    "mount namespace",
    "mount source",
    "mount target",
    "mount",
    "root directory",
    "working directory",
    "groups",
    "group",
    "user",
    "exec",
)

#: Bounds of one plan: a peer's request reaches them before the kernel's own do.
MAX_ITEMS = 65536

# The agent's own wish, read once: a spawn with another user changes it for a moment.
cdef int _dumpable = prctl(PR_GET_DUMPABLE) == 1


class SpawnError(Exception):
    """A process could not be started; nothing is left of the attempt.

    `errno`: why.  `step`: at which of STEPS.  `item`: which mount or limit, or -1.
    `interpreter`: where an exec failed for the interpreter of a program that is there, its path.
    """

    def __init__(
        self, int errno, str step, int item=-1, str interpreter=""  # no-cython-lint: the name is public
    ):
        super().__init__(f"{step}: {os.strerror(errno)}")
        self.errno = errno
        self.step = step
        self.item = item
        self.interpreter = interpreter
        self.strerror = os.strerror(errno)

    def __reduce__(self):
        return type(self), (self.errno, self.step, self.item, self.interpreter)


@cython.final
@cython.freelist(8)
cdef class Attempt:
    # The plan lies on the stack of `spawn`, which sets and takes back this pointer with the GIL held.
    cdef spawn_plan *plan
    cdef bint cancelled
    cdef readonly bint begun
    cdef int last_pid

    @property
    def pid(self):
        if self.plan == NULL:
            return self.last_pid
        return self.plan.made or self.plan.begun

    @property
    def step(self):
        if self.plan == NULL:
            return "preparation"
        return STEPS[self.plan.at or SPAWN_CLONE]

    def may_own(self, int pid):
        if not self.begun:
            return False
        cdef int own = self.pid
        return own == pid or own == 0

    def kill(self):
        if self.plan != NULL:
            spawn_kill(self.plan, 0)

    def cancel(self):
        self.cancelled = True
        if self.plan != NULL:
            spawn_kill(self.plan, 1)


@cython.final
cdef class _Strings:
    """A NULL-terminated array of C strings, and the bytes that own them."""

    cdef char **items
    cdef list owners

    def __cinit__(self, values):
        cdef Py_ssize_t i
        self.owners = [_text(value) for value in values]
        if len(self.owners) > MAX_ITEMS:
            raise ValueError(f"more than {MAX_ITEMS} strings")
        self.items = <char **>malloc((len(self.owners) + 1) * sizeof(char *))
        if self.items == NULL:
            raise MemoryError
        for i in range(len(self.owners)):
            self.items[i] = PyBytes_AS_STRING(self.owners[i])
        self.items[len(self.owners)] = NULL

    def __dealloc__(self):
        free(self.items)


cdef bytes _text(value):
    """The bytes of one string for the kernel, which ends it at the first NUL."""
    cdef bytes data
    if type(value) is str:
        data = PyUnicode_EncodeFSDefault(value)
    else:
        data = os.fsencode(value)
    if b"\0" in data:
        raise ValueError(f"embedded NUL in {value!r}")
    return data


def spawn(
    *,
    programs,
    argv,
    env,
    stdio,
    int keep_fd=-1,
    int pid_fd=-1,
    int cgroup_fd=-1,
    int join_fd=-1,
    bint new_namespace=False,
    bint new_session=True,
    bint terminal=False,
    bint reset_oom=False,
    root=None,
    cwd=None,
    mounts=(),
    ids=None,
    rlimits=(),
    Attempt attempt=None,
):
    """Starts a process; returns (pid, pidfd).  Raises SpawnError.

    `cgroup_fd` is a directory of cgroup2.  `programs` are tried in order until one executes.  `stdio` are three
    descriptors, each 3 or above.  `mounts` are (kind, source, target, options,
    readonly, create) with kind "bind" or "tmpfs".  `ids` is (uid, gid, groups).
    `rlimits` are (resource, soft, hard).  `attempt` tells another thread where
    it stands, and cancels it.  It blocks until the program executes or fails,
    without the GIL: call it in a thread.
    """
    cdef spawn_plan plan
    cdef _Strings c_programs = _Strings(programs)
    cdef _Strings c_argv = _Strings(argv)
    cdef _Strings c_env = _Strings(env)
    cdef bytes c_root, c_cwd
    cdef list owners = []
    cdef gid_t *groups = NULL
    cdef int i, failed = -1
    cdef int fd

    memset(&plan, 0, sizeof(plan))
    plan.programs, plan.argv, plan.envp = c_programs.items, c_argv.items, c_env.items
    plan.keep_fd, plan.pid_fd, plan.cgroup_fd, plan.join_fd = keep_fd, pid_fd, cgroup_fd, join_fd
    plan.new_namespace, plan.new_session = new_namespace, new_session
    plan.terminal, plan.reset_oom = terminal, reset_oom
    plan.dumpable = _dumpable
    if not c_programs.owners or not c_argv.owners:
        raise ValueError("no program")
    if len(stdio) != 3:
        raise ValueError(f"three descriptors are the standard streams, not {len(stdio)}")
    for i in range(3):
        plan.stdio[i] = stdio[i]
        if plan.stdio[i] < 3:
            raise ValueError("a descriptor for the standard streams is below 3")
    keep = sorted({fd for fd in (*stdio, keep_fd, pid_fd, cgroup_fd, join_fd) if fd >= 0})
    for i, fd in enumerate(keep):
        if fd < 3:
            raise ValueError("a descriptor to keep is below 3")
        plan.keep[i] = fd
    plan.keep_count = len(keep)
    if root is not None:
        c_root = _text(root)
        plan.root = PyBytes_AS_STRING(c_root)
    if cwd is not None:
        c_cwd = _text(cwd)
        plan.cwd = PyBytes_AS_STRING(c_cwd)
    if len(rlimits) > SPAWN_MAX_RLIMITS:
        raise ValueError("too many resource limits")
    for i, (resource, soft, hard) in enumerate(rlimits):
        plan.rlimits[i].resource = resource
        plan.rlimits[i].limit.rlim_cur = <unsigned long>(<long>soft)
        plan.rlimits[i].limit.rlim_max = <unsigned long>(<long>hard)
    plan.rlimit_count = len(rlimits)
    if len(mounts) > MAX_ITEMS:
        raise ValueError(f"more than {MAX_ITEMS} mounts")
    try:
        if mounts:
            plan.mounts = <spawn_mount *>malloc(len(mounts) * sizeof(spawn_mount))
            if plan.mounts == NULL:
                raise MemoryError
            plan.mount_count = len(mounts)
            for i, (kind, source, target, options, readonly, create) in enumerate(mounts):
                parts = _text(source), _text(target), _text(options)
                owners.append(parts)
                plan.mounts[i].kind = {"bind": SPAWN_BIND, "tmpfs": SPAWN_TMPFS}[kind]
                plan.mounts[i].source = PyBytes_AS_STRING(parts[0])
                plan.mounts[i].target = PyBytes_AS_STRING(parts[1])
                plan.mounts[i].options = PyBytes_AS_STRING(parts[2])
                plan.mounts[i].readonly = readonly
                plan.mounts[i].create = create
                plan.mounts[i].source_fd = -1
        if ids is not None:
            uid, gid, more = ids
            if len(more) > MAX_ITEMS:
                raise ValueError(f"more than {MAX_ITEMS} groups")
            plan.set_ids = 1
            plan.uid, plan.gid = uid, gid
            groups = <gid_t *>malloc(max(1, len(more)) * sizeof(gid_t))
            if groups == NULL:
                raise MemoryError
            for i, group in enumerate(more):
                groups[i] = group
            plan.groups, plan.group_count = groups, len(more)
        pthread_mutex_init(&plan.lock, NULL)
        if attempt is not None:
            plan.cancelled = attempt.cancelled
            attempt.plan = &plan
            attempt.begun = True
        try:
            with nogil:
                failed = spawn_run(&plan)
        finally:
            if attempt is not None:
                attempt.plan = NULL
                attempt.last_pid = 0 if failed else plan.pid
            pthread_mutex_destroy(&plan.lock)
    finally:
        free(plan.mounts)
        free(groups)
    if failed:
        raise SpawnError(plan.error, STEPS[plan.step], plan.item, os.fsdecode(<bytes>plan.interpreter))
    return plan.pid, plan.pidfd


def take_status(int pidfd):
    """The end of a child: (exit code, signal), None while it runs.

    The status is taken: the zombie is gone, and a second call raises
    ChildProcessError, as does one for a process that is not a child.
    """
    cdef int code = 0, status = 0, done
    with nogil:
        done = spawn_take_status(pidfd, &code, &status)
    if done < 0:
        raise OSError(errno, os.strerror(errno))
    if done == 0:
        return None
    if code == CLD_EXITED:
        return status, 0
    return 0, status


def exit_status(int pidfd):
    """The wait status of an ended process that need not be a child; None where it is not known yet.

    Raises OSError where the kernel has no such call (before Linux 6.15).
    """
    cdef int status = 0, done
    with nogil:
        done = spawn_read_exit(pidfd, &status)
    if done < 0:
        raise OSError(errno, os.strerror(errno))
    return status if done else None


def readable_bytes(int fd):
    """Bytes that a pipe or terminal holds.  OSError: a terminal that is closed."""
    cdef int size = 0
    if spawn_readable_bytes(fd, &size) < 0:
        raise OSError(errno, os.strerror(errno))
    return size


def widen(int pipe, sizes):
    """Give a pipe the first of `sizes` that is granted.

    Beyond fs.pipe-max-size, or fs.pipe-user-pages-soft in all, an ordinary user gets less.
    """
    for size in sizes:
        if spawn_set_pipe_size(pipe, size) >= 0:
            return


def read_at(int directory, path):
    cdef bytes c_path = _text(path)
    cdef const char *name = PyBytes_AS_STRING(c_path)
    cdef char out[4096]
    cdef ssize_t size
    if directory < 0:
        directory = AT_FDCWD
    with nogil:
        size = spawn_read_at(directory, name, out, sizeof(out))
    if size < 0:
        raise OSError(errno, os.strerror(errno), os.fsdecode(c_path))
    return PyBytes_FromStringAndSize(out, size)


def open_in_root(int root, path, int flags):
    """Opens `path` with the directory `root` as the root of every `..` and every symlink."""
    cdef bytes c_path = _text(path)
    cdef const char *name = PyBytes_AS_STRING(c_path)
    cdef int fd
    with nogil:
        fd = spawn_openat2(root, name, flags)
    if fd < 0:
        raise OSError(errno, os.strerror(errno), os.fsdecode(c_path))
    return fd

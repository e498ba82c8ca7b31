/* The child's side of a spawn: what runs between clone and execve.
 *
 * The child shares the agent's memory (CLONE_VM) while the calling thread
 * waits for its execve or its end (CLONE_VFORK), so nothing is copied however
 * large the agent is, and an error travels back through the plan itself: no
 * pipe.  The price: until execve the child may do nothing but system calls and
 * arithmetic on its own stack.  No malloc, no stdio, no locks, and no glibc
 * wrapper that does more than its system call: setuid() and friends would
 * signal every thread of the agent, so they are raw here.
 *
 * Linux 5.6 or newer (pidfd_open, waitid(P_PIDFD), openat2).
 */
#ifndef ARCBOX_SPAWN_CHILD_H
#define ARCBOX_SPAWN_CHILD_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "spawn_interpreter.h"
#include "spawn_stack.h"

/* In an old glibc's headers these may be missing; the numbers are one for all architectures. */
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif
#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x00001000
#endif

#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#define SPAWN_CLONE_INTO_CGROUP 0x200000000ull

#define SPAWN_P_PIDFD 3            /* idtype of waitid */
#define SPAWN_RESOLVE_IN_ROOT 0x10 /* openat2: the directory is the root of every `..` and symlink */
#define SPAWN_AT_RECURSIVE 0x8000
#define SPAWN_MOUNT_ATTR_RDONLY 0x1
#define SPAWN_KERNEL_SIGSET 8 /* bytes of the kernel's signal set */
#define SPAWN_SIGNALS 64
#define SPAWN_MAX_FD_FALLBACK 65536
#define SPAWN_MAX_KEEP 16
#define SPAWN_MAX_RLIMITS 16

/* Which step failed.  _spawn.pyx holds the words for them, in this order. */
enum spawn_step {
    SPAWN_OK,
    SPAWN_CLONE,
    SPAWN_SESSION,
    SPAWN_CGROUP,
    SPAWN_OOM,
    SPAWN_RLIMIT,
    SPAWN_PID_FILE,
    SPAWN_STDIO,
    SPAWN_TERMINAL,
    SPAWN_NAMESPACE,
    SPAWN_MOUNT_SOURCE,
    SPAWN_MOUNT_TARGET,
    SPAWN_MOUNT,
    SPAWN_ROOT,
    SPAWN_CWD,
    SPAWN_GROUPS,
    SPAWN_GID,
    SPAWN_UID,
    SPAWN_EXEC,
};

enum spawn_mount_kind { SPAWN_BIND, SPAWN_TMPFS };

struct spawn_mount {
    int kind;
    int readonly;
    int create;         /* make the mount point where it is missing */
    const char *source; /* of a bind */
    const char *target; /* absolute, without `..`; taken inside the root */
    const char *options;
    int source_fd; /* the child's own */
};

struct spawn_rlimit {
    int resource;
    struct rlimit limit;
};

struct spawn_plan {
    char *const *programs; /* tried in order until one executes; NULL ends it */
    char *const *argv;
    char *const *envp;
    int stdio[3]; /* all of them 3 or more */
    int keep_fd;  /* stays open in the program; -1: none */
    int pid_fd;   /* takes the child's stat line; -1: none */
    int cgroup_fd; /* a cgroup2 directory; -1: stay where the agent is */
    int born_there; /* the child is in that cgroup from its first instruction on */
    int begun; /* the child's pid, once it has come to its first instruction */
    int made;  /* the same, as soon as the kernel has made it; 0 where clone3 is not used */
    int at;    /* the step that the child is at */
    int cancelled; /* no child is to be made any more */
    pthread_mutex_t lock; /* of `pidfd`, while another thread may signal the child */
    int join_fd; /* a mount namespace to enter; -1: none */
    int new_namespace;
    int new_session;
    int terminal; /* fd 0 becomes the controlling terminal */
    int reset_oom;
    const char *root; /* NULL: the agent's own */
    const char *cwd;
    struct spawn_mount *mounts;
    int mount_count;
    int set_ids; /* whether uid, gid and groups are set */
    uid_t uid;
    gid_t gid;
    const gid_t *groups;
    size_t group_count;
    struct spawn_rlimit rlimits[SPAWN_MAX_RLIMITS];
    int rlimit_count;
    int dumpable; /* what the agent itself is to be again afterwards */
    int keep[SPAWN_MAX_KEEP]; /* ascending: what is not to be closed at once, 0 to 2 aside */
    int keep_count;
    /* The answer, written by the child. */
    int error; /* errno */
    int step;
    int item; /* index of the mount at fault, else -1 */
    char interpreter[SPAWN_INTERPRETER]; /* at fault where step is exec; empty: none */
    /* The answer, written by the parent. */
    pid_t pid;
    int pidfd;
};

struct spawn_open_how {
    uint64_t flags, mode, resolve;
};

struct spawn_mount_attr {
    uint64_t attr_set, attr_clr, propagation, userns_fd;
};

/* The kernel's struct sigaction differs from glibc's: handler, flags, restorer, mask. */
struct spawn_sigaction {
    void (*handler)(int);
    unsigned long flags;
    void (*restorer)(void);
    uint64_t mask;
};

static inline size_t spawn_number(char *out, unsigned long value) {
    char digits[24];
    size_t n = 0, i = 0;
    do {
        digits[n++] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    while (n) out[i++] = digits[--n];
    out[i] = 0;
    return i;
}

static inline int spawn_open_in_root(int root, const char *path, int flags) {
    struct spawn_open_how how = {(uint64_t)(flags | O_CLOEXEC), 0, SPAWN_RESOLVE_IN_ROOT};
    int fd, tries = 0;
    /* EAGAIN: somebody renamed beside us and the kernel could not rule an escape out. */
    do
        fd = (int)syscall(SYS_openat2, root, path, &how, sizeof how);
    while (fd < 0 && (errno == EAGAIN || errno == EINTR) && ++tries < 128);
    return fd;
}

/* `/proc/self/fd/N`: the way to name an open directory to mount(2). */
static inline void spawn_fd_path(char out[40], int fd) {
    static const char prefix[] = "/proc/self/fd/";
    memcpy(out, prefix, sizeof prefix - 1);
    spawn_number(out + sizeof prefix - 1, (unsigned long)fd);
}

_Noreturn static void spawn_fail(struct spawn_plan *plan, int step, int item) {
    int error = errno;
    plan->error = error ? error : EIO;
    plan->step = step;
    plan->item = item;
    if (plan->pid_fd >= 0) {
        /* For a new agent, should this one have died meanwhile: the start failed. */
        char line[64] = "\nfailed ";
        size_t n = 8;
        n += spawn_number(line + n, (unsigned long)plan->error);
        line[n++] = ' ';
        n += spawn_number(line + n, (unsigned long)step);
        line[n++] = '\n';
        if (write(plan->pid_fd, line, n) < 0) {
            /* No process is left to report to. */
        }
    }
    for (;;) syscall(SYS_exit_group, 127);
}

/* Puts the child's own /proc/self/stat into the pid file: pid and start time in one piece. */
static int spawn_write_pid(int pid_fd) {
    char line[1024];
    ssize_t n;
    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    n = read(fd, line, sizeof line);
    close(fd);
    if (n <= 0) return -1;
    return write(pid_fd, line, (size_t)n) == n ? 0 : -1;
}

static int spawn_close_others(const int *keep, int count) {
    unsigned first = 3;
    for (int i = 0; i <= count; i++) {
        unsigned last = i < count ? (unsigned)keep[i] - 1 : ~0u;
        if (first <= last && syscall(SYS_close_range, first, last, 0) < 0) {
            if (errno != ENOSYS && errno != EINVAL) return -1;
            /* Before Linux 5.9.  Everything the agent opens is close-on-exec anyhow. */
            struct rlimit limit;
            unsigned top = SPAWN_MAX_FD_FALLBACK;
            if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < top) top = (unsigned)limit.rlim_cur;
            for (unsigned fd = first; fd <= last && fd < top; fd++) close((int)fd);
        }
        if (i < count) first = (unsigned)keep[i] + 1;
    }
    return 0;
}

/* Opens `target` below the root for mounting on; makes what is missing where it may.
 * Each step goes through openat2 from the root, and mkdirat and O_EXCL follow no
 * symlink in their last part, so no link in a root can lead outside it. */
static int spawn_open_target(int root, const struct spawn_mount *mount, int is_dir) {
    char path[4096];
    size_t length = strlen(mount->target), at = 0;
    int fd, parent;
    if (length >= sizeof path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    fd = spawn_open_in_root(root, mount->target, O_PATH);
    if (fd >= 0 || errno != ENOENT || !mount->create) return fd;
    parent = spawn_open_in_root(root, "/", O_PATH | O_DIRECTORY);
    if (parent < 0) return -1;
    for (;;) {
        size_t begin, end;
        while (mount->target[at] == '/') at++;
        if (!mount->target[at]) return parent;
        begin = at;
        while (mount->target[at] && mount->target[at] != '/') at++;
        end = at;
        while (mount->target[at] == '/') at++;
        int last = !mount->target[at];
        memcpy(path, mount->target, end);
        path[end] = 0;
        fd = spawn_open_in_root(root, path, last ? O_PATH : O_PATH | O_DIRECTORY);
        if (fd < 0 && errno == ENOENT) {
            int made;
            if (last && !is_dir) {
                made = openat(parent, path + begin, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
                if (made >= 0) close(made);
            } else
                made = mkdirat(parent, path + begin, 0755);
            if (made >= 0 || errno == EEXIST)
                fd = spawn_open_in_root(root, path, last ? O_PATH : O_PATH | O_DIRECTORY);
        }
        int error = errno;
        close(parent);
        errno = error;
        if (fd < 0) return -1;
        if (last) return fd;
        parent = fd;
    }
}

/* Makes the mount at `fd`, and all below it, read-only. */
static int spawn_set_readonly(int fd) {
    struct spawn_mount_attr attr = {SPAWN_MOUNT_ATTR_RDONLY, 0, 0, 0};
    char path[40];
    struct statfs fs;
    unsigned long flags = MS_BIND | MS_REMOUNT | MS_RDONLY;
    if (syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH | SPAWN_AT_RECURSIVE, &attr, sizeof attr) == 0) return 0;
    if (errno != ENOSYS) return -1;
    /* Before Linux 5.12: the topmost mount only.  A remount sets all flags anew, so keep those it has. */
    if (fstatfs(fd, &fs) < 0) return -1;
    if (fs.f_flags & ST_NOSUID) flags |= MS_NOSUID;
    if (fs.f_flags & ST_NODEV) flags |= MS_NODEV;
    if (fs.f_flags & ST_NOEXEC) flags |= MS_NOEXEC;
    if (fs.f_flags & ST_NOATIME) flags |= MS_NOATIME;
    if (fs.f_flags & ST_NODIRATIME) flags |= MS_NODIRATIME;
    if (fs.f_flags & ST_RELATIME) flags |= MS_RELATIME;
    spawn_fd_path(path, fd);
    return mount(NULL, path, NULL, flags, NULL);
}

static void spawn_mount_all(struct spawn_plan *plan, int root) {
    char source_path[40], target_path[40];
    /* All sources first: a mount must not change what a later source means. */
    for (int i = 0; i < plan->mount_count; i++) {
        struct spawn_mount *m = &plan->mounts[i];
        m->source_fd = -1;
        if (m->kind == SPAWN_BIND && (m->source_fd = open(m->source, O_PATH | O_CLOEXEC)) < 0)
            spawn_fail(plan, SPAWN_MOUNT_SOURCE, i);
    }
    for (int i = 0; i < plan->mount_count; i++) {
        struct spawn_mount *m = &plan->mounts[i];
        struct stat source = {0}, target;
        int fd, done;
        if (m->kind == SPAWN_BIND && fstat(m->source_fd, &source) < 0) spawn_fail(plan, SPAWN_MOUNT_SOURCE, i);
        int is_dir = m->kind == SPAWN_TMPFS || S_ISDIR(source.st_mode);
        fd = spawn_open_target(root, m, is_dir);
        if (fd < 0 || fstat(fd, &target) < 0) spawn_fail(plan, SPAWN_MOUNT_TARGET, i);
        if (is_dir != !!S_ISDIR(target.st_mode)) {
            errno = is_dir ? ENOTDIR : EISDIR;
            spawn_fail(plan, SPAWN_MOUNT_TARGET, i);
        }
        spawn_fd_path(target_path, fd);
        if (m->kind == SPAWN_TMPFS) {
            unsigned long flags = MS_NOSUID | MS_NODEV | (m->readonly ? MS_RDONLY : 0);
            done = mount("tmpfs", target_path, "tmpfs", flags, m->options);
        } else {
            spawn_fd_path(source_path, m->source_fd);
            done = mount(source_path, target_path, NULL, MS_BIND | MS_REC, NULL);
        }
        if (done < 0) spawn_fail(plan, SPAWN_MOUNT, i);
        close(fd);
        if (m->kind == SPAWN_BIND && m->readonly) {
            /* `fd` was what lies below the mount.  Found again by its path, and checked to
             * be the source: a root changed meanwhile must not leave the mount writable. */
            fd = spawn_open_in_root(root, m->target, O_PATH);
            if (fd < 0 || fstat(fd, &target) < 0) spawn_fail(plan, SPAWN_MOUNT, i);
            if (target.st_dev != source.st_dev || target.st_ino != source.st_ino) {
                errno = EXDEV;
                spawn_fail(plan, SPAWN_MOUNT, i);
            }
            if (spawn_set_readonly(fd) < 0) spawn_fail(plan, SPAWN_MOUNT, i);
            close(fd);
        }
        if (m->source_fd >= 0) close(m->source_fd);
    }
}

static int spawn_child(void *argument) {
    struct spawn_plan *plan = argument;
    uint64_t no_signals = 0;
    int root = -1, cwd_later = 0, error = ENOENT;

    __atomic_store_n(&plan->begun, (int)syscall(SYS_getpid), __ATOMIC_RELEASE);
    if (plan->new_session && setsid() < 0) spawn_fail(plan, SPAWN_SESSION, -1);
    /* The table of handlers is the child's own copy: CLONE_SIGHAND is not set. */
    for (int sig = 1; sig <= SPAWN_SIGNALS; sig++) {
        struct spawn_sigaction action = {SIG_DFL, 0, NULL, 0};
        if (sig != SIGKILL && sig != SIGSTOP) syscall(SYS_rt_sigaction, sig, &action, NULL, SPAWN_KERNEL_SIGSET);
    }
    if (plan->cgroup_fd >= 0 && !plan->born_there) {
        plan->at = SPAWN_CGROUP;
        int fd = openat(plan->cgroup_fd, "cgroup.procs", O_WRONLY | O_CLOEXEC);
        if (fd < 0 || write(fd, "0", 1) < 0) spawn_fail(plan, SPAWN_CGROUP, -1);
        close(fd);
    }
    if (plan->reset_oom) {
        int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
        if (fd < 0 || write(fd, "0", 1) < 0) spawn_fail(plan, SPAWN_OOM, -1);
        close(fd);
    }
    umask(022);
    /* After the cgroup, so that a pid in the file is always one in the cgroup too. */
    if (plan->pid_fd >= 0 && spawn_write_pid(plan->pid_fd) < 0) spawn_fail(plan, SPAWN_PID_FILE, -1);
    for (int i = 0; i < 3; i++)
        if (dup2(plan->stdio[i], i) < 0) spawn_fail(plan, SPAWN_STDIO, -1);
    /* Now and not at execve: a mount that hangs must not hold another container's pipes open. */
    if (spawn_close_others(plan->keep, plan->keep_count) < 0) spawn_fail(plan, SPAWN_STDIO, -1);
    if (plan->keep_fd >= 0 && fcntl(plan->keep_fd, F_SETFD, 0) < 0) spawn_fail(plan, SPAWN_STDIO, -1);
    if (plan->terminal && ioctl(0, TIOCSCTTY, 0) < 0) spawn_fail(plan, SPAWN_TERMINAL, -1);
    for (int i = 0; i < plan->rlimit_count; i++)
        if (setrlimit(plan->rlimits[i].resource, &plan->rlimits[i].limit) < 0) spawn_fail(plan, SPAWN_RLIMIT, i);

    plan->at = SPAWN_NAMESPACE;
    if (plan->join_fd >= 0 && setns(plan->join_fd, CLONE_NEWNS) < 0) spawn_fail(plan, SPAWN_NAMESPACE, -1);
    if (plan->new_namespace) {
        /* Slave: nothing mounted here shows outside, and what the guest unmounts goes away here too. */
        if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
            spawn_fail(plan, SPAWN_NAMESPACE, -1);
    }
    plan->at = SPAWN_ROOT;
    if (plan->root || plan->mount_count) {
        root = open(plan->root ? plan->root : "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (root < 0) spawn_fail(plan, SPAWN_ROOT, -1);
    }
    if (plan->mount_count) {
        plan->at = SPAWN_MOUNT;
        spawn_mount_all(plan, root);
        plan->at = SPAWN_ROOT;
    }
    if (plan->root && (fchdir(root) < 0 || chroot(".") < 0)) spawn_fail(plan, SPAWN_ROOT, -1);
    if (root >= 0) close(root);
    if (chdir("/") < 0) spawn_fail(plan, SPAWN_ROOT, -1);
    plan->at = SPAWN_CWD;
    if (plan->cwd && chdir(plan->cwd) < 0) {
        /* A directory that only the user may enter (root squashed on NFS): once more as that user. */
        if ((errno != EACCES && errno != EPERM) || !plan->set_ids) spawn_fail(plan, SPAWN_CWD, -1);
        cwd_later = 1;
    }
    if (plan->set_ids) {
        if (syscall(SYS_setgroups, plan->group_count, plan->groups) < 0) spawn_fail(plan, SPAWN_GROUPS, -1);
        if (syscall(SYS_setresgid, plan->gid, plan->gid, plan->gid) < 0) spawn_fail(plan, SPAWN_GID, -1);
        if (syscall(SYS_setresuid, plan->uid, plan->uid, plan->uid) < 0) spawn_fail(plan, SPAWN_UID, -1);
    }
    if (cwd_later && chdir(plan->cwd) < 0) spawn_fail(plan, SPAWN_CWD, -1);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &no_signals, NULL, SPAWN_KERNEL_SIGSET);
    plan->at = SPAWN_EXEC;
    for (char *const *program = plan->programs; *program; program++) {
        execve(*program, plan->argv, plan->envp);
        /* As execvp: EACCES is reported only if no later program gives a better error. */
        if (errno == EACCES) error = EACCES;
        else if (errno != ENOENT && errno != ENOTDIR) {
            error = errno;
            break;
        }
    }
    for (char *const *program = plan->programs; *program && !plan->interpreter[0]; program++) {
        char interpreter[SPAWN_INTERPRETER];
        if (!spawn_bad_interpreter(*program, interpreter)) continue;
        error = errno;
        memcpy(plan->interpreter, interpreter, sizeof interpreter);
    }
    errno = error;
    spawn_fail(plan, SPAWN_EXEC, -1);
}

/* struct clone_args of Linux 5.7. */
struct spawn_clone_args {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};

/* clone3(2), with the child on a stack of its own, where it calls spawn_child and never
 * comes back.  glibc has no wrapper for it.  -errno on failure, ENOSYS where this
 * architecture has none here.  The frame pointer is zeroed last: without frames the
 * compiler may have put the plan or the child's address into it. */
static inline long spawn_clone3(struct spawn_clone_args *args, struct spawn_plan *plan) {
#if defined(__x86_64__)
    long result;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "mov %[plan], %%rdi\n\t"
                     "mov %[child], %%rax\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "call *%%rax\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(result)
                     : "0"((long)SYS_clone3), "D"(args), "S"(sizeof *args), [child] "r"(spawn_child), [plan] "r"(plan)
                     : "rcx", "r11", "memory", "cc");
    return result;
#elif defined(__aarch64__)
    register long x0 __asm__("x0") = (long)args;
    register long x1 __asm__("x1") = (long)sizeof *args;
    register long x8 __asm__("x8") = SYS_clone3;
    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x0, %[plan]\n\t"
                     "mov x1, %[child]\n\t"
                     "mov x29, #0\n\t"
                     "blr x1\n\t"
                     "brk #1\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x1), "r"(x8), [child] "r"(spawn_child), [plan] "r"(plan)
                     : "x30", "memory", "cc");
    return x0;
#else
    (void)args;
    (void)plan;
    return -ENOSYS;
#endif
}

/* Takes the status of a child that has ended, so that nothing is left of it. */
static void spawn_bury(struct spawn_plan *plan) {
    siginfo_t info;
    int done;
    do done = waitid(SPAWN_P_PIDFD, (id_t)plan->pidfd, &info, WEXITED);
    while (done < 0 && errno == EINTR);
    pthread_mutex_lock(&plan->lock);
    close(plan->pidfd);
    plan->pidfd = -1;
    pthread_mutex_unlock(&plan->lock);
}

/* From another thread: kills the child of a plan that is being run.  `cancel`: nor is another one made.
 * A pidfd that the kernel has named, but that stands for no child yet, is not touched. */
static void spawn_kill(struct spawn_plan *plan, int cancel) {
    pthread_mutex_lock(&plan->lock);
    if (cancel) plan->cancelled = 1;
    if (plan->pidfd >= 0 && (__atomic_load_n(&plan->made, __ATOMIC_ACQUIRE) || __atomic_load_n(&plan->begun, __ATOMIC_ACQUIRE)))
        syscall(SYS_pidfd_send_signal, plan->pidfd, SIGKILL, NULL, 0);
    pthread_mutex_unlock(&plan->lock);
}

/* Before a clone: what the former one has left.  Whether the plan may still be run. */
static int spawn_begin(struct spawn_plan *plan, int born_there) {
    int cancelled;
    pthread_mutex_lock(&plan->lock);
    plan->born_there = born_there;
    plan->begun = plan->made = 0;
    plan->pidfd = -1;
    plan->at = SPAWN_CLONE;
    cancelled = plan->cancelled;
    pthread_mutex_unlock(&plan->lock);
    if (cancelled) errno = ECANCELED;
    return !cancelled;
}

/* The child, in its cgroup from the start where it is to be in one: to move it there
 * afterwards makes it wait for the kernel's RCU, some 15 ms.  pid, or -1 and errno. */
static pid_t spawn_clone(struct spawn_plan *plan, char *stack) {
    const uint64_t flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD;
    if (plan->cgroup_fd >= 0) {
        struct spawn_clone_args args = {0};
        args.flags = flags | CLONE_PARENT_SETTID | SPAWN_CLONE_INTO_CGROUP;
        args.pidfd = (uint64_t)(uintptr_t)&plan->pidfd;
        args.parent_tid = (uint64_t)(uintptr_t)&plan->made;
        args.exit_signal = SIGCHLD;
        args.stack = (uint64_t)(uintptr_t)stack;
        args.stack_size = SPAWN_STACK;
        args.cgroup = (uint64_t)plan->cgroup_fd;
        if (!spawn_begin(plan, 1)) return -1;
        long pid = spawn_clone3(&args, plan);
        if (pid > 0 && plan->begun) return (pid_t)pid;
        /* Killed at birth, as of Linux 6.18 whatever is born in another cgroup is where that one
         * or the agent's own was ever written to by cgroup.kill.  One that moves there is not. */
        if (pid > 0) spawn_bury(plan);
        if (pid == -EAGAIN || pid == -ENOMEM) {
            errno = (int)-pid;
            return -1;
        }
        /* Before Linux 5.7, or forbidden by a filter; or the cgroup is at fault, which the
         * child finds out for itself. */
    }
    if (!spawn_begin(plan, 0)) return -1;
    return clone(spawn_child, stack + SPAWN_STACK, (int)flags | SIGCHLD, plan, &plan->pidfd);
}

/* A change of user in the child marks the shared memory, and so the agent, as not dumpable: else
 * that user could trace the child, and write into the agent by it.  It is not the agent's own wish
 * afterwards; but that is when no child of any thread is in the memory any more. */
static pthread_mutex_t spawn_ids_lock = PTHREAD_MUTEX_INITIALIZER;
static int spawn_ids_children;

static inline void spawn_ids_begin(void) {
    pthread_mutex_lock(&spawn_ids_lock);
    spawn_ids_children++;
    pthread_mutex_unlock(&spawn_ids_lock);
}

static inline void spawn_ids_done(int dumpable) {
    pthread_mutex_lock(&spawn_ids_lock);
    if (--spawn_ids_children == 0 && dumpable) prctl(PR_SET_DUMPABLE, 1);
    pthread_mutex_unlock(&spawn_ids_lock);
}

/* Runs the plan.  0: plan->pid and plan->pidfd are a new child.  -1: plan->error and
 * plan->step say why not, and nothing is left of it, no zombie and no descriptor. */
static int spawn_run(struct spawn_plan *plan) {
    uint64_t all_signals = ~(uint64_t)0, old_signals = 0;
    char *stack = spawn_take_stack();
    plan->error = 0;
    plan->step = SPAWN_OK;
    plan->item = -1;
    plan->pidfd = -1;
    if (!stack) {
        plan->error = errno;
        plan->step = SPAWN_CLONE;
        return -1;
    }
    /* No handler of the agent's may run in the child, on memory that is the agent's. */
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all_signals, &old_signals, SPAWN_KERNEL_SIGSET);
    if (plan->set_ids) spawn_ids_begin();
    plan->pid = spawn_clone(plan, stack);
    if (plan->pid < 0) {
        plan->error = errno;
        plan->step = SPAWN_CLONE;
    }
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &old_signals, NULL, SPAWN_KERNEL_SIGSET);
    spawn_give_stack(stack);
    if (plan->set_ids) spawn_ids_done(plan->dumpable);
    if (plan->pid < 0) return -1;
    if (plan->error) {
        spawn_bury(plan);
        return -1;
    }
    return 0;
}

#endif

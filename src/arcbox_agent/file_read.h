/* Reading files for the line engine: at an offset, and without waiting where that is wanted. */
#ifndef ARCBOX_FILE_READ_H
#define ARCBOX_FILE_READ_H

#include <unistd.h>
#include <string.h>
#include <stddef.h>
#include <errno.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <fcntl.h>
#include <stdint.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif

/* Bytes read, 0 at the end, or -errno.  A short read of a regular file is its end, or
   with nowait where the cached part ends.  nowait: -EAGAIN instead of waiting for the
   disk, and where the kernel or the file system cannot promise not to. */
static inline ssize_t arcbox_read_at(int fd, void *to, size_t n, off_t at, int nowait) {
    ssize_t got;
    do {
#if defined(__linux__) && defined(RWF_NOWAIT)
        struct iovec v = {to, n};
        got = nowait ? preadv2(fd, &v, 1, at, RWF_NOWAIT) : pread(fd, to, n, at);
        if (got < 0 && nowait && (errno == ENOSYS || errno == EINVAL || errno == EOPNOTSUPP))
            return -EAGAIN;
#else
        if (nowait)
            return -EAGAIN;
        got = pread(fd, to, n, at);
#endif
    } while (got < 0 && errno == EINTR);
    return got < 0 ? -errno : got;
}

/* Open for reading without waiting for the disk: EAGAIN where that cannot be. */
static inline int arcbox_open_cached(const char *path) {
#if defined(__linux__) && defined(SYS_openat2)
    struct { uint64_t flags, mode, resolve; } how = {O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW | O_NOCTTY, 0, 0x20 /* CACHED */};
    int fd = (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
    if (fd < 0 && (errno == ENOSYS || errno == EINVAL || errno == EPERM || errno == E2BIG)) errno = EAGAIN;
    return fd;
#else
    errno = EAGAIN;
    return -1;
#endif
}

/* Open for reading without a wait for a FIFO's writer.  No link is followed as the last name of the path,
   and with no_links (where the kernel has openat2) none at all: -1 and ELOOP. */
static inline int arcbox_open_file(const char *path, int no_links) {
    int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW | O_NOCTTY;
#if defined(__linux__) && defined(SYS_openat2)
    if (no_links) {
        struct { uint64_t flags, mode, resolve; } how = {(uint64_t)flags, 0, 0x06 /* NO_SYMLINKS, NO_MAGICLINKS */};
        int fd = (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
        if (fd >= 0 || (errno != ENOSYS && errno != EPERM)) return fd;
    }
#endif
    (void)no_links;
    return open(path, flags);
}

static inline void *arcbox_last_byte(const void *from, int byte, size_t n) {
#ifdef __linux__
    return memrchr(from, byte, n);
#else
    const unsigned char *p = (const unsigned char *)from;
    while (n--) if (p[n] == (unsigned char)byte) return (void *)(p + n);
    return NULL;
#endif
}

#endif

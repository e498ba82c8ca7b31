# cython: cdivision=True
"""One container's log: opened, appended to line by line, rotated, and read again after a crash.  Linux only.

    log --rename--> log.1 --rename--> log.2 ...

The log holds whole lines only.  A line that a failed write or a crash left half written is
cut away again; LINE_WINDOW (_lines.pxd) is why no reader has delivered it by then.
"""

from libc.errno cimport EINTR, ENOENT, errno
from libc.stdint cimport int64_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy, memmove
from arcbox_agent._log_history cimport LogHistory, file_begins, is_held
from arcbox_agent._lines cimport LINE_WINDOW, Line, Minute, parse_line

import os

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <sys/stat.h>
    #include <unistd.h>

    static int arcbox_open_log(const char *path, int truncate) {
        return open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW
                          | (truncate ? O_TRUNC : 0), 0600);
    }
    /* 0: a regular file.  path NULL: the file that is open as `fd`. */
    static int arcbox_stat(int fd, const char *path, uint64_t *inode, int64_t *size) {
        struct stat s;
        if ((path ? stat(path, &s) : fstat(fd, &s)) != 0) return -errno;
        if (!S_ISREG(s.st_mode)) return -EISDIR;
        *inode = s.st_ino;
        *size = s.st_size;
        return 0;
    }
    """
    int close(int fd) nogil
    int rename(const char* a, const char* b) nogil
    int ftruncate(int fd, int64_t size) nogil
    ssize_t write(int fd, const void* data, size_t n) nogil
    ssize_t pread(int fd, void* to, size_t n, int64_t at) nogil
    int arcbox_open_log(const char* path, int truncate) nogil
    int arcbox_stat(int fd, const char* path, uint64_t* inode, int64_t* size) nogil

cdef enum:
    # Bytes of a log looked at at once: more than any line of the capture has.
    BLOCK = 2 * LINE_WINDOW
    # The rotated files that a reader looks for before it takes the oldest for found.
    SIBLINGS_LOOKED_FOR = 3

cdef int64_t SECOND = 1000000000


cdef int open_log(Log* log) noexcept nogil:
    """Open, or open again, the file at the log's path; 0 or -errno."""
    cdef int fd = arcbox_open_log(log.path, 0), rc
    cdef uint64_t inode = 0
    cdef int64_t size = 0
    if fd < 0:
        return -errno
    rc = arcbox_stat(fd, NULL, &inode, &size)
    if rc < 0:
        close(fd)
        return rc
    go_on_in(log, fd, inode, size, size == 0)
    return 0


cdef void go_on_in(Log* log, int fd, uint64_t inode, int64_t size, bint known) noexcept nogil:
    """From here on the log is this file.  known: all that it has before was counted."""
    if log.fd >= 0:
        close(log.fd)
    log.fd = fd
    log.inode = inode
    file_begins(log.past, inode, known)
    go_on_at(log, size)


cdef void go_on_at(Log* log, int64_t size) noexcept nogil:
    """From here on the log has this size, and the marks point there."""
    cdef int i
    log.size = size
    for i in range(2):
        if log.spools[i] is not NULL:
            log.moved(log.spools[i])


cdef int rotate(Log* log) noexcept nogil:
    """log -> log.1 -> ... by rename, oldest first, so that a reader can follow the shift; 0 or -errno."""
    cdef char newer[540]
    cdef int fd, rc
    cdef uint64_t inode = 0
    cdef int64_t size = 0
    # The new file is made first and stays open: where that fails (a full disk, no descriptor
    # left), nothing has changed.
    snprintf(newer, sizeof(newer), b"%s.new", log.path)
    fd = arcbox_open_log(newer, 1)
    if fd < 0:
        return -errno
    rc = arcbox_stat(fd, NULL, &inode, &size)
    if rc == 0:
        rc = shift(log)
    if rc == 0 and rename(newer, log.path) < 0:
        rc = -errno
    if rc < 0:
        close(fd)
        return rc
    go_on_in(log, fd, inode, size, True)
    return 0


cdef int shift(Log* log) noexcept nogil:
    """Give the log and each rotated file the next number; 0 or -errno."""
    cdef char older[540]
    cdef char newer[540]
    cdef int i, last = 1
    cdef uint64_t inode
    cdef int64_t size
    # A shift that a crash cut short has left an empty number: that one is filled.
    while last < log.max_files:
        snprintf(older, sizeof(older), b"%s.%d", log.path, last)
        if arcbox_stat(-1, older, &inode, &size) < 0:
            break
        last += 1
    for i in range(last, 0, -1):
        snprintf(older, sizeof(older), b"%s.%d", log.path, i)
        if i > 1:
            snprintf(newer, sizeof(newer), b"%s.%d", log.path, i - 1)
        else:
            snprintf(newer, sizeof(newer), b"%s", log.path)
        if rename(newer, older) < 0 and errno != ENOENT:
            return -errno
    return 0


cdef int append_lines(Log* log, const char* data, size_t n, size_t* kept) noexcept nogil:
    """Append whole lines; 0 or -errno.

    Where it fails, `kept` bytes stay in the log: whole lines, which a reader may have
    taken already.  kept NULL: all lines or none.
    """
    cdef size_t written = 0, whole
    cdef ssize_t rc
    cdef uint64_t inode = 0
    cdef int64_t size = 0
    cdef int error
    while written < n:
        rc = write(log.fd, data + written, n - written)
        if rc < 0:
            if errno == EINTR:
                continue
            error = errno
            whole = written if kept is not NULL else 0
            while whole and data[whole - 1] != c"\n":
                whole -= 1
            if written > whole and arcbox_stat(log.fd, NULL, &inode, &size) == 0:
                ftruncate(log.fd, size - <int64_t> (written - whole))
            log.size += whole
            if kept is not NULL:
                kept[0] = whole
            return -error
        written += rc
    log.size += n
    return 0


cdef int prepare_log(Log* log, size_t n, int64_t now, int64_t* rotations) noexcept nogil:
    """Have an open log with room for n bytes under its maximum size; 0, -errno or HELD."""
    cdef uint64_t inode = 0
    cdef int64_t size = 0
    cdef int rc
    if log.fd < 0:
        rc = open_log(log)
        if rc < 0:
            return rc
    elif now >= log.check_at:
        # Somebody may have moved, removed or truncated the file.
        log.check_at = now + SECOND
        rc = arcbox_stat(-1, log.path, &inode, &size)
        if rc < 0 or inode != log.inode:
            rc = open_log(log)
            if rc < 0:
                return rc
        elif size != log.size:
            go_on_at(log, size)
    if log.size > 0 and log.size + <int64_t> n > log.max_size and now >= log.rotate_at:
        if is_held(log.past, log.max_files):
            # A log over its size is better than a container that cannot end.
            return 0 if log.last else HELD
        if rotate(log) < 0:
            # A log over its size is better than none; the rotation is tried again later.
            log.rotate_at = now + SECOND
        else:
            rotations[0] += 1
    return 0


# ------------------------------------------------------------- after a crash


cdef int count_output(
    int fd, int64_t at, int stream, char* data, int64_t* content, bint* open_, bint* gap,
) noexcept nogil:
    """Add up the output of a stream that a log holds from an offset on; 0 or -errno.

    open_: the last line is a part.  gap: the log reports lost output of the stream.
    data: room for BLOCK bytes.
    """
    cdef size_t have = 0, i, n
    cdef ssize_t got
    cdef const char* newline
    cdef Line line
    cdef Minute minute
    minute.known = minute.second_known = False
    while True:
        got = pread(fd, data + have, BLOCK - have, at)
        if got < 0:
            return -errno
        if got == 0:
            return 0
        at += got
        have += got
        i = 0
        while True:
            newline = <const char*> memchr(data + i, c"\n", have - i)
            if newline is NULL:
                break
            n = newline - (data + i)
            if n and data[i] != c"{":
                parse_line(data + i, n, False, &minute, NULL, &line)
                if line.stamped and line.stream == stream:
                    if line.note:
                        gap[0] = True
                    else:
                        content[0] += line.length + (not line.more and not line.unended)
                    open_[0] = line.more
            i = newline + 1 - data
        have -= i
        memmove(data, data + i, have)
        if have == BLOCK:
            have = 0  # no line of the capture is so long: another writer's


cdef class CaptureLog:
    """One container's log file, written by its streams."""

    def __cinit__(self, str path, int64_t max_size, int max_files, LogHistory history=None):
        self.history = history if history is not None else LogHistory()
        self.log.past = &self.history.past
        cdef bytes raw = os.fsencode(path)
        if len(raw) >= 500:
            raise ValueError(f"the path of a log has at most 499 bytes: {path}")
        memcpy(self.log.path, <const char*> raw, len(raw) + 1)
        self.path = path
        self.log.fd = -1
        self.log.max_size = max_size
        self.log.max_files = max_files if max_files > 0 else 1

    def __dealloc__(self):
        self.close()

    @property
    def error(self):
        """errno of the last write, 0 where it went well."""
        return self.log.error

    def open(self):
        """Open the log, without the line that a crash has left half written.  OSError: it cannot be opened."""
        if self.log.past.newest < 0:
            for number in range(self.log.max_files, 0, -1):
                try:
                    self.history.begin(os.stat(f"{self.path}.{number}").st_ino, False)
                except OSError:
                    continue
        cdef int rc = open_log(&self.log)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc), self.path)
        cdef int fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        cdef int64_t size = self.log.size, low
        cdef bytes block
        try:
            if size and os.pread(fd, 1, size - 1) != b"\n":
                # A longer line is another writer's: it ends here.
                low = size - BLOCK if size > BLOCK else 0
                block = os.pread(fd, size - low, low)
                if b"\n" in block or low == 0:
                    os.truncate(self.path, low + block.rfind(b"\n") + 1)
                else:
                    append_lines(&self.log, b"\n", 1, NULL)
                self.log.size = os.fstat(fd).st_size
        finally:
            os.close(fd)
        # The kernel remembers which of these names there are: the first reader needs no disk to find out.
        for number in range(1, SIBLINGS_LOOKED_FOR + 1):
            os.path.exists(f"{self.path}.{number}")
            os.path.exists(f"{self.path}.{number}.gz")

    cdef int output_since(
        self, uint64_t inode, int64_t offset, int stream, int64_t* content, bint* open_, bint* gap) except -1:
        """As `count_output`, over the file with this inode, from the offset on, and all newer ones."""
        cdef char* data
        cdef int rc = 0, fd
        cdef int64_t at
        files, at = self.files_since(inode, offset)
        data = <char*> malloc(BLOCK)
        if data is NULL:
            raise MemoryError
        try:
            for fd in files:
                with nogil:
                    rc = count_output(fd, at, stream, data, content, open_, gap)
                at = 0
                if rc < 0:
                    raise OSError(-rc, os.strerror(-rc), self.path)
        finally:
            free(data)
            for fd in files:
                os.close(fd)
        return 0

    cdef tuple files_since(self, uint64_t inode, int64_t offset):
        """Descriptors of the file with this inode and the newer ones, oldest first; and where to begin in the first."""
        files = []
        found = False
        for number in range(self.log.max_files + 1):
            try:
                fd = os.open(self.path + (f".{number}" if number else ""), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            except OSError:
                # Most likely too many are open: those opened here must not stay so.
                for fd in files:
                    os.close(fd)
                raise
            files.insert(0, fd)
            status = os.fstat(fd)
            if status.st_ino == inode:
                found = True
                break
        # Where that file is gone, all that is left is newer.
        return files, (offset if found and offset <= status.st_size else 0)

    def close(self):
        if self.log.fd >= 0:
            close(self.log.fd)
        self.log.fd = -1
